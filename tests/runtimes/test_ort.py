"""The runtime `ort`: conversion to .onnx and .ort, opening, running, and its errors in our words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeexport import graph
from edgeexport.errors import CorruptFile, DataError, MissingExtra, ModelError
from edgeexport.quantization import calibrate, plan_quantization, quantize
from edgeexport.records.target import NumberFormat, Target
from edgeexport.runtimes import get
from edgeexport.runtimes import ort as ort_runtime
from edgeexport.runtimes.ort import model_floor, open_session
from edgeexport.runtimes.ort_format import _Reader, canonical
from edgeexport.runtimes.protocol import Conversion, Converted
from tests.quantization.nets import Net, pictures, small_mobilenet, small_resnet

VNNI = ("avx2", "avx512f", "avx512_vnni")


def target(**changes: Any) -> Target:
    fields: dict[str, Any] = {"name": "t", "title": "t", "runtime": "ort", "format": "onnx", "arch": "x86_64"}
    return Target(**{**fields, "features": VNNI, **changes})


def samples() -> Iterator[dict[str, np.ndarray]]:
    return iter(pictures(4))


def job(spine: Path, where: Target, *, int8: bool) -> Conversion:
    """What the pipeline hands over: the spine alone, or with its int8 form."""
    if not int8:
        return Conversion(spine, None, None, None, samples, where)
    ranges = calibrate(spine, samples(), samples_digest="sha256:0")
    plan = plan_quantization(spine, ranges, numbers=where.numbers())
    quantized = spine.with_name("int8.onnx")
    quantize(spine, plan, out=quantized)
    return Conversion(spine, quantized, ranges, plan, samples, where)


def converted(spine: Path, where: Target, *, int8: bool = False) -> tuple[Converted, Path]:
    out = spine.with_name(f"out.{where.format}")
    return get("ort").convert(job(spine, where, int8=int8), out), out


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("kind", ["onnx", "ort"])
@pytest.mark.parametrize("build", [small_resnet, small_mobilenet])
def test_what_was_converted_answers_like_its_source(build: Any, kind: str, int8: bool, tmp_path: Path) -> None:
    spine = build(tmp_path / "net.onnx")
    # Sums in an .ort file cannot be made exact when it is opened: those of fitted pairs are, on every CPU.
    numbers = NumberFormat(activations="uint8", fit_pairs=kind == "ort")
    record, out = converted(spine, target(format=kind, number_format=numbers), int8=int8)
    feeds = pictures(1, shape=(3, 3, 16, 16))[0]
    source = tmp_path / "int8.onnx" if int8 else spine
    (expected,) = open_session(source).run(feeds).values()
    (got,) = get("ort").open(out, options=record.session_options).run(feeds).values()
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
    assert record.signature == graph.signature(graph.load(spine))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_ort_format_bytes_repeat(arch: str, int8: bool, tmp_path: Path) -> None:
    spine = small_mobilenet(tmp_path / "net.onnx")
    where = target(format="ort", arch=arch, features=() if arch == "aarch64" else VNNI)
    first = converted(spine, where, int8=int8)[1].read_bytes()
    assert first == converted(spine, where, int8=int8)[1].read_bytes()
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= {"net.onnx", "int8.onnx", "out.ort"}


def test_the_table_of_kernel_types_is_sorted_and_nothing_else_changes(tmp_path: Path) -> None:
    _, out = converted(small_resnet(tmp_path / "net.onnx"), target(format="ort"))
    data = out.read_bytes()
    assert canonical(data) == data
    operators = [operator for operator, _ in _Reader(data).kernel_types(kernel_table(data))]
    assert operators == sorted(operators)
    assert len(operators) > 3


def kernel_table(data: bytes) -> int:
    reader = _Reader(data)
    return reader.follow(reader.field(reader.follow(0), 3) or 0)


def test_a_file_of_unknown_layout_is_refused(tmp_path: Path) -> None:
    _, out = converted(small_resnet(tmp_path / "net.onnx"), target(format="ort"))
    data = bytearray(out.read_bytes())
    data[4:8] = b"TFL3"
    with pytest.raises(ModelError, match="unknown layout"):
        canonical(bytes(data))


def test_an_onnx_target_gets_the_very_bytes_of_its_source(tmp_path: Path) -> None:
    spine = small_resnet(tmp_path / "net.onnx")
    assert converted(spine, target())[1].read_bytes() == spine.read_bytes()


def test_int8_in_ort_format_keeps_its_integer_kernels(tmp_path: Path) -> None:
    _, out = converted(small_resnet(tmp_path / "net.onnx"), target(format="ort"), int8=True)
    content = out.read_bytes()
    assert b"QLinearConv" in content
    assert b":Conv:" not in content


def test_int8_for_arm64_is_baked_for_signed_activations(tmp_path: Path) -> None:
    where = target(format="ort", arch="aarch64", features=("asimddp",))
    record, out = converted(small_resnet(tmp_path / "net.onnx"), where, int8=True)
    assert record.session_options["config_entries"] == {"session.qdqisint8allowed": "1"}
    assert b"QLinearConv" in out.read_bytes()
    assert not record.notes


def test_float_weights_are_blocked_only_for_a_cpu_that_blocks_like_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_runtime.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(ort_runtime, "_host_has_avx512", lambda: True)
    assert ort_runtime.bakes_nchwc(target())
    assert not ort_runtime.bakes_nchwc(target(features=("avx2",)))
    assert not ort_runtime.bakes_nchwc(target(arch="aarch64"))
    record, out = converted(small_resnet(tmp_path / "net.onnx"), target(format="ort", features=("avx2",)))
    assert b"com.microsoft.nchwc:Conv" not in out.read_bytes()
    assert any("slower than in an .onnx" in note for note in record.notes)


def test_full_range_weights_without_vnni_ask_for_exact_sums(tmp_path: Path) -> None:
    spine = small_resnet(tmp_path / "net.onnx")
    entry = {"session.x64quantprecision": "1"}
    full = target(features=("avx2",), number_format=NumberFormat(activations="uint8"))
    assert converted(spine, full, int8=True)[0].session_options["config_entries"] == entry
    seven_bits = target(features=("avx2",))
    assert converted(spine, seven_bits, int8=True)[0].session_options["config_entries"] == {}


def test_the_floor_is_the_oldest_release_that_knows_opset_and_ir(tmp_path: Path) -> None:
    model = graph.load(small_resnet(tmp_path / "net.onnx"))
    assert model_floor(model) == "1.14"
    model.ir_version = 10
    assert model_floor(model) == "1.18"
    model.opset_import[0].version = 99
    assert model_floor(model) == get("ort").version()


def test_a_lower_floor_lowers_ir_and_opset(tmp_path: Path) -> None:
    spine = small_resnet(tmp_path / "net.onnx")
    model = onnx.load(spine)
    model.ir_version = 10
    onnx.save(model, spine)
    record, out = converted(spine, target(floor="1.12"))
    lowered = graph.load(out)
    assert (lowered.ir_version, graph.standard_opset(lowered)) == (8, 17)
    assert record.floor == "1.12"
    assert record.notes


def test_a_floor_nobody_can_reach_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="older than any"):
        converted(small_resnet(tmp_path / "net.onnx"), target(floor="0.5"))


@pytest.mark.parametrize("name", ["broken.onnx", "broken.ort"])
@pytest.mark.parametrize("content", [b"", b"not a model at all", bytes(range(256)) * 8])
def test_a_file_that_is_no_model_is_corrupt(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match="broken"):
        get("ort").open(path)


def test_a_truncated_ort_file_is_corrupt(tmp_path: Path) -> None:
    _, out = converted(small_resnet(tmp_path / "net.onnx"), target(format="ort"))
    out.write_bytes(out.read_bytes()[:2000])
    with pytest.raises(CorruptFile):
        get("ort").open(out)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="no such file"):
        get("ort").open(tmp_path / "nothing.onnx")


@pytest.mark.parametrize("change", ["ir", "opset", "operator"])
def test_a_model_from_the_future_is_a_model_error(change: str, tmp_path: Path) -> None:
    path = small_resnet(tmp_path / "net.onnx")
    model = onnx.load(path)
    if change == "ir":
        model.ir_version = 99
    elif change == "opset":
        model.opset_import[0].version = 999
    else:
        model.graph.node[0].op_type = "Teleport"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="cannot run it"):
        get("ort").open(path)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "image"),
        ({"image": np.zeros((1, 3, 16, 16), np.float64)}, "float64.*float32"),
        ({"image": np.zeros((1, 3, 16, 17), np.float32)}, r"16, 17\).*16, 16"),
        ({"image": np.zeros((3, 16, 16), np.float32)}, r"\(3, 16, 16\)"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_with_both_values(feeds: Any, message: str, tmp_path: Path) -> None:
    session = get("ort").open(small_resnet(tmp_path / "net.onnx"))
    with pytest.raises(DataError, match=message):
        session.run(feeds)


def test_a_kernel_that_fails_is_a_model_error(tmp_path: Path) -> None:
    net = Net()
    net.put("Reshape", "image", net.store(np.array([1, 7], np.int64)))
    session = get("ort").open(net.save(tmp_path / "net.onnx"))
    with pytest.raises(ModelError, match="failed while running"):
        session.run(pictures(1)[0])


@pytest.mark.parametrize("options", [{"thread": 1}, {"graph_optimization_level": "most"}])
def test_unknown_session_options_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown"):
        get("ort").open(small_resnet(tmp_path / "net.onnx"), options=options)


def test_a_missing_onnxruntime_is_named_with_the_smallest_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match="onnxruntime") as caught:
        open_session(b"")
    assert caught.value.extra == "ort"


def test_a_file_without_exact_kernels_opens_unfused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime says of such a file what it says of a damaged one; only x86 without VNNI meets it."""
    path = shared_weight(tmp_path)
    feeds = pictures(1, shape=(1, 3, 16, 16))[0]
    (whole,) = open_session(path, options=ort_runtime.UNFUSED).run(feeds).values()
    (found,) = open_session(path).run(feeds).values()
    assert np.abs(found - whole).max() <= 0.05 * np.abs(whole).max()
    real, levels = ort_runtime.started, []

    def refusing(*arguments: Any, config: Any, **rest: Any) -> Any:
        levels.append(config.graph_optimization_level.name)
        if len(levels) == 1:
            assert config.get_session_config_entry(ort_runtime.EXACT_SUMS) == "1"
            raise CorruptFile("no kernel")
        return real(*arguments, config=config, **rest)

    monkeypatch.setattr(ort_runtime, "started", refusing)
    (found,) = open_session(path).run(feeds).values()
    assert np.array_equal(found, whole)
    assert levels == ["ORT_ENABLE_ALL", "ORT_DISABLE_ALL"]


def shared_weight(folder: Path) -> Path:
    """An int8 file in which two convolutions share a weight."""
    net = Net()
    last = net.put("Relu", net.conv(net.put("Relu", net.conv("image", 3, 16)), 16, 16))
    net.conv(last, 16, 16)
    spine = net.save(folder / "net.onnx")
    model = graph.load(spine)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    convolutions[2].input[1] = convolutions[1].input[1]
    graph.save(model, spine)
    plan = plan_quantization(
        spine, calibrate(spine, samples(), samples_digest="sha256:0"), numbers=NumberFormat(activations="uint8")
    )
    quantize(spine, plan, out=folder / "int8.onnx")
    return folder / "int8.onnx"
