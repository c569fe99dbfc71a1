"""fp16: close to fp32, float32 at both ends, and refused by name where a phone would compute NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeexport import graph
from edgeexport.errors import DataError, ModelError
from edgeexport.quantization import to_half
from edgeexport.records.target import computes_half, load_target
from edgeexport.runtimes.ort import open_session
from tests.quantization.nets import Net, pictures, small_mobilenet, small_resnet


def scaled(path: Path, factor: float) -> Path:
    """Write a net whose inner tensor is `factor` times the picture, while its output is as large as the picture."""
    net = Net()
    x = net.put("Mul", "image", net.store(np.float32(np.sqrt(factor))))
    x = net.put("Mul", x, net.store(np.float32(np.sqrt(factor))))
    net.put("Mul", x, net.store(np.float32(1 / factor)))
    return net.save(path)


@pytest.mark.parametrize("build", [small_resnet, small_mobilenet])
def test_it_is_half_as_large_and_close_to_float(build: Any, tmp_path: Path) -> None:
    path, out = build(tmp_path / "net.onnx"), tmp_path / "half.onnx"
    record = to_half(path, pictures(4), out=out)
    assert record.headroom > 4
    weights = [value.dtype for value in graph.initializers(graph.load(out)).values() if value.ndim == 4]
    assert set(weights) == {np.dtype(np.float16)}
    sizes = [sum(value.nbytes for value in graph.initializers(graph.load(file)).values()) for file in (path, out)]
    assert sizes[1] < 0.51 * sizes[0]
    signatures = [open_session(file).signature for file in (path, out)]
    assert signatures[0] == signatures[1]
    feeds = pictures(1, seed=5)[0]
    (real,), (half,) = (open_session(file).run(feeds).values() for file in (path, out))
    assert 0 < np.abs(real - half).max() < 0.01 * np.abs(real).max()


def test_an_activation_beyond_fp16_is_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    path, out = scaled(tmp_path / "net.onnx", 1e6), tmp_path / "half.onnx"
    with pytest.raises(ModelError, match=r"'mul_1_out' reaches [34]\.\d+e\+06; fp16 ends at 65504"):
        to_half(path, pictures(4), out=out)
    assert not out.exists()


def test_the_margin_refuses_what_would_only_just_fit(tmp_path: Path) -> None:
    top = max(float(np.abs(each["image"]).max()) for each in pictures(4))
    path = scaled(tmp_path / "net.onnx", 40000 / top)
    with pytest.raises(ModelError, match="4 times what was seen must fit"):
        to_half(path, pictures(4), out=tmp_path / "half.onnx")
    to_half(scaled(tmp_path / "net.onnx", 16000 / top), pictures(4), out=tmp_path / "half.onnx")


def test_a_weight_beyond_fp16_is_refused_by_name(tmp_path: Path) -> None:
    net = Net()
    net.put("Add", "image", net.store(np.full((1, 3, 1, 1), -1e9, np.float32)))
    with pytest.raises(ModelError, match=r"weight 'w0' holds -1e\+09"):
        to_half(net.save(tmp_path / "net.onnx"), pictures(1), out=tmp_path / "half.onnx")


def test_weights_that_lose_bits_are_counted(tmp_path: Path) -> None:
    net = Net()
    net.put("Add", "image", net.store(np.array([1e-5, 1.0, 0.0, 1e-6], np.float32).reshape(4, 1, 1, 1)))
    record = to_half(net.save(tmp_path / "net.onnx"), pictures(1), out=tmp_path / "half.onnx")
    assert record.subnormal_share == 0.5


def test_no_samples_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no samples"):
        to_half(small_resnet(tmp_path / "net.onnx"), [], out=tmp_path / "half.onnx")


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    path = small_mobilenet(tmp_path / "net.onnx")
    for name in ("one", "other"):
        to_half(path, pictures(2), out=tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_only_arm_with_half_precision_simd_computes_in_it() -> None:
    assert computes_half(load_target("raspberry-pi-5"))
    assert not computes_half(load_target("linux-arm64"))
    assert not computes_half(load_target("raspberry-pi-5-litert"))
    x86 = msgspec.structs.replace(load_target("linux-x86_64-vnni"), features=("avx512_fp16",))
    assert not computes_half(x86)
