"""Each clean-up removes what it is there for, changes no number, and leaves its input alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeexport.onnx_export.clean  # noqa: F401  the function `clean` hides the module of that name
from edgeexport import graph
from edgeexport.onnx_export import clean
from edgeexport.records.export import CleanRecord
from tests.needs import ROOT

RANDOM = np.random.default_rng(0)
SHAPE = ("batch", 2, 6, 6)


def weights(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def model_of(nodes: list[onnx.NodeProto], values: dict[str, np.ndarray], **kwargs: Any) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    model = helper.make_model(
        helper.make_graph(nodes, "made at /home/somebody", inputs, outputs, tensors, **kwargs),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, batch: int = 2) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = np.random.default_rng(1).standard_normal((batch, *SHAPE[1:])).astype(np.float32)
    return session.run(None, {"x": feed})[0]


def cleaned(model: onnx.ModelProto) -> tuple[onnx.ModelProto, CleanRecord]:
    """Clean, and check what must hold for every model: same numbers, input untouched, same bytes twice."""
    before = model.SerializeToString(deterministic=True)
    result, record = clean(model)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(result, full_check=True)
    np.testing.assert_allclose(run(result), run(model), rtol=1e-4, atol=1e-4)
    assert clean(model)[0].SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True)
    assert clean(result)[0].SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True)
    assert not [step for step in record.steps if step.left_out]
    return result, record


def conv(source: str, target: str, weight: str = "w", **attributes: Any) -> onnx.NodeProto:
    inputs = [source, weight, *attributes.pop("bias", [])]
    return helper.make_node("Conv", inputs, [target], name=attributes.pop("name", ""), **attributes)


def test_nodes_that_change_nothing_go_and_the_record_says_how_many() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Dropout", ["a"], ["b"]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[0, 1, 2, 3]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Identity", ["d"], ["y"]),
    ]
    result, record = cleaned(model_of(nodes, {}))
    assert graph.op_counts(result) == {"Relu": 1}
    assert record.notes[0] == "clean-up 'drop no-ops': 5 nodes became 2"


def test_batch_norm_folds_into_the_convolution_before_it() -> None:
    nodes = [conv("x", "a"), helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["y"], epsilon=1e-3)]
    values = {"w": weights(4, 2, 3, 3), "s": weights(4), "b": weights(4), "m": weights(4), "v": weights(4) ** 2 + 0.5}
    result, _ = cleaned(model_of(nodes, values))
    assert graph.op_counts(result) == {"Conv": 1}


def test_batch_norm_stays_where_the_convolution_has_another_reader() -> None:
    nodes = [
        conv("x", "a"),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"]),
        helper.make_node("Add", ["a", "n"], ["y"]),
    ]
    values = {"w": weights(4, 2, 3, 3), "s": weights(4), "b": weights(4), "m": weights(4), "v": weights(4) ** 2 + 0.5}
    result, _ = cleaned(model_of(nodes, values))
    assert graph.op_counts(result)["BatchNormalization"] == 1


def test_zero_padding_folds_into_the_convolution_and_other_padding_stays() -> None:
    pads = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    for filling, expected in ((0.0, {"Conv": 1}), (1.0, {"Pad": 1, "Conv": 1})):
        nodes = [helper.make_node("Pad", ["x", "p", "f"], ["a"]), conv("a", "y", strides=[2, 2])]
        values = {"w": weights(4, 2, 3, 3), "p": pads, "f": np.array(filling, np.float32)}
        assert graph.op_counts(cleaned(model_of(nodes, values))[0]) == expected


def test_auto_pad_becomes_explicit() -> None:
    result, _ = cleaned(model_of([conv("x", "y", auto_pad="SAME_UPPER", strides=[2, 2])], {"w": weights(4, 2, 3, 3)}))
    pads = {attribute.name: list(attribute.ints) for attribute in result.graph.node[0].attribute}["pads"]
    assert pads == [0, 0, 1, 1]


def test_what_depends_on_constants_only_is_computed() -> None:
    nodes = [
        helper.make_node(
            "ConstantOfShape", ["n"], ["zeros"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [2])
        ),
        helper.make_node("Mul", ["zeros", "k"], ["six"]),
        helper.make_node("Mul", ["x", "six"], ["y"]),
    ]
    result, _ = cleaned(model_of(nodes, {"n": np.array([1]), "k": np.array([3], np.float32)}))
    assert graph.op_counts(result) == {"Mul": 1}


def test_a_flatten_by_size_becomes_a_constant_shape_with_a_free_batch() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["g"]),
        helper.make_node("Unsqueeze", ["g", "axis"], ["u"]),
        helper.make_node("Concat", ["u", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    values = {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1])}
    model = model_of(nodes, values)
    result, _ = cleaned(model)
    assert graph.op_counts(result) == {"Reshape": 1}
    assert run(result, batch=5).shape == (5, 72)


def test_equal_weights_are_kept_once_but_every_operator_has_its_own_bias() -> None:
    weight, bias = weights(2, 2, 3, 3), weights(2)
    nodes = [
        conv("x", "a", "w1", bias=["b1"], pads=[1, 1, 1, 1]),
        conv("a", "y", "w2", bias=["b1"], pads=[1, 1, 1, 1]),
    ]
    result, _ = cleaned(model_of(nodes, {"w1": weight, "w2": weight, "b1": bias}))
    first, second = result.graph.node
    assert first.input[1] == second.input[1]
    assert first.input[2] != second.input[2]
    assert len(result.graph.initializer) == 3


def test_dead_nodes_and_their_weights_go() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), conv("x", "unused")]
    result, _ = cleaned(model_of(nodes, {"w": weights(4, 2, 3, 3)}))
    assert graph.op_counts(result) == {"Relu": 1}
    assert not result.graph.initializer


def test_activations_in_a_row_become_one() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Clip", ["a", "lo", "hi"], ["y"])]
    values = {"lo": np.array(-1, np.float32), "hi": np.array(0.5, np.float32)}
    assert len(cleaned(model_of(nodes, values))[0].graph.node) == 1


def test_nothing_of_the_makers_machine_remains() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], doc_string=f'File "{ROOT}/models.py"')
    helper.set_model_props(model := model_of([node], {}, doc_string=str(ROOT)), {"built": str(ROOT)})
    model.producer_version = f"{ROOT}"
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.stack_trace", str(ROOT)
    model.graph.input[0].doc_string = str(ROOT)
    text = cleaned(model)[0].SerializeToString()
    assert str(ROOT).encode() not in text
    assert b"somebody" not in text


def test_numbered_names_get_a_meaning_and_chosen_names_stay() -> None:
    nodes = [
        conv("x", "val_3", "features.0.weight", name="node_Conv_77"),
        conv("val_3", "mine", "onnx::Conv_9", name="my_conv_layer"),
        helper.make_node("Relu", ["mine"], ["y"]),
    ]
    values = {"features.0.weight": weights(2, 2, 3, 3), "onnx::Conv_9": weights(2, 2, 3, 3)}
    result, _ = cleaned(model_of(nodes, values))
    assert [node.name for node in result.graph.node] == ["features.0", "my_conv_layer", "relu"]
    assert [node.output[0] for node in result.graph.node] == ["features.0.out", "mine", "y"]
    assert result.graph.node[1].input[1] == "my_conv_layer.weight"


def test_sub_graphs_keep_their_meaning() -> None:
    def branch(name: str, op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["val_1", "k"], [f"{name}_out"])], name, [], [out])

    nodes = [
        helper.make_node("Relu", ["x"], ["val_1"]),
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "k"], ["condition"]),
        helper.make_node("If", ["condition"], ["y"], then_branch=branch("a", "Mul"), else_branch=branch("b", "Add")),
    ]
    result, _ = cleaned(model_of(nodes, {"k": np.array(3, np.float32)}))
    assert graph.op_counts(result)["If"] == 1


def test_a_clean_up_that_fails_is_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    def fails(model: Any) -> None:
        next(iter(model.graph)).name = "half done"
        raise ValueError("no idea")

    module = sys.modules["edgeexport.onnx_export.clean"]
    monkeypatch.setattr(module, "CLEANUPS", (("oops", fails), *module.CLEANUPS))
    model = model_of([helper.make_node("Relu", ["x"], ["y"], name="mine")], {})
    result, record = clean(model)
    assert record.notes == ("clean-up 'oops' was left out: ValueError: no idea",)
    assert result.graph.node[0].name == "mine"


def test_quantized_weights_stay_quantized() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"], axis=0),
        conv("x", "y"),
    ]
    values = {
        "q": RANDOM.integers(-127, 127, (4, 2, 3, 3)).astype(np.int8),
        "scale": np.full(4, 0.01, np.float32),
        "zero": np.zeros(4, np.int8),
    }
    result, _ = cleaned(model_of(nodes, values))
    assert graph.op_counts(result) == {"DequantizeLinear": 1, "Conv": 1}
