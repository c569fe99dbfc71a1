"""The audit: what runs in integers, every float island with its cause, and red for graphs that do not fuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgeexport import graph
from edgeexport.devices import emulated
from edgeexport.errors import CorruptFile, DataError
from edgeexport.quantization import calibrate, plan_quantization, quantize
from edgeexport.quantization.audit import audit
from edgeexport.records.audit import Audit
from edgeexport.records.base import file_digest, from_json, to_json
from edgeexport.records.target import NumberFormat
from edgeexport.validation.measure import Subject, run_on_device
from tests.needs import need
from tests.quantization.nets import Net, pictures, small_mobilenet, small_resnet
from tests.quantization.real_nets import exported

U8, S8 = NumberFormat(activations="uint8"), NumberFormat(activations="int8")
ON_X86 = {"config_entries": {"session.qdqisint8allowed": "0"}}
ON_ARM = {"config_entries": {"session.qdqisint8allowed": "1"}}
NETS: dict[str, Any] = {"resnet": small_resnet, "mobilenet": small_mobilenet}


def int8(path: Path, numbers: NumberFormat = U8) -> Path:
    """The int8 form of the model at `path`, calibrated on noise."""
    ranges = calibrate(path, pictures(4), samples_digest="sha256:0")
    out = path.with_name("int8.onnx")
    quantize(path, plan_quantization(path, ranges, numbers=numbers), out=out)
    return out


def as_it_runs(path: Path, options: dict[str, Any] = ON_X86) -> Audit:
    return audit(path, options=options, profile=False)


@pytest.mark.parametrize("net", NETS)
def test_in_u8s8_all_is_in_integers_and_nothing_is_lost(net: str, tmp_path: Path) -> None:
    path = NETS[net](tmp_path / "net.onnx")
    found = as_it_runs(int8(path))
    assert found.integer_convolutions == found.convolutions == graph.op_counts(graph.load(path))["Conv"]
    assert found.integer_weighted == found.weighted == found.convolutions + 1
    assert not found.lost
    assert {island.place for island in found.islands} <= {"entry", "exit"}
    assert found.counts["QLinearConv"] == found.convolutions


def test_s8s8_on_x86_loses_the_residual_blocks_and_says_why(tmp_path: Path) -> None:
    path = int8(small_resnet(tmp_path / "net.onnx"), S8)
    found = as_it_runs(path)
    assert found.integer_convolutions < found.convolutions
    causes = [text for island in found.lost for text in island.causes]
    assert any(text.startswith("conv_") and "S8S8 on x86-64" in text and "has 2" in text for text in causes)
    assert as_it_runs(path, ON_ARM).integer_convolutions == found.convolutions


def surgeon(path: Path, cut: Callable[[onnx.ModelProto], None]) -> Path:
    """Change an int8 file by hand."""
    model = graph.load(path)
    cut(model)
    out = path.with_name("planted.onnx")
    graph.save(model, out)
    return out


def behind_first_convolution(model: onnx.ModelProto, op: str, *constants: float) -> None:
    """Put an operator between the first convolution and its QuantizeLinear."""
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    names = [f"planted_{index}" for index in range(len(constants))]
    stored = zip(names, constants, strict=True)
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value, np.float32), name) for name, value in stored)
    made = helper.make_node(op, ["before_planted", *names], [conv.output[0]], "planted")
    conv.output[0] = "before_planted"
    model.graph.node.insert(list(model.graph.node).index(conv) + 1, made)


def computed_bias(model: onnx.ModelProto) -> None:
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    picture = model.graph.input[0].name
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(16, np.float32), "sixteen"))
    made = [
        helper.make_node("ReduceMean", [picture], ["mean"], "mean", keepdims=0),
        helper.make_node("Add", ["mean", "sixteen"], ["computed"], "computed"),
    ]
    for node in reversed(made):
        model.graph.node.insert(0, node)
    conv.input[2] = "computed"


def second_reader(model: onnx.ModelProto) -> None:
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    model.graph.node.append(helper.make_node("ReduceMax", [conv.output[0]], ["peak"], "peak", keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("peak", onnx.TensorProto.FLOAT, []))


PLANTED: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "a Clip with other bounds": (
        lambda model: behind_first_convolution(model, "Clip", 0.1, 0.2),
        "do not match the range",
    ),
    "a Tanh": (lambda model: behind_first_convolution(model, "Tanh"), "Tanh sits between Conv and a QuantizeLinear"),
    "a computed bias": (computed_bias, "is not a constant"),
    "a second reader": (second_reader, "has 2 readers"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_defect_is_found_with_its_cause(what: str, tmp_path: Path) -> None:
    cut, words = PLANTED[what]
    found = as_it_runs(surgeon(int8(small_resnet(tmp_path / "net.onnx")), cut))
    assert found.integer_convolutions == found.convolutions - 1
    causes = [text for island in found.lost for text in island.causes]
    assert any(text.startswith("conv_0: ") and words in text for text in causes), causes


def test_a_second_point_on_one_tensor_is_a_leftover_pair(tmp_path: Path) -> None:
    def twice(model: onnx.ModelProto) -> None:
        read = [name for node in model.graph.node for name in node.input]
        back = next(node for node in model.graph.node if read.count(node.output[0]) == 2)
        first = next(node for node in model.graph.node if node.output[0] == back.input[0])
        model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "other_scale"))
        inputs = ["other_scale", first.input[2]]
        made = [
            helper.make_node("QuantizeLinear", [back.output[0], *inputs], ["again"], "again"),
            helper.make_node("DequantizeLinear", ["again", *inputs], ["twice"], "twice"),
        ]
        reader = next(node for node in model.graph.node if back.output[0] in node.input)
        reader.input[:] = ["twice" if name == back.output[0] else name for name in reader.input]
        at = list(model.graph.node).index(back) + 1
        for node in reversed(made):
            model.graph.node.insert(at, node)

    path = int8(small_mobilenet(tmp_path / "net.onnx"))
    found = as_it_runs(surgeon(path, twice))
    (pair,) = [island for island in found.lost if island.place == "requantized"]
    assert "two points" in pair.causes[0]


def test_hardswish_and_a_bilinear_resize_are_islands_traced_to_their_own_nodes(tmp_path: Path) -> None:
    net = Net()
    x = net.put("HardSwish", net.conv("image", 3, 8))
    size = net.store(np.array([1.0, 1.0, 2.0, 2.0], np.float32))
    net.conv(net.put("Resize", net.conv(x, 8, 8), "", size, mode="linear"), 8, 8)
    found = as_it_runs(int8(net.save(tmp_path / "net.onnx")))
    assert {island.origin for island in found.lost} == {("hardswish_1",), ("resize_3",)}
    told = " ".join(text for island in found.lost for text in island.causes)
    assert "it becomes HardSigmoid and Mul in float" in told
    assert "Resize in mode linear" in told


def test_costs_are_medians_that_add_up(tmp_path: Path) -> None:
    found = audit(int8(small_resnet(tmp_path / "net.onnx")), feeds=pictures(2), runs=5)
    assert found.runs == 5
    assert found.us == pytest.approx(sum(kernel.us or 0.0 for kernel in found.kernels))
    assert sum(kernel.share or 0.0 for kernel in found.kernels) == pytest.approx(1.0)
    assert sum(kernel.us or 0.0 for kernel in found.kernels if kernel.op == "QLinearConv") > 0
    assert from_json(to_json(found), Audit, origin="record") == found


def test_without_profiling_there_are_reasons_in_place_of_costs(tmp_path: Path) -> None:
    path = int8(small_resnet(tmp_path / "net.onnx"))
    found = as_it_runs(path)
    assert found.us is None
    assert found.unmeasured == "not asked for"
    assert all(kernel.us is None for kernel in found.kernels)
    with pytest.raises(DataError, match="needs feeds"):
        audit(path)


def test_a_float_model_has_no_islands(tmp_path: Path) -> None:
    found = as_it_runs(small_resnet(tmp_path / "net.onnx"))
    assert not found.islands
    assert found.integer_weighted == 0
    assert found.weighted > 0


def test_dynamic_int8_counts_as_integers(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    net = Net()
    x = net.put("Flatten", net.put("GlobalAveragePool", net.conv("image", 3, 8)))
    x = net.put("Relu", net.put("MatMul", x, net.store(net.random.standard_normal((8, 8)).astype(np.float32))))
    net.put("MatMul", x, net.store(net.random.standard_normal((8, 4)).astype(np.float32)))
    quantize_dynamic(net.save(tmp_path / "net.onnx"), tmp_path / "dynamic.onnx", op_types_to_quantize=["MatMul"])
    found = as_it_runs(tmp_path / "dynamic.onnx")
    assert (found.weighted, found.integer_weighted) == (3, 2)
    assert found.convolutions == 1
    assert any(island.origin == ("relu_4",) for island in found.lost)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(CorruptFile):
        as_it_runs(path)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(("name", "convolutions"), [("resnet56", 55), ("lite0", 49)])
def test_all_convolutions_of_real_networks_run_in_integers(
    name: str, convolutions: int, real_data: Path, tmp_path: Path
) -> None:
    need("torch")
    path, samples = exported(real_data, name, tmp_path / "net.onnx")
    ranges = calibrate(path, samples, samples_digest="sha256:0")
    out = tmp_path / "int8.onnx"
    quantize(path, plan_quantization(path, ranges, numbers=U8), out=out)
    found = audit(out, feeds=samples, options=ON_X86, runs=3)
    assert found.integer_convolutions == found.convolutions == convolutions
    assert sum(island.share or 0.0 for island in found.lost) < 0.2


def test_on_armv8_2_the_convolutions_run_as_dot_products(tmp_path: Path) -> None:
    """Sixteen multiply-accumulates each; a file whose convolutions stay in float has none."""
    need("emulated")
    path = small_resnet(tmp_path / "net.onnx")
    expected = sum((graph.macs(graph.load(path)) or {}).values()) / 16
    counted = {file.name: dot_products(file, tmp_path) for file in (int8(path, S8), path)}
    assert counted["net.onnx"] == 0
    assert expected <= counted["int8.onnx"] <= 1.5 * expected


def dot_products(path: Path, folder: Path) -> int:
    """Dot-product instructions of one inference on an emulated Cortex-A76."""
    machine = emulated.counting("armv8.2")
    subject = Subject(path.name, path, file_digest(path), "ort", pictures(1) * 4, options=ON_ARM)
    run_on_device(subject, device=machine, folder=folder / path.stem)
    assert machine.counts is not None
    return machine.counts.dot_product
