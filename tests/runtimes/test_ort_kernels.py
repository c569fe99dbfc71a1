"""Edits for integer kernels: the same bits, fewer float islands, and nothing where it would not pay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeexport import graph
from edgeexport.quantization import calibrate, plan_quantization, quantize
from edgeexport.records.target import NumberFormat
from edgeexport.runtimes.ort import open_session
from edgeexport.runtimes.ort_kernels import for_integer_kernels
from tests.quantization.nets import Net, integer_ops, pictures, small_resnet

EXACT = {"config_entries": {"session.x64quantprecision": "1"}}
LOGICAL = np.array([0, 4, 0, 0, 0, 4, 0, 0], np.int64)


def option_a(path: Path, *, mode: str = "constant", fill: float | None = None) -> Path:
    """Write a residual block whose shortcut pads channels (He et al. 2015, option A)."""
    net = Net()
    x = net.put("Relu", net.conv("image", 3, 8))
    extra = [net.store(np.float32(fill))] if fill is not None else []
    padded = net.put("Pad", x, net.store(LOGICAL), *extra, mode=mode)
    x = net.put("Relu", net.put("Add", net.conv(x, 8, 16), padded))
    net.conv(x, 16, 8)
    return net.save(path)


def edited(
    path: Path, *, arch: str = "x86_64", signed: bool = False, float_sums: bool = False
) -> tuple[Path, Path, tuple[str, ...]]:
    """Quantize (float_sums: with Adds in float); return the int8 file, the edited one, and what the edits say."""
    ranges = calibrate(path, pictures(4), samples_digest="sha256:0")
    numbers = NumberFormat(activations="int8" if signed else "uint8", float_sums=float_sums)
    before, after = path.with_name("int8.onnx"), path.with_name("edited.onnx")
    adds = [node.name for node in graph.load(path).graph.node if node.op_type == "Add" and float_sums]
    plan = plan_quantization(path, ranges, numbers=numbers, keep_float=dict.fromkeys(adds, "asked for"))
    quantize(path, plan, out=before)
    model, notes = for_integer_kernels(graph.load(before), arch=arch)
    graph.save(model, after)
    graph.load(after)
    return before, after, notes


def same_bits(before: Path, after: Path) -> bool:
    feeds = pictures(1, seed=3, shape=(6, 3, 16, 16))[0]
    one, other = (open_session(path, options=EXACT).run(feeds) for path in (before, after))
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_a_pad_between_equal_scales_pads_integers(mode: str, signed: bool, tmp_path: Path) -> None:
    path = option_a(tmp_path / "net.onnx", mode=mode)
    if mode == "reflect":  # no more than the channels it has
        assert LOGICAL.max() < 8
    before, after, notes = edited(path, signed=signed)
    assert any("pads integers" in note for note in notes)
    assert same_bits(before, after)
    if not signed:
        assert integer_ops(before)["DequantizeLinear"] > integer_ops(after).get("DequantizeLinear", 0)


def test_a_pad_with_another_value_than_zero_stays(tmp_path: Path) -> None:
    before, after, notes = edited(option_a(tmp_path / "net.onnx", fill=1.0))
    assert not any("pads integers" in note for note in notes)
    assert same_bits(before, after)


def test_the_first_convolution_reads_channels_in_fours_on_x86(tmp_path: Path) -> None:
    before, after, notes = edited(small_resnet(tmp_path / "net.onnx"))
    assert notes == ("conv_0 reads 4 channels, the added ones zero",)
    shapes = [graph.initializers(graph.load(path))["w0_quantized"].shape for path in (before, after)]
    assert shapes == [(16, 3, 3, 3), (16, 4, 3, 3)]
    assert same_bits(before, after)
    assert integer_ops(after)["QLinearConv"] == integer_ops(before)["QLinearConv"]


def test_on_arm_it_stays_as_it_is(tmp_path: Path) -> None:
    assert edited(small_resnet(tmp_path / "net.onnx"), arch="aarch64", signed=True)[2] == ()


@pytest.mark.parametrize(("into", "size", "stride"), [(8, 3, 1), (16, 4, 4)])
def test_few_channels_and_windows_that_do_not_overlap_stay(into: int, size: int, stride: int, tmp_path: Path) -> None:
    net = Net()
    net.conv(net.put("Relu", net.conv("image", 3, into, size=size, stride=stride)), into, 8)
    assert edited(net.save(tmp_path / "net.onnx"))[2] == ()


def bottleneck(path: Path, *, stride: int = 1) -> Path:
    """Write a residual block of pointwise convolutions."""
    net = Net()
    first = net.put("Relu", net.conv("image", 3, 8))
    last = net.conv(net.put("Relu", net.conv(first, 8, 16, stride=stride)), 16, 8, size=1)
    first = net.conv(first, 8, 8, size=1, stride=stride)
    net.conv(net.put("Add", first, last), 8, 4)
    return net.save(path)


def test_a_pointwise_convolution_that_floats_read_is_an_integer_product_that_writes_floats(tmp_path: Path) -> None:
    before, after, notes = edited(bottleneck(tmp_path / "net.onnx"), float_sums=True)
    assert sum("writes floats" in note for note in notes) == 2
    assert integer_ops(after)["MatMulIntegerToFloat"] == 2
    assert integer_ops(after).get("Conv", 0) == 0
    assert integer_ops(after)["Transpose"] <= 2
    assert sum(integer_ops(before).get(op, 0) for op in ("Conv", "FusedConv")) == 2
    feeds = pictures(1, seed=3, shape=(6, 3, 16, 16))[0]
    one, other = (open_session(path, options=EXACT).run(feeds) for path in (before, after))
    for name, value in one.items():
        assert np.abs(value - other[name]).max() <= 1e-5 * np.abs(value).max()


def test_a_pointwise_convolution_with_strides_writes_what_it_wrote(tmp_path: Path) -> None:
    _, _, notes = edited(bottleneck(tmp_path / "net.onnx", stride=2), float_sums=True)
    assert sum("writes floats" in note for note in notes) == 1


def test_on_arm_no_convolution_becomes_a_product(tmp_path: Path) -> None:
    assert edited(bottleneck(tmp_path / "net.onnx"), arch="aarch64", float_sums=True)[2] == ()


def test_a_float_model_is_left_alone(tmp_path: Path) -> None:
    model = graph.load(option_a(tmp_path / "net.onnx"))
    copy, notes = for_integer_kernels(model, arch="x86_64")
    assert notes == ()
    assert copy == model
