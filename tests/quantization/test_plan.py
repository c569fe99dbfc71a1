"""Planning: exact numbers that are always usable, and the right nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeexport import graph
from edgeexport.errors import DataError, ModelError, RequestError
from edgeexport.quantization import calibrate, node_names, plan_quantization
from edgeexport.quantization.plan import LEAST_SCALE, activation_point, weight_scales
from edgeexport.records.base import from_json, to_json
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.target import NumberFormat
from tests.quantization.nets import Net, pictures, small_mobilenet, small_resnet

U8 = NumberFormat(activations="uint8")
S8 = NumberFormat(activations="int8")
FORMATS = [U8, S8, NumberFormat(activations="int8", symmetric_activations=True)]


def planned(path: Path, numbers: NumberFormat = U8, **keep: Any) -> QuantizationPlan:
    symmetric = numbers.symmetric_activations
    ranges = calibrate(path, pictures(3), samples_digest="sha256:0", symmetric=symmetric)
    return plan_quantization(path, ranges, numbers=numbers, **keep)


def edited(path: Path, change: Any) -> Path:
    """Change the stored tensors of a model: name → array."""
    model = onnx.load(path)
    values = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    change(values)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("numbers", FORMATS)
@pytest.mark.parametrize("limits", [(0.0, 6.0), (-1.7, 2.3), (0.4, 2.0), (-5.0, -1.0), (-1e-7, 3e-6), (-1e30, 2e30)])
def test_activation_points_equal_onnxruntimes(numbers: NumberFormat, limits: tuple[float, float]) -> None:
    from onnxruntime.quantization.quant_utils import QuantType, compute_scale_zp, get_qmin_qmax_for_qType

    kind = QuantType.QUInt8 if numbers.activations == "uint8" else QuantType.QInt8
    symmetric = numbers.symmetric_activations
    least, most = get_qmin_qmax_for_qType(kind.tensor_type, symmetric=symmetric)
    low, high = np.float32(limits)
    zero_point, scale = compute_scale_zp(low, high, least, most, symmetric)
    point = activation_point(float(low), float(high), numbers=numbers)
    assert (np.float32(point.scale), point.zero_point) == (scale, zero_point)


@pytest.mark.parametrize("reduce_range", [False, True])
def test_weight_scales_equal_onnxruntimes(reduce_range: bool) -> None:
    from onnxruntime.quantization.quant_utils import QuantType, compute_data_quant_params

    values = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    ours = weight_scales(values, 0, reduce_range=reduce_range)
    for channel, scale in zip(values, ours, strict=True):
        expected = compute_data_quant_params(channel, QuantType.QInt8.tensor_type, True, reduce_range)[1]
        assert scale == expected


@pytest.mark.parametrize("numbers", FORMATS)
@pytest.mark.parametrize("limits", [(0.0, 0.0), (0.0, 1e-45), (-1e-38, 1e-38), (0.0, 3e38), (-3e38, 3e38)])
def test_every_scale_is_a_normal_float_above_zero(numbers: NumberFormat, limits: tuple[float, float]) -> None:
    point = activation_point(*limits, numbers=numbers)
    assert LEAST_SCALE <= point.scale < np.inf
    limits_of = np.iinfo(point.dtype)
    assert limits_of.min <= point.zero_point <= limits_of.max


def test_dead_and_tiny_channels_get_usable_scales(tmp_path: Path) -> None:
    def change(values: dict[str, np.ndarray]) -> None:
        values["w0"][0] = 0.0
        values["w0"][1] *= 1e-40
        values["w2"][:] = 0.0

    path = edited(small_resnet(tmp_path / "net.onnx"), change)
    plan = planned(path)
    stored = graph.initializers(graph.load(path))
    for name, point in plan.weights.items():
        assert all(LEAST_SCALE <= scale < np.inf for scale in point.scales), name
    assert plan.weights["w0"].scales[0] == max(plan.weights["w0"].scales)
    bias = np.abs(stored["w1"] / (plan.activations["image"].scale * np.array(plan.weights["w0"].scales)))
    assert bias.max() < 2**31


def test_the_plan_survives_json_bit_for_bit(tmp_path: Path) -> None:
    plan = planned(small_resnet(tmp_path / "net.onnx"))
    assert from_json(to_json(plan), QuantizationPlan, origin="test") == plan


def test_weights_are_per_channel_on_the_output_axis_or_per_tensor_when_asked(tmp_path: Path) -> None:
    path = small_resnet(tmp_path / "net.onnx")
    stored = graph.initializers(graph.load(path))
    for name, point in planned(path).weights.items():
        assert point.axis == 0
        assert len(point.scales) == stored[name].shape[0]
    per_tensor = planned(path, NumberFormat(activations="uint8", per_channel=False))
    assert {(point.axis, len(point.scales)) for point in per_tensor.weights.values()} == {(None, 1)}


def test_relu_and_relu6_have_a_point_after_them_only(tmp_path: Path) -> None:
    path = small_mobilenet(tmp_path / "net.onnx")
    plan = planned(path)
    for node in graph.load(path).graph.node:
        if node.op_type == "Clip":
            assert node.input[0] not in plan.activations
            assert plan.activations[node.output[0]].zero_point == 0


def test_logits_stay_in_float(tmp_path: Path) -> None:
    path = small_resnet(tmp_path / "net.onnx")
    assert graph.load(path).graph.output[0].name not in planned(path).activations


def test_nodes_after_the_last_weight_stay_in_float_with_the_reason(tmp_path: Path) -> None:
    net = Net()
    boxes, scores = net.conv("image", 3, 4), net.conv("image", 3, 4)
    both = net.put("Concat", boxes, net.put("Sigmoid", scores), axis=1)
    plan = planned(net.save(tmp_path / "net.onnx"))
    assert {boxes, scores} <= plan.activations.keys()
    assert both not in plan.activations
    assert set(plan.keep_float.values()) == {"no weighted node follows it"}


def test_a_clip_whose_bounds_leave_out_zero_stays(tmp_path: Path) -> None:
    net = Net()
    net.conv(net.clip(net.conv("image", 3, 8), 1.0, 6.0), 8, 8)
    plan = planned(net.save(tmp_path / "net.onnx"))
    assert any("do not include zero" in reason for reason in plan.keep_float.values())


def test_a_product_of_two_activations_stays_in_float(tmp_path: Path) -> None:
    net = Net()
    x = net.conv("image", 3, 8)
    product = net.put("MatMul", x, net.put("Transpose", x, perm=[0, 1, 3, 2]))
    net.conv(product, 8, 8)
    plan = planned(net.save(tmp_path / "net.onnx"))
    assert "its weight is not a constant" in plan.keep_float.values()


def test_a_node_the_caller_keeps_in_float_is_in_the_plan_with_its_reason(tmp_path: Path) -> None:
    path = small_resnet(tmp_path / "net.onnx")
    first = next(node.name for node in graph.load(path).graph.node if node.op_type == "Conv")
    plan = planned(path, keep_float={first: "sensitive"})
    assert plan.keep_float[first] == "sensitive"
    assert "w0" not in plan.weights


def test_an_unknown_node_to_keep_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="conv_00") as caught:
        planned(small_resnet(tmp_path / "net.onnx"), keep_float={"conv_00": "typo"})
    assert "conv_0" in caught.value.next_step


def test_ranges_of_another_model_are_refused(tmp_path: Path) -> None:
    one, other = small_resnet(tmp_path / "a.onnx"), small_mobilenet(tmp_path / "b.onnx")
    ranges = calibrate(one, pictures(1), samples_digest="sha256:0")
    with pytest.raises(DataError, match="belong to the model"):
        plan_quantization(other, ranges, numbers=U8)


def test_nodes_without_a_name_go_by_the_one_that_the_plan_gives_them(tmp_path: Path) -> None:
    path = small_resnet(tmp_path / "net.onnx")
    model = onnx.load(path)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    first.name = ""
    onnx.save(model, path)
    name = f"Conv:{first.output[0]}"
    assert name in node_names(path)
    assert planned(path, keep_float={name: "asked for"}).keep_float[name] == "asked for"


def test_a_missing_range_is_named(tmp_path: Path) -> None:
    path = small_resnet(tmp_path / "net.onnx")
    ranges = calibrate(path, pictures(1), samples_digest="sha256:0")
    left = {name: item for name, item in ranges.tensors.items() if name != "image"}
    with pytest.raises(DataError, match="nothing of 'image'"):
        plan_quantization(path, msgspec.structs.replace(ranges, tensors=left), numbers=U8)


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    net = Net()
    net.put("Relu", "image")
    with pytest.raises(ModelError, match="no node can be quantized"):
        planned(net.save(tmp_path / "net.onnx"))


def test_reduced_range_keeps_weights_within_seven_bits(tmp_path: Path) -> None:
    path = small_resnet(tmp_path / "net.onnx")
    plan = planned(path, NumberFormat(activations="uint8", reduce_range=True))
    stored = graph.initializers(graph.load(path))
    for name, point in plan.weights.items():
        scales = np.array(point.scales, np.float32).reshape(-1, *[1] * (stored[name].ndim - 1))
        assert np.abs(np.rint(stored[name] / scales)).max() <= 64
