"""Fewer bytes for the same int8 model: equal answers, equal kernels, and every name that somebody looks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeexport import graph
from edgeexport.quantization import calibrate, plan_quantization, quantize
from edgeexport.quantization.compact import compact
from edgeexport.quantization.placement import WEIGHT_SUFFIX, prepared
from edgeexport.records.target import NumberFormat
from edgeexport.runtimes.ort import open_session
from tests.quantization.nets import integer_ops, pictures, small_mobilenet, small_resnet

NETS = {"resnet": small_resnet, "mobilenet": small_mobilenet}


def loose_and_compact(net: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """Return the fp32 model, its int8 file as onnxruntime's quantizer writes it, and the compact one."""
    path = NETS[net](folder / "net.onnx")
    ranges = calibrate(path, pictures(4), samples_digest="sha256:0")
    plan = plan_quantization(path, ranges, numbers=NumberFormat(activations="uint8"))
    quantize(path, plan, out=folder / "compact.onnx")
    monkeypatch.setattr("edgeexport.quantization.qdq.compact", lambda *_, **__: None)
    quantize(path, plan, out=folder / "loose.onnx")
    return path, folder / "loose.onnx", folder / "compact.onnx"


@pytest.mark.parametrize("net", NETS)
def test_the_answers_and_the_kernels_are_those_of_the_loose_file(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, loose, small = loose_and_compact(net, tmp_path, monkeypatch)
    feeds = pictures(1, shape=(8, 3, 16, 16))[0]
    for before, after in zip(
        open_session(loose).run(feeds).items(), open_session(small).run(feeds).items(), strict=True
    ):
        assert before[0] == after[0]
        assert np.array_equal(before[1], after[1])
    assert integer_ops(loose) == integer_ops(small)


def test_the_file_is_smaller_by_what_its_names_and_repeated_zero_points_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, loose, small = loose_and_compact("resnet", tmp_path, monkeypatch)
    weights = sum(value.nbytes for value in graph.initializers(graph.load(small)).values() if value.dtype == np.int8)
    over = [path.stat().st_size - weights for path in (loose, small)]
    assert over[1] < 0.55 * over[0]


@pytest.mark.parametrize("net", NETS)
def test_nodes_tensors_and_weights_of_the_model_keep_their_names(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, loose, small = loose_and_compact(net, tmp_path, monkeypatch)
    before, after, source = graph.load(loose), graph.load(small), prepared(graph.load(path))
    known = {node.name for node in source.graph.node}
    assert {node.name for node in after.graph.node} >= {node.name for node in before.graph.node} & known
    names = [node.name for node in after.graph.node]
    assert len(set(names)) == len(names)
    made = [name for node in after.graph.node for name in node.output]
    tensors = {name for node in source.graph.node for name in node.output}
    assert set(made) >= {name for node in before.graph.node for name in node.output} & tensors
    points = [node for node in after.graph.node if node.op_type == "QuantizeLinear"]
    assert {node.input[0] for node in points} <= tensors | {"image"}
    weights = {name + WEIGHT_SUFFIX for name in graph.initializers(source)}
    stored = graph.initializers(after)
    assert stored.keys() & weights == graph.initializers(before).keys() & weights


def test_a_short_name_that_the_model_uses_itself_is_passed_over(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Relu", ["image"], ["q0"], "q1"),
        onnx.helper.make_node("Neg", ["q0"], ["a_long_name"], "another"),
        onnx.helper.make_node("Neg", ["a_long_name"], ["out"], "kept"),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, 1, [2]) for name in ("image", "out")]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "net", ends[:1], ends[1:]))
    compact(model, tensors={"image", "q0", "out"}, named={"q1", "kept"})
    assert [(node.name, *node.input, *node.output) for node in model.graph.node] == [
        ("q1", "image", "q0"), ("q0", "q0", "q1"), ("kept", "q1", "out"),
    ]  # fmt: skip
    onnx.checker.check_model(model)


def test_attributes_that_say_the_default_go_and_others_stay(tmp_path: Path) -> None:
    conv = onnx.helper.make_node(
        "Conv", ["image", "w"], ["out"], group=1, strides=[2, 1], dilations=[1, 1], pads=[0, 0, 0, 0], auto_pad="NOTSET"
    )
    ends = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("image", "out")]
    weight = onnx.numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "w")
    model = onnx.helper.make_model(onnx.helper.make_graph([conv], "net", ends[:1], ends[1:], [weight]))
    compact(model, tensors={"image", "out", "w"}, named=set())
    assert [item.name for item in model.graph.node[0].attribute] == ["pads", "strides"]
