"""Front-ends of a logarithm: found by structure, and only where no network stands before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeexport.quantization import front_floats
from tests.quantization.nets import Net


def spectrogram(net: Net, x: str) -> str:
    """The logarithm of a power, as a convolution and two products."""
    waves = net.conv(x, 3, 4)
    power = net.put("Mul", waves, waves)
    return net.put("Log", net.put("Add", power, net.store(np.float32(1e-4))))


def test_all_that_a_front_ends_logarithm_is_made_from_is_named_and_nothing_else(tmp_path: Path) -> None:
    net = Net()
    net.conv(net.put("Relu", net.conv(spectrogram(net, "image"), 4, 8)), 8, 8)
    kept = front_floats(net.save(tmp_path / "net.onnx"))
    assert sorted(name.split("_")[0] for name in kept) == ["add", "conv", "mul"]
    assert all("log_3" in reason for reason in kept.values())


def test_a_logarithm_after_a_network_keeps_nothing_in_float(tmp_path: Path) -> None:
    net = Net()
    features = net.put("Relu", net.conv("image", 3, 8))
    net.put("Log", net.put("Softmax", net.conv(features, 8, 4), axis=1))
    assert front_floats(net.save(tmp_path / "net.onnx")) == {}
    deep = Net()
    spectrogram(deep, deep.put("Relu", deep.conv("image", 3, 3)))
    assert front_floats(deep.save(tmp_path / "deep.onnx")) == {}
