"""`edgeexport inspect`: what a file holds, and on each target what will not run, what will not fuse, and why."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgeexport import graph
from edgeexport.cli import main
from edgeexport.errors import RequestError
from edgeexport.inspection import GIVEN, RANDOM, form_of, inspect, read_shapes
from edgeexport.records.base import from_json
from edgeexport.records.inspection import Inspection
from edgeexport.records.target import NumberFormat, load_target
from tests.needs import ROOT, need
from tests.quantization.nets import Net, pictures, small_mobilenet, small_resnet
from tests.quantization.test_audit import int8

X86, PI = load_target("linux-x86_64-vnni"), load_target("raspberry-pi-5")


def test_the_head_says_what_the_file_holds(tmp_path: Path) -> None:
    path = small_resnet(tmp_path / "net.onnx")
    found = inspect(path)
    assert (found.form, found.opset, found.ir_version) == ("float", 18, 8)
    assert found.operators["Conv"] == 8
    assert found.parameters == sum(value.size for value in graph.initializers(graph.load(path)).values())
    first = 16 * 16 * 16 * 3 * 9
    assert found.macs is not None
    assert found.macs > first
    assert found.floor == "1.14"
    assert not found.targets


def test_macs_are_those_of_the_layers(tmp_path: Path) -> None:
    net = Net()
    x = net.conv("image", 3, 8, stride=2)
    net.gemm(net.put("Flatten", net.conv(x, 8, 8, group=8)), 8 * 64, 10)
    counts = graph.macs(graph.load(net.save(tmp_path / "net.onnx")))
    assert counts is not None
    assert list(counts.values()) == [8 * 8 * 8 * 27, 8 * 8 * 8 * 9, 5120]


def test_a_float_file_gets_a_trial_that_says_where_its_ranges_come_from(tmp_path: Path) -> None:
    path = small_mobilenet(tmp_path / "net.onnx")
    (random,), (given,) = inspect(path, [PI]).targets, inspect(path, [PI], samples=pictures(2)).targets
    assert (random.basis, given.basis) == (RANDOM, GIVEN)
    assert random.audit is not None
    assert random.audit.integer_convolutions == random.audit.convolutions == 8
    assert not random.refused


def test_what_int8_leaves_in_float_stands_with_its_reason(tmp_path: Path) -> None:
    net = Net()
    x = net.put("Sigmoid", net.conv("image", 3, 8))
    net.put("Sigmoid", net.put("ConvTranspose", x, net.store(np.ones((8, 4, 2, 2), np.float32))))
    (found,) = inspect(net.save(tmp_path / "net.onnx"), [PI]).targets
    assert found.kept_float["convtranspose"] == "onnxruntime has no integer kernel for it"
    assert "no weighted node follows it" in found.kept_float.values()


def test_an_int8_file_is_audited_as_it_is_and_its_numbers_are_compared_with_the_targets(tmp_path: Path) -> None:
    path = int8(small_resnet(tmp_path / "net.onnx"), NumberFormat(activations="int8"))
    x86, arm = inspect(path, [X86, PI]).targets
    assert not x86.basis
    assert x86.audit is not None
    assert arm.audit is not None
    assert x86.audit.integer_convolutions < x86.audit.convolutions == arm.audit.integer_convolutions
    assert any("activations are int8, the kernels there want uint8" in note for note in x86.notes)
    assert not any("want" in note for note in arm.notes)


def test_a_machine_that_is_not_the_target_gives_a_graph_and_no_cost(tmp_path: Path) -> None:
    other = X86 if load_target("linux-arm64").arch == _host() else PI
    (found,) = inspect(int8(small_resnet(tmp_path / "net.onnx")), [other]).targets
    assert found.audit is not None
    assert found.audit.us is None
    assert found.audit.unmeasured
    assert any(note.startswith("no costs: ") for note in found.notes)


def _host() -> str:
    import platform

    return platform.machine()


def test_an_operator_that_the_runtime_refuses_is_named(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, [1, 1, 4, 4])
    out = helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, [1, 1, 4, 4])
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1)), "w")
    made = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"], "conv")], "net", [value], [out], [weight])
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    (found,) = inspect(path, [PI]).targets
    assert "Conv" in found.refused[0]
    assert found.audit is None


def test_what_litert_cannot_take_is_named(tmp_path: Path) -> None:
    need("torch")
    net = Net()
    net.put("Det", net.put("Reshape", "image", net.store(np.array([3, 16, 16]))))
    (found,) = inspect(net.save(tmp_path / "net.onnx"), [load_target("raspberry-pi-5-litert")]).targets
    assert found.refused == ("Det (1): this version cannot turn it into torch, on the way to LiteRT",)
    (fine,) = inspect(small_resnet(tmp_path / "fine.onnx"), [load_target("raspberry-pi-5-litert")]).targets
    assert not fine.refused


def free_sized(path: Path) -> Path:
    """A net whose picture may have any height and width, in an opset that is too old for per-channel int8."""
    net = Net()
    net.conv(net.put("Relu", net.conv("image", 3, 8)), 8, 8)
    model = onnx.load(net.save(path))
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.opset_import[0].version = 11
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def test_free_sizes_are_asked_for_and_an_old_opset_is_raised(tmp_path: Path) -> None:
    path = free_sized(tmp_path / "net.onnx")
    (without,) = inspect(path, [PI]).targets
    assert without.audit is None
    assert any("--input NAME" in note for note in without.notes)
    whole = inspect(path, [PI], shapes={"image": (1, 3, 8, 8)})
    (found,) = whole.targets
    assert "opset 11 raised to 17" in found.notes
    assert found.audit is not None
    assert found.audit.integer_convolutions == 2
    assert whole.macs == 8 * 8 * 8 * (27 + 72)


def test_shapes_are_read_from_text_or_refused() -> None:
    assert read_shapes(["x=1,3,8,8", "a=b=2"]) == {"x": (1, 3, 8, 8), "a=b": (2,)}
    for text in ("x", "x=", "=1,2", "x=1,-3", "x=1,0", "x=a"):
        with pytest.raises(RequestError, match="is not NAME=SIZE"):
            read_shapes([text])


def test_dynamic_int8_is_told_from_static(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    net = Net()
    x = net.put("Flatten", net.put("GlobalAveragePool", net.conv("image", 3, 8)))
    net.put("MatMul", x, net.store(net.random.standard_normal((8, 4)).astype(np.float32)))
    path = net.save(tmp_path / "net.onnx")
    quantize_dynamic(path, tmp_path / "dynamic.onnx", op_types_to_quantize=["MatMul"])
    forms = [form_of(graph.load(file)) for file in (path, int8(path), tmp_path / "dynamic.onnx")]
    assert forms == ["float", "int8", "dynamic int8"]


def test_the_verb_prints_a_table_and_its_json_twin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = Net()
    net.conv(net.put("HardSwish", net.conv("image", 3, 8)), 8, 8)
    path = net.save(tmp_path / "net.onnx")
    assert main(["inspect", str(path), "--target", "raspberry-pi-5"]) == 0
    shown = capsys.readouterr().out
    assert "operators  Conv 2, HardSwish 1" in shown
    assert "2 of 2 convolutions" in shown
    assert "HardSwish has no integer kernel" in shown
    assert RANDOM in shown
    assert main(["inspect", str(path), "--target", "raspberry-pi-5", "--json"]) == 0
    record = from_json(capsys.readouterr().out.encode(), Inspection, origin="stdout")
    assert record.targets[0].audit is not None
    assert json.loads(json.dumps(record.operators)) == {"Conv": 2, "HardSwish": 1}


@pytest.mark.parametrize(
    "arguments", [["bad.onnx"], ["missing.onnx"], ["net.onnx", "--target", "nowhere"], ["net.onnx", "--input", "x"]]
)
def test_a_wrong_request_is_exit_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_resnet(tmp_path / "net.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x09 nothing")
    assert main(["inspect", *arguments]) == 2


def test_a_bundles_model_is_inspected_for_the_bundles_own_target(capsys: pytest.CaptureFixture[str]) -> None:
    need("ort")
    bundle = ROOT / "tests/bundles/released/v1/tiny.bundle"
    found = inspect(bundle)
    assert found.path == f"{bundle}, model/tiny.onnx"
    assert [each.target for each in found.targets] == ["desk"]
    assert [each.target for each in inspect(bundle, "raspberry-pi-5").targets] == ["raspberry-pi-5"]
    assert main(["inspect", str(bundle)]) == 0
    assert "operators  MatMul 1" in capsys.readouterr().out


def test_a_file_of_another_format_is_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.tflite").write_bytes(b"")
    assert main(["inspect", str(tmp_path / "m.tflite")]) == 2
    told = capsys.readouterr().err
    assert "what `inspect` reads are .onnx files" in told
    assert f"next:  to measure it: edgeexport bench {tmp_path / 'm.tflite'}" in told
    (tmp_path / "x.bundle").write_bytes(b"no bundle")
    assert main(["inspect", str(tmp_path / "x.bundle")]) == 2
    assert "protobuf" not in capsys.readouterr().err.lower()
