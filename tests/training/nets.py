"""Networks and samples so small that a training takes a moment."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgeexport.training import TrainingData


def network(dropout=0.2):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip


def pictures(count=100, **more):
    """Two classes that differ in the mean of a colour."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, count)
    inputs = generator.standard_normal((count, 3, 16, 16)).astype(np.float32)
    inputs[:, 0] += labels[:, None, None]
    return TrainingData(inputs, labels.astype(np.int64), **more)


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
