"""Convergence: enough samples are told from too few, and every prefix is what calibrating on it alone would give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeexport import graph
from edgeexport.errors import DataError
from edgeexport.quantization import calibrate
from edgeexport.quantization.calibrate import Samples
from edgeexport.quantization.convergence import convergence
from tests.quantization.nets import Net, pictures, small_resnet


def test_alike_samples_settle_early(tmp_path: Path) -> None:
    first = pictures(1, shape=(4, 3, 16, 16))[0]["image"]
    samples = [{"image": np.roll(first, index, axis=0)} for index in range(32)]
    found = convergence(small_resnet(tmp_path / "net.onnx"), Samples(samples))
    assert found.enough == 2
    assert [prefix.count for prefix in found.prefixes] == [16, 8, 4, 2]


def test_samples_that_grow_to_the_end_have_not_settled(tmp_path: Path) -> None:
    samples = [{"image": feeds["image"] * (1 + index)} for index, feeds in enumerate(pictures(16))]
    found = convergence(small_resnet(tmp_path / "net.onnx"), Samples(samples))
    assert found.enough is None
    assert found.prefixes[0].change > 0.3


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_a_prefix_is_what_calibrating_on_it_alone_gives(method: str, tmp_path: Path) -> None:
    path, samples = small_resnet(tmp_path / "net.onnx"), pictures(8)
    half = calibrate(path, samples[:4], method=method, samples_digest="").tensors
    final = calibrate(path, samples, method=method, samples_digest="").tensors
    off = {
        name: max(abs(half[name].low - item.low), abs(half[name].high - item.high)) / (item.high - item.low)
        for name, item in final.items()
    }
    prefix = convergence(path, Samples(samples), method=method).prefixes[0]
    assert prefix.change == pytest.approx(sum(off.values()) / len(off))
    assert (prefix.worst, prefix.worst_change) == pytest.approx((max(off, key=off.__getitem__), max(off.values())))


def test_three_samples_tell_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 4 samples"):
        convergence(small_resnet(tmp_path / "net.onnx"), Samples(pictures(3)))


def test_what_a_models_first_layers_say_about_its_input_is_read(tmp_path: Path) -> None:
    net = Net()
    centred = net.put("Div", net.put("Sub", "image", net.store(np.float32(127))), net.store(np.float32(64)))
    net.conv(centred, 3, 4)
    assert graph.expected_inputs(graph.load(net.save(tmp_path / "scaled.onnx"))) == {"image": (127.0, 64.0)}
    net = Net()
    ones = net.store(np.ones(3, np.float32))
    net.conv(
        net.put(
            "BatchNormalization", "image", ones, ones, net.store(np.full(3, 5, np.float32)),
            net.store(np.full(3, 4, np.float32)),
        ),
        3, 4,
    )  # fmt: skip
    assert graph.expected_inputs(graph.load(net.save(tmp_path / "normed.onnx"))) == {"image": (5.0, 2.0)}
    assert graph.expected_inputs(graph.load(small_resnet(tmp_path / "plain.onnx"))) == {}
