"""What the tests of quantization-aware training share: planned nets, their twins, and a small task to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeexport.quantization import calibrate, keep_encoder_float, plan_quantization
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.target import NumberFormat
from edgeexport.training import TrainingData
from tests.quantization.encoder_nets import sentences
from tests.quantization.nets import Net, pictures

SAMPLES = pictures(4, shape=(8, 3, 16, 16))
ENCODERS = NumberFormat(activations="uint8")


def planned(path: Path, numbers: NumberFormat) -> QuantizationPlan:
    """A plan from noise."""
    symmetric = numbers.symmetric_activations
    ranges = calibrate(path, SAMPLES, samples_digest="sha256:0", symmetric=symmetric)
    return plan_quantization(path, ranges, numbers=numbers)


def planned_encoder(
    path: Path, *, numbers: NumberFormat = ENCODERS, samples: list[dict[str, NDArray[Any]]] | None = None
) -> QuantizationPlan:
    """The plan of the static form of a small encoder."""
    ranges = calibrate(path, samples or sentences(8), samples_digest="sha256:0")
    return plan_quantization(path, ranges, numbers=numbers, keep_float=keep_encoder_float(path))


def noise(count: int, *, seed: int = 3) -> TrainingData:
    """Pictures of noise without labels: a teacher's answers are all there is to learn."""
    random = np.random.default_rng(seed)
    return TrainingData(random.standard_normal((count, 3, 16, 16)).astype(np.float32))


def sharing(path: Path) -> Path:
    """Write a net in which two layers share a weight and a bias, and a scaled branch is added and concatenated."""
    net = Net(seed=2)
    x = net.put("Relu", net.conv("image", 3, 8))
    weight = net.store((net.random.standard_normal((8, 8, 3, 3)) / 9).astype(np.float32))
    bias = net.store((net.random.standard_normal(8) * 0.1).astype(np.float32))
    y = net.put("Conv", x, weight, bias, pads=[1] * 4)
    z = net.put("Relu", net.put("Conv", y, weight, bias, pads=[1] * 4))
    scaled = net.put("Mul", z, net.store(net.random.uniform(0.5, 2.0, (1, 8, 1, 1)).astype(np.float32)))
    both = net.put("Concat", net.put("Add", scaled, x), net.put("MaxPool", z, kernel_shape=[1, 1]), axis=1)
    net.gemm(net.put("Flatten", net.put("GlobalAveragePool", net.conv(both, 16, 16))), 16, 10)
    return net.save(path)
