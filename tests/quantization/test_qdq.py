"""Writing int8: the file holds the plan bit for bit, runs in integer kernels, and repeats byte for byte."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import helper

from edgeexport import graph
from edgeexport.errors import DataError, ModelError
from edgeexport.quantization import calibrate, plan_quantization, quantize
from edgeexport.quantization.qdq import prove, stored_points
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.target import NumberFormat
from edgeexport.runtimes.ort import open_session
from tests.quantization.nets import Net, integer_ops, pictures, small_mobilenet, small_resnet

U8 = NumberFormat(activations="uint8")
FORMATS = {
    "u8s8": U8,
    "u8s8-7bit": NumberFormat(activations="uint8", reduce_range=True),
    "u8s8-pairs": NumberFormat(activations="uint8", fit_pairs=True),
    "s8s8": NumberFormat(activations="int8"),
    "per-tensor": NumberFormat(activations="uint8", per_channel=False),
    "symmetric": NumberFormat(activations="int8", symmetric_activations=True),
}
NETS: dict[str, Any] = {"resnet": small_resnet, "mobilenet": small_mobilenet}


def made(path: Path, numbers: NumberFormat = U8, **keep: Any) -> tuple[QuantizationPlan, Path]:
    """Calibrate, plan and quantize the model at `path`."""
    symmetric = numbers.symmetric_activations
    ranges = calibrate(path, pictures(8), samples_digest="sha256:0", symmetric=symmetric)
    plan = plan_quantization(path, ranges, numbers=numbers, **keep)
    out = path.with_name("int8.onnx")
    quantize(path, plan, out=out)
    return plan, out


def sqnr_db(fp32: Path, int8: Path) -> float:
    batch = pictures(1, seed=99, shape=(32, 3, 16, 16))[0]
    (real,), (ours,) = (open_session(path).run(batch).values() for path in (fp32, int8))
    return float(10 * np.log10(np.square(real).sum() / np.square(real - ours).sum()))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("numbers", FORMATS)
def test_the_file_holds_every_number_of_the_plan_bit_for_bit(net: str, numbers: str, tmp_path: Path) -> None:
    plan, out = made(NETS[net](tmp_path / "net.onnx"), FORMATS[numbers])
    found = stored_points(graph.load(out))
    assert found.keys() == plan.activations.keys() | plan.weights.keys()
    for name, point in plan.activations.items():
        scale, zero_point = (item.item() for item in found[name])
        assert (scale, zero_point) == (point.scale, point.zero_point), name
        assert found[name][1].dtype == point.dtype
    for name, weight in plan.weights.items():
        assert tuple(found[name][0].tolist()) == weight.scales, name


@pytest.mark.parametrize("numbers", ["u8s8", "u8s8-7bit", "u8s8-pairs", "per-tensor"])
def test_int8_weights_are_the_rounded_weights(numbers: str, tmp_path: Path) -> None:
    path = small_resnet(tmp_path / "net.onnx")
    plan, out = made(path, FORMATS[numbers])
    real, stored = graph.initializers(graph.load(path)), graph.initializers(graph.load(out))
    for name, point in plan.weights.items():
        shape = [-1 if axis == point.axis else 1 for axis in range(real[name].ndim)]
        scales = np.array(point.scales, np.float32).reshape(shape)
        expected = np.clip(np.rint(real[name] / scales), -128, 127).astype(np.int8)
        assert np.array_equal(stored[f"{name}_quantized"], expected), name


def test_biases_are_int32_in_steps_of_input_times_weight(tmp_path: Path) -> None:
    path = small_resnet(tmp_path / "net.onnx")
    plan, out = made(path)
    stored = graph.initializers(graph.load(out))
    steps = np.float32(plan.activations["image"].scale) * np.array(plan.weights["w0"].scales, np.float32)
    bias = graph.initializers(graph.load(path))["w1"]
    assert stored["w1_quantized"].dtype == np.int32
    assert np.abs(stored["w1_quantized"] * steps.astype(np.float64) - bias).max() <= 0.51 * steps.max()


@pytest.mark.parametrize("net", NETS)
def test_on_x86_every_convolution_and_the_head_run_in_integer_kernels(net: str, tmp_path: Path) -> None:
    path = NETS[net](tmp_path / "net.onnx")
    convolutions = graph.op_counts(graph.load(path))["Conv"]
    ops = integer_ops(made(path)[1])
    assert ops["QLinearConv"] == convolutions
    assert ops["QGemm"] == 1
    assert not ops.keys() & {"Conv", "Gemm", "Relu", "Clip", "Add", "DequantizeLinear"}


@pytest.mark.parametrize("net", NETS)
def test_signed_activations_fuse_alike_where_the_kernels_take_them(net: str, tmp_path: Path) -> None:
    path = NETS[net](tmp_path / "net.onnx")
    ops = integer_ops(made(path, FORMATS["s8s8"])[1], session__qdqisint8allowed="1")
    assert ops["QLinearConv"] == graph.op_counts(graph.load(path))["Conv"]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("numbers", FORMATS)
def test_int8_outputs_are_close_to_float_ones(net: str, numbers: str, tmp_path: Path) -> None:
    path = NETS[net](tmp_path / "net.onnx")
    assert sqnr_db(path, made(path, FORMATS[numbers])[1]) > 15


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_every_method_gives_a_usable_model(method: str, tmp_path: Path) -> None:
    path = small_mobilenet(tmp_path / "net.onnx")
    ranges = calibrate(path, pictures(8), method=method, samples_digest="sha256:0")
    quantize(path, plan_quantization(path, ranges, numbers=U8), out=tmp_path / "int8.onnx")
    assert sqnr_db(path, tmp_path / "int8.onnx") > 12


def test_matmul_and_shared_scales_quantize_too(tmp_path: Path) -> None:
    net = Net()
    x = net.put("MaxPool", net.put("Relu", net.conv("image", 3, 8)), kernel_shape=[2, 2], strides=[2, 2])
    x = net.put("Concat", net.conv(x, 8, 8), net.put("Sigmoid", net.conv(x, 8, 8)), axis=1)
    size = net.store(np.array([1.0, 1.0, 2.0, 2.0], np.float32))
    x = net.put("Resize", x, "", size, mode="nearest")
    x = net.put("Flatten", net.put("GlobalAveragePool", net.conv(x, 16, 16)))
    weight = net.store(net.random.standard_normal((16, 5)).astype(np.float32))
    net.put("MatMul", x, weight)
    path = net.save(tmp_path / "net.onnx")
    plan, out = made(path)
    assert plan.weights[weight].axis == 1
    assert sqnr_db(path, out) > 15
    ops = integer_ops(out)
    assert ops["QLinearConv"] == 4
    assert not ops.keys() & {"Conv", "MatMul", "Concat", "Sigmoid"}


def test_dead_channels_and_silent_tensors_still_run(tmp_path: Path) -> None:
    net = Net()
    dead = net.put("Mul", net.put("Relu", net.conv("image", 3, 8)), net.store(np.float32(0.0)))
    net.conv(dead, 8, 8)
    net.stored[0].raw_data = np.zeros((8, 3, 3, 3), np.float32).tobytes()
    path = net.save(tmp_path / "net.onnx")
    _, out = made(path)
    values = open_session(out).run(pictures(1)[0])
    assert all(np.isfinite(value).all() for value in values.values())
    assert sqnr_db(path, out) > 15


def test_a_node_kept_in_float_stays_a_float_node(tmp_path: Path) -> None:
    path = small_resnet(tmp_path / "net.onnx")
    first = next(node.name for node in graph.load(path).graph.node if node.op_type == "Conv")
    plan, out = made(path, keep_float={first: "sensitive"})
    assert first in plan.keep_float
    assert "w0" in graph.initializers(graph.load(out))


def test_adds_left_in_float_pass_on_what_they_computed_unrounded(tmp_path: Path) -> None:
    path = small_mobilenet(tmp_path / "net.onnx")
    first, second = (node for node in graph.load(path).graph.node if node.op_type == "Add")
    _, whole = made(path)
    before = sqnr_db(path, whole)
    plan, out = made(path, keep_float={first.name: "sensitive", second.name: "sensitive"})
    readers = [node for node in graph.load(out).graph.node if first.output[0] in node.input]
    assert sorted(node.op_type for node in readers) == ["Add", "QuantizeLinear"]
    assert first.output[0] in plan.activations
    assert sqnr_db(path, out) > before


def test_an_output_that_nobody_wants_is_taken_for_nothing_else(tmp_path: Path) -> None:
    """The first output of this LSTM is called "", as is its fifth input."""
    net = Net()
    features = net.put("Relu", net.conv("image", 3, 8))
    steps = net.put("Squeeze", net.put("ReduceMean", features, net.store(np.array([3]))), net.store(np.array([3])))
    steps = net.put("Transpose", steps, perm=[2, 0, 1])
    gates = [net.store(net.random.standard_normal((1, 16, size)).astype(np.float32)) for size in (8, 4)]
    start = net.put("ReduceMean", steps, net.store(np.array([0, 2])))
    start = net.put("Tile", start, net.store(np.array([1, 1, 4])))
    inputs = [steps, *gates, "", "", start, start]
    net.nodes.append(helper.make_node("LSTM", inputs, ["", "last"], "memory", hidden_size=4))
    net.gemm(net.put("Squeeze", "last", net.store(np.array([0]))), 4, 10)
    path = net.save(tmp_path / "net.onnx")
    _, out = made(path)
    written = next(node for node in graph.load(out).graph.node if node.op_type == "LSTM")
    assert list(written.input) == inputs
    assert sqnr_db(path, out) > 20


def test_what_an_integer_kernel_wrote_is_read_rounded_by_an_add_in_float(tmp_path: Path) -> None:
    path = small_mobilenet(tmp_path / "net.onnx")
    first = next(node for node in graph.load(path).graph.node if node.op_type == "Add")
    _, out = made(path, keep_float={first.name: "sensitive"})
    written = {name: node.op_type for node in graph.load(out).graph.node for name in node.output}
    added = next(node for node in graph.load(out).graph.node if node.name == first.name)
    assert [written[name] for name in added.input] == ["DequantizeLinear"] * 2


def test_an_add_in_float_reads_the_sums_of_pointwise_convolutions_where_the_format_has_them(tmp_path: Path) -> None:
    path = small_mobilenet(tmp_path / "net.onnx")
    adds = {node.name: "sensitive" for node in graph.load(path).graph.node if node.op_type == "Add"}
    rounded, out = made(path, keep_float=adds)
    before = sqnr_db(path, out)
    plan, out = made(path, msgspec.structs.replace(U8, float_sums=True), keep_float=adds)
    written = {name: node for node in graph.load(out).graph.node for name in node.output}
    makers = [written[name] for node in graph.load(out).graph.node if node.name in adds for name in node.input]
    sums = [node.output[0] for node in makers if node.op_type == "Conv"]
    assert len(sums) == 2
    assert set(sums) == rounded.activations.keys() - plan.activations.keys()
    assert sqnr_db(path, out) > before


def test_sums_that_integers_read_too_are_rounded_for_these_alone(tmp_path: Path) -> None:
    net = Net()
    first = net.conv(net.put("Relu", net.conv("image", 3, 8)), 8, 8, size=1)
    added = net.put("Add", net.conv(net.put("Relu", net.conv(first, 8, 16)), 16, 8, size=1), first)
    net.conv(added, 8, 4)
    path = net.save(tmp_path / "net.onnx")
    name = next(node.name for node in net.nodes if node.op_type == "Add")
    plan, out = made(path, msgspec.structs.replace(U8, float_sums=True), keep_float={name: "sensitive"})
    assert first in plan.activations
    readers = [node for node in graph.load(out).graph.node if first in node.input]
    assert sorted(node.op_type for node in readers) == ["Add", "QuantizeLinear"]


def test_sums_whose_clip_is_left_to_their_point_are_read_rounded(tmp_path: Path) -> None:
    net = Net()
    clipped = net.clip(net.conv(net.put("Relu", net.conv("image", 3, 8)), 8, 8, size=1), 0.0, 0.5)
    net.conv(net.put("Add", clipped, net.put("Relu", net.conv("image", 3, 8))), 8, 4)
    path = net.save(tmp_path / "net.onnx")
    name = next(node.name for node in net.nodes if node.op_type == "Add")
    _, out = made(path, msgspec.structs.replace(U8, float_sums=True), keep_float={name: "sensitive"})
    written = {name: node.op_type for node in graph.load(out).graph.node for name in node.output}
    added = next(node for node in graph.load(out).graph.node if node.op_type == "Add")
    assert [written[name] for name in added.input] == ["DequantizeLinear"] * 2
    assert sqnr_db(path, out) > 20


def test_unnamed_nodes_and_row_vector_biases_are_taken(tmp_path: Path) -> None:
    net = Net()
    x = net.put("Flatten", net.put("GlobalAveragePool", net.conv("image", 3, 8)))
    net.gemm(net.put("Relu", net.gemm(x, 8, 6)), 6, 4)
    for tensor in net.stored:
        if list(tensor.dims) == [6]:
            tensor.dims[:] = [1, 6]
    for node in net.nodes:
        node.name = ""
    path = net.save(tmp_path / "net.onnx")
    _, out = made(path)
    assert integer_ops(out)["QGemm"] == 2
    assert sqnr_db(path, out) > 15


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    path = small_mobilenet(tmp_path / "net.onnx")
    plan, out = made(path)
    quantize(path, plan, out=tmp_path / "again.onnx")
    assert out.read_bytes() == (tmp_path / "again.onnx").read_bytes()


def test_no_temporary_file_leaves_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tmp_path / "system"
    system.mkdir()
    system.chmod(0o500)
    monkeypatch.setenv("TMPDIR", str(system))
    monkeypatch.setattr(tempfile, "tempdir", None)
    work = tmp_path / "work"
    work.mkdir()
    made(small_resnet(work / "net.onnx"))
    assert sorted(path.name for path in work.iterdir()) == ["int8.onnx", "net.onnx"]
    assert not list(system.iterdir())


def test_a_plan_of_another_model_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    plan, _ = made(small_resnet(tmp_path / "net.onnx"))
    other = small_mobilenet(tmp_path / "other.onnx")
    with pytest.raises(DataError, match="the plan belongs to the model"):
        quantize(other, plan, out=tmp_path / "never.onnx")
    assert not (tmp_path / "never.onnx").exists()


def test_a_file_that_differs_from_its_plan_is_found(tmp_path: Path) -> None:
    plan, out = made(small_resnet(tmp_path / "net.onnx"))
    model = graph.load(out)
    prove(model, plan)
    name, point = next(iter(plan.activations.items()))
    off = float(np.nextafter(np.float32(point.scale), np.float32(1)))
    changed = {**plan.activations, name: msgspec.structs.replace(point, scale=off)}
    with pytest.raises(ModelError, match="has scale"):
        prove(model, msgspec.structs.replace(plan, activations=changed))
    del changed[name]
    with pytest.raises(ModelError, match="beyond it"):
        prove(model, msgspec.structs.replace(plan, activations=changed))


def test_weights_that_do_not_fit_16_bit_sums_are_found_where_the_plan_asks_for_it(tmp_path: Path) -> None:
    plan, out = made(small_resnet(tmp_path / "net.onnx"))
    asked = msgspec.structs.replace(plan, numbers=FORMATS["u8s8-pairs"])
    with pytest.raises(ModelError, match="could saturate on AVX2"):
        prove(graph.load(out), asked)
    fitting, fits = made(small_resnet(tmp_path / "net.onnx"), FORMATS["u8s8-pairs"])
    prove(graph.load(fits), fitting)
