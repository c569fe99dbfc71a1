"""Edits, counts and stored numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeexport import graph
from edgeexport.errors import ModelError
from edgeexport.graph import (
    check_weights,
    constants,
    expose,
    float_tensors,
    flush_subnormals,
    initializers,
    largest_tensors,
    lower_ir,
    op_counts,
    subnormal_share,
    with_initializers,
)
from tests.graph.models import make_model


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    return list(ort.InferenceSession(model.SerializeToString()).run(None, feeds))


def test_operators_are_counted(mlp: onnx.ModelProto) -> None:
    mlp.graph.node.append(helper.make_node("Relu", ["y"], ["z"]))
    assert list(op_counts(mlp).items()) == [("Relu", 2), ("Gemm", 1)]


def test_float_tensors_come_in_graph_order(mlp: onnx.ModelProto) -> None:
    mlp.graph.node.append(helper.make_node("Shape", ["y"], ["s"]))
    assert float_tensors(mlp) == ("x", "h", "y")


def test_an_exposed_tensor_is_an_output_with_its_value(mlp: onnx.ModelProto) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4) - 5
    y, h, seen = run(expose(mlp, ["h", "y", "x"]), x=x)
    np.testing.assert_array_equal(np.maximum(h, 0), y)
    np.testing.assert_array_equal(seen, x)


def test_exposing_an_unknown_tensor_names_the_nearest(mlp: onnx.ModelProto) -> None:
    with pytest.raises(ModelError, match="'hh'") as refused:
        expose(mlp, ["hh"])
    assert "'h'" in refused.value.next_step


def test_the_largest_tensor_comes_first(mlp: onnx.ModelProto) -> None:
    assert largest_tensors(mlp, 1) == (("w", (4, 3), 48),)


def test_initializers_can_be_replaced_by_name(mlp: onnx.ModelProto) -> None:
    changed = with_initializers(mlp, {"b": np.full(3, 7, np.float32)})
    assert initializers(changed)["b"].tolist() == [7, 7, 7]
    assert initializers(mlp)["b"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("value", [np.zeros(4, np.float32), np.zeros(3, np.float64)], ids=["shape", "type"])
def test_a_replacement_that_does_not_fit_is_refused(value: np.ndarray, mlp: onnx.ModelProto) -> None:
    with pytest.raises(ModelError, match="'b' has"):
        with_initializers(mlp, {"b": value})
    with pytest.raises(ModelError, match="'nobody'"):
        with_initializers(mlp, {"nobody": value})


BAD = (float("nan"), float("inf"), float("-inf"))
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("place", ["initializer", "Constant"])
def test_a_weight_that_is_not_finite_is_named(bad: float, kind: int, place: str, mlp: onnx.ModelProto) -> None:
    tensor = helper.make_tensor("bad", kind, [2, 2], [0.0, bad, 1.0, bad])
    if place == "initializer":
        mlp.graph.initializer.append(tensor)
    else:
        mlp.graph.node.append(helper.make_node("Constant", [], ["bad"], value=tensor))
    with pytest.raises(ModelError, match=r"'bad'.*2 of 4 values.*\[0, 1\]"):
        check_weights(mlp)


@pytest.mark.parametrize("form", [{"value_float": float("nan")}, {"value_floats": [1.0, float("inf")]}])
def test_short_forms_of_constants_are_checked_too(form: dict[str, object], mlp: onnx.ModelProto) -> None:
    mlp.graph.node.append(helper.make_node("Constant", [], ["bad"], **form))
    with pytest.raises(ModelError, match="'bad'"):
        check_weights(mlp)


def test_finite_weights_pass(mlp: onnx.ModelProto) -> None:
    mlp.graph.initializer.append(numpy_helper.from_array(np.zeros(0, np.float32), "empty"))
    check_weights(mlp)


def _masked(fill: float) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["fill"], value=helper.make_tensor("f", 1, [], [fill])),
        helper.make_node("Greater", ["x", "zero"], ["mask"]),
        helper.make_node("Where", ["mask", "x", "fill"], ["y"]),
    ]
    return make_model(nodes, inputs={"x": ["n", 4]}, outputs=["y"], stored={"zero": np.zeros((), np.float32)})


def test_an_infinite_mask_fill_is_meant() -> None:
    check_weights(_masked(float("-inf")))


def test_a_nan_mask_fill_is_not_meant() -> None:
    with pytest.raises(ModelError, match="not finite"):
        check_weights(_masked(float("nan")))


def test_constants_are_read_in_every_form() -> None:
    nodes = [
        helper.make_node("Constant", [], ["a"], value_int=3),
        helper.make_node("Constant", [], ["b"], value_floats=[1.0, 2.0]),
        helper.make_node("Constant", [], ["c"], value=helper.make_tensor("t", 7, [2], [5, 6])),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    found = constants(make_model(nodes, inputs={"x": [1]}, outputs=["y"]))
    assert {name: value.tolist() for name, value in found.items()} == {"a": 3, "b": [1.0, 2.0], "c": [5, 6]}


def test_subnormal_weights_are_counted_and_flushed(mlp: onnx.ModelProto) -> None:
    # Given as bits: other tests load libraries that make this CPU take 1e-40 for zero.
    spoiled = with_initializers(mlp, {"b": np.array([71362, 0, 0x3F800000], np.uint32).view(np.float32)})
    assert subnormal_share(spoiled) == pytest.approx(1 / 15)
    flushed = flush_subnormals(spoiled)
    assert initializers(flushed)["b"].tolist() == [0, 0, 1]
    assert subnormal_share(flushed) == 0


def test_a_lower_ir_lists_initializers_as_inputs(mlp: onnx.ModelProto) -> None:
    lowered = lower_ir(mlp, ir_version=3)
    assert lowered.ir_version == 3
    assert [value.name for value in lowered.graph.input] == ["x", "w", "b"]
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(run(lowered, x=x)[0], run(mlp, x=x)[0])


def test_a_lower_opset_is_kept_if_the_numbers_are_the_same(mlp: onnx.ModelProto) -> None:
    assert lower_ir(mlp, ir_version=8, opset=14).opset_import[0].version == 14


def test_a_lower_opset_that_cannot_express_the_model_is_refused() -> None:
    model = make_model([helper.make_node("Gelu", ["x"], ["y"])], inputs={"x": [1, 4]}, outputs=["y"])
    with pytest.raises(ModelError, match="opset 20"):
        lower_ir(model, ir_version=8, opset=13)


def test_a_type_the_older_ir_lacks_is_refused(mlp: onnx.ModelProto) -> None:
    mlp.graph.initializer.append(helper.make_tensor("small", TensorProto.INT4, [2], [1, 2]))
    with pytest.raises(ModelError, match="'small'"):
        lower_ir(mlp, ir_version=8)


def test_an_old_opset_is_raised_and_keeps_its_numbers() -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    old = helper.make_model(
        helper.make_graph([node], "g", [x], [y]), opset_imports=[helper.make_opsetid("", 12)], ir_version=7
    )
    raised = graph.raise_opset(old, opset=17)
    assert graph.standard_opset(raised) == 17
    assert graph.standard_opset(old) == 12
    assert graph.raise_opset(raised, opset=17) is raised
    onnx.checker.check_model(raised)


def test_an_opset_that_cannot_be_raised_is_refused() -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    node = helper.make_node("NoSuchOperator", ["x"], ["y"])
    odd = helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=[helper.make_opsetid("", 12)])
    with pytest.raises(ModelError, match="cannot be raised"):
        graph.raise_opset(odd, opset=17)
