"""Signatures, shapes and the batch axis."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeexport.errors import ModelError
from edgeexport.graph import batch_refusal, complete_inputs, fix_inputs, infer_shapes, signature, tensor_types
from edgeexport.graph.shapes import with_input_shapes
from tests.graph.models import make_model


def reshaping(*target: int) -> onnx.ModelProto:
    """A model that reshapes (batch, 2, 2) to `target`."""
    nodes = [helper.make_node("Reshape", ["x", "to"], ["y"])]
    stored = {"to": np.array(target, np.int64)}
    return make_model(nodes, inputs={"x": ["n", 2, 2]}, outputs=["y"], stored=stored)


def test_a_signature_names_types_shapes_and_picture_layout() -> None:
    model = make_model(
        [helper.make_node("Relu", ["image"], ["y"]), helper.make_node("Relu", ["row"], ["z"])],
        inputs={"image": ["batch", 3, 8, 8], "row": ["batch", 5]},
        outputs=["y", "z"],
    )
    found = signature(model)
    assert [(t.name, t.dtype, t.shape, t.layout) for t in found.inputs] == [
        ("image", "float32", ("batch", 3, 8, 8), "NCHW"),
        ("row", "float32", ("batch", 5), "as-is"),
    ]
    assert [(t.name, t.layout) for t in found.outputs] == [("y", "as-is"), ("z", "as-is")]


def test_an_initializer_listed_as_input_is_not_in_the_signature(mlp: onnx.ModelProto) -> None:
    mlp.graph.input.append(helper.make_tensor_value_info("w", 1, [4, 3]))
    assert [tensor.name for tensor in signature(mlp).inputs] == ["x"]


def test_an_output_of_unknown_type_is_refused_by_name(mlp: onnx.ModelProto) -> None:
    mlp.graph.output.append(onnx.ValueInfoProto(name="mystery"))
    with pytest.raises(ModelError, match="mystery"):
        signature(mlp)


def test_fixed_inputs_fix_every_inferred_shape(mlp: onnx.ModelProto) -> None:
    fixed = fix_inputs(mlp, {"x": (3, 4)}, free_batch=False)
    assert signature(fixed).inputs[0].shape == (3, 4)
    assert signature(fixed).outputs[0].shape == (3, 3)
    assert [dim.dim_value for dim in tensor_types(fixed)["h"].type.tensor_type.shape.dim] == [3, 3]


def test_a_fixed_batch_is_freed_where_the_model_allows_it(mlp: onnx.ModelProto) -> None:
    fixed = fix_inputs(mlp, {"x": (1, 4)}, free_batch=False)
    freed = fix_inputs(fixed, {"x": (1, 4)}, free_batch=True)
    assert signature(freed).inputs[0].shape == ("batch", 4)
    assert signature(freed).outputs[0].shape == ("batch", 3)


@pytest.mark.parametrize("target", [(0, -1), (-1, 4), (0, 4)])
def test_a_reshape_that_follows_the_batch_stays_free(target: tuple[int, ...]) -> None:
    assert signature(fix_inputs(reshaping(*target), {"x": (1, 2, 2)}, free_batch=True)).inputs[0].shape[0] == "batch"


@pytest.mark.parametrize("target", [(1, 4), (1, -1)])
def test_a_built_in_batch_stays_fixed_with_a_reason(target: tuple[int, ...]) -> None:
    model = reshaping(*target)
    assert signature(fix_inputs(model, {"x": (1, 2, 2)}, free_batch=True)).inputs[0].shape == (1, 2, 2)
    freed = with_input_shapes(model, {"x": ("batch", 2, 2)})
    assert batch_refusal(freed, {"x": (1, 2, 2)})


def test_a_model_that_mixes_its_batch_is_not_freed() -> None:
    mean = helper.make_node("ReduceMean", ["x", "axis"], ["m"], keepdims=1)
    sub = helper.make_node("Sub", ["x", "m"], ["y"])
    model = make_model([mean, sub], inputs={"x": ["n", 4]}, outputs=["y"], stored={"axis": np.array([0])})
    reason = batch_refusal(with_input_shapes(model, {"x": ("batch", 4)}), {"x": (1, 4)})
    assert reason is not None
    assert "differs" in reason


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"x": (1, 5)}, r"\[1, 5\]"), ({"x": (1, 4, 1)}, r"\[1, 4, 1\]"), ({"z": (1, 4)}, "'z'"), ({}, r"\['x'\]"),
        ({"x": (0, 4)}, "below 1"), ({"x": (1, -4)}, "below 1"),
    ],
)  # fmt: skip
def test_shapes_that_contradict_the_model_are_refused(
    asked: dict[str, tuple[int, ...]], reason: str, mlp: onnx.ModelProto
) -> None:
    with pytest.raises(ModelError, match=reason):
        fix_inputs(mlp, asked, free_batch=True)


def test_inferring_shapes_leaves_the_model_alone(mlp: onnx.ModelProto) -> None:
    before = mlp.SerializeToString()
    assert "h" in {value.name for value in infer_shapes(mlp).graph.value_info}
    fix_inputs(mlp, {"x": (2, 4)}, free_batch=True)
    assert mlp.SerializeToString() == before


def test_inputs_that_are_not_given_have_the_models_own_shapes() -> None:
    nodes = [helper.make_node("Relu", ["image"], ["y"]), helper.make_node("Relu", ["row"], ["z"])]
    model = make_model(nodes, inputs={"image": ["n", 3, 8, 8], "row": [4, 5]}, outputs=["y", "z"])
    assert complete_inputs(model, {}) == {"image": (1, 3, 8, 8), "row": (4, 5)}
    assert complete_inputs(model, {"row": (1, 5)}) == {"image": (1, 3, 8, 8), "row": (1, 5)}


def test_an_open_axis_that_is_not_given_is_named_with_what_to_say() -> None:
    model = make_model(
        [helper.make_node("Relu", ["x"], ["y"])], inputs={"x": ["n", 3, "height", "width"]}, outputs=["y"]
    )
    with pytest.raises(ModelError, match=r"input 'x': the model leaves axis 2 \(height\) open") as caught:
        complete_inputs(model, {})
    assert caught.value.next_step == "say e.g. inputs = { x = [1, 3, 224, 224] }"
    assert complete_inputs(model, {"x": (1, 3, 32, 32)}) == {"x": (1, 3, 32, 32)}


def test_an_output_axis_that_inference_leaves_open_gets_the_size_it_really_has() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("NonZero", ["c"], ["n"]),
        helper.make_node("Shape", ["n"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["k"]),
        helper.make_node("Unsqueeze", ["k", "axis"], ["k1"]),
        helper.make_node("Concat", ["zero", "k1"], ["to"], axis=0),
        helper.make_node("Reshape", ["r", "to"], ["y"]),
    ]
    stored = {"c": np.ones(6, np.float32), "one": np.int64(1), "axis": np.int64([0]), "zero": np.int64([0])}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "h", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = fix_inputs(model, {"x": (1, 2, 3)}, free_batch=False)
    assert [dim.dim_value for dim in found.graph.output[0].type.tensor_type.shape.dim] == [1, 6]
