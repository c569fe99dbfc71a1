"""Sensitivity: the layer that int8 hurts is found, priced, and left in float first; heads are recognised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeexport import graph, quantization
from edgeexport.errors import DataError
from edgeexport.quantization.heads import head_floats
from edgeexport.quantization.placement import choose, prepared
from edgeexport.quantization.sensitivity import choose_float, layer_groups, measured_wins, sensitivity
from edgeexport.records.sensitivity import LayerSensitivity, Sensitivity
from edgeexport.records.target import NumberFormat, load_target
from edgeexport.runtimes.ort import open_session, target_options
from edgeexport.runtimes.protocol import Conversion
from tests.needs import need
from tests.quantization.nets import Net, pictures, small_resnet

need("ort")
NUMBERS = NumberFormat(activations="uint8", per_channel=False)


def planned(path: Path, *, keep_float=None):
    ranges = quantization.calibrate(path, pictures(8), samples_digest="")
    return quantization.plan_quantization(path, ranges, numbers=NUMBERS, keep_float=keep_float), ranges


def spoilt(path: Path) -> str:
    """Write a ResNet in which one convolution has a channel of giant weights that never fires: one scale for all."""
    model = onnx.load(small_resnet(path))
    node = [node for node in model.graph.node if node.op_type == "Conv"][3]
    for index, change in ((1, lambda old: old * 50.0), (2, lambda old: old - 2000.0)):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[index])
        value = onnx.numpy_helper.to_array(tensor).copy()
        value[0] = change(value[0])
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    onnx.save(model, path)
    return node.name


def sqnr(path: Path, keep_float, folder: Path) -> float:
    plan, _ = planned(path, keep_float=keep_float)
    quantization.quantize(path, plan, out=folder / "int8.onnx")
    left, right = open_session(path), open_session(folder / "int8.onnx")
    pairs = [(next(iter(left.run(feeds).values())), next(iter(right.run(feeds).values()))) for feeds in pictures(8)]
    noise = sum(float(((one - other) ** 2).sum()) for one, other in pairs)
    return 10 * np.log10(sum(float((one**2).sum()) for one, _ in pairs) / noise)


def test_the_layer_that_int8_hurts_is_first_in_order_and_leaving_it_in_float_helps(tmp_path):
    path = tmp_path / "net.onnx"
    bad = spoilt(path)
    plan, _ = planned(path)
    found = sensitivity(path, plan, samples=pictures(8))
    assert bad in min(found.layers, key=lambda layer: layer.sqnr_db).nodes
    kept = choose_float(found)
    assert next(name for name in kept if name.startswith("conv")) == bad
    assert "million MACs (predicted)" in kept[bad]
    layer = {name: reason for name, reason in kept.items() if reason == kept[bad]}
    assert len(layer) == 2  # its Relu goes with it
    assert sqnr(path, layer, tmp_path) > sqnr(path, {}, tmp_path) + 3


def test_a_layer_left_in_float_says_in_its_options_that_onnxruntime_must_leave_it_so(tmp_path):
    path = tmp_path / "net.onnx"
    bad = spoilt(path)
    options = []
    for kept in ({}, {bad: "asked for"}):
        plan, ranges = planned(path, keep_float=kept)
        quantization.quantize(path, plan, out=tmp_path / "int8.onnx")
        target = load_target("linux-x86_64-vnni")
        job = Conversion(path, tmp_path / "int8.onnx", ranges, plan, lambda: iter(pictures(1)), target)
        options.append(target_options(job)["config_entries"])
    assert options == [{}, {"optimization.disable_specified_optimizers": "WeightBiasQuantization"}]


def test_every_int8_node_stands_in_one_group_and_a_relu_goes_with_its_maker(tmp_path):
    path = small_resnet(tmp_path / "net.onnx")
    plan, _ = planned(path)
    model = prepared(graph.load(path))
    groups = layer_groups(model, plan)
    names = [node.name for group in groups for node in group]
    assert sorted(names) == sorted(choose(model, plan.keep_float)[0])
    assert all(group[0].op_type != "Relu" for group in groups)
    assert [node.op_type for node in groups[0]] == ["Conv", "Relu"]


def test_a_metric_is_asked_once_a_layer_and_decides_the_order(tmp_path):
    path = small_resnet(tmp_path / "net.onnx")
    plan, _ = planned(path)
    scores = iter([90.0, *([89.5] * 3), 80.0, *([89.9] * 50)])
    found = sensitivity(path, plan, samples=pictures(2), metric=lambda _: next(scores))
    assert [layer.metric_drop for layer in found.layers][:4] == [0.5, 0.5, 0.5, 10.0]
    worst = found.layers[3]
    even = Sensitivity("", 1, "measured ms", tuple(one_ms(layer) for layer in found.layers))
    assert next(iter(choose_float(even))) == worst.nodes[0]


def one_ms(layer: LayerSensitivity) -> LayerSensitivity:
    return LayerSensitivity(layer.nodes, layer.op, layer.sqnr_db, 1.0, layer.metric_drop)


def test_a_layer_is_priced_by_what_it_wins_and_no_more_is_given_back_than_allowed():
    layers = [
        LayerSensitivity(("heavy",), "Conv", 20.0, 8.0),
        LayerSensitivity(("light",), "Conv", 23.0, 1.0),
        LayerSensitivity(("fine",), "Conv", 60.0, 1.0),
    ]
    found = Sensitivity("", 1, "measured ms", tuple(layers))
    assert list(choose_float(found, share=1.0)) == ["light", "heavy", "fine"]
    assert list(choose_float(found, share=0.25)) == ["light", "fine"]
    assert list(choose_float(found, share=0.25, least_loss=1e-5)) == ["light"]
    assert "23.0 dB, for 1 of 10 ms won" in choose_float(found)["light"]


def test_wins_are_measured_for_the_nodes_of_the_file(tmp_path):
    path = small_resnet(tmp_path / "net.onnx")
    plan, _ = planned(path)
    quantization.quantize(path, plan, out=tmp_path / "int8.onnx")
    wins = measured_wins(path, tmp_path / "int8.onnx", feeds=pictures(1))
    convolutions = {node.name for node in graph.load(path).graph.node if node.op_type == "Conv"}
    assert len(convolutions & wins.keys()) >= len(convolutions) - 1
    found = sensitivity(path, plan, samples=pictures(2), won_ms=wins)
    assert found.cost == "measured ms"


def test_no_samples_is_an_error(tmp_path):
    path = small_resnet(tmp_path / "net.onnx")
    with pytest.raises(DataError, match="no samples"):
        sensitivity(path, planned(path)[0], samples=[])


def detector(path: Path, *, reach: float) -> Path:
    """Write a backbone with two heads, boxes up to `reach` and scores up to 1, joined, then decoded by a fixed 1×1."""
    net = Net(seed=2)
    x = net.put("Relu", net.conv(net.put("Relu", net.conv("image", 3, 16)), 16, 16))
    boxes = net.put("Mul", net.put("Sigmoid", net.conv(x, 16, 4, size=1)), net.store(np.float32(reach)))
    scores = net.put("Sigmoid", net.conv(x, 16, 4, size=1))
    joined = net.put("Concat", boxes, scores, axis=1)
    net.put("Conv", joined, net.store(np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1)), kernel_shape=[1, 1])
    last = net.nodes[-1].output[0]
    values = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ("batch", 3, 16, 16)),
        helper.make_tensor_value_info(last, TensorProto.FLOAT, ("batch", 8, 16, 16)),
    ]
    built = helper.make_graph(net.nodes, "net", values[:1], values[1:], net.stored)
    onnx.save(helper.make_model(built, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def score_error(path: Path, keep_float, folder: Path) -> float:
    plan, _ = planned(path, keep_float=keep_float)
    quantization.quantize(path, plan, out=folder / "int8.onnx")
    left, right = open_session(path), open_session(folder / "int8.onnx")
    answers = [[next(iter(each.run(feeds).values()))[:, 4:] for each in (left, right)] for feeds in pictures(4)]
    return max(float(np.abs(one - other).max()) for one, other in answers)


def test_a_head_with_boxes_and_scores_in_one_concat_is_found_and_its_scores_survive(tmp_path):
    path = detector(tmp_path / "net.onnx", reach=640.0)
    _, ranges = planned(path)
    kept = head_floats(path, ranges)
    assert sorted(name.split("_")[0] for name in kept) == ["concat", "conv"]
    assert "with one int8 scale" in next(iter(kept.values()))
    assert score_error(path, {}, tmp_path) > 0.4
    assert score_error(path, kept, tmp_path) < 0.05


def test_branches_of_like_ranges_are_no_head(tmp_path):
    path = detector(tmp_path / "net.onnx", reach=4.0)
    assert not head_floats(path, planned(path)[1])
