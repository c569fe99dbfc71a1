"""Small real networks with what exporters stumble over, and samples for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from edgeexport.records.recipe import ModelSpec

SPEC = ModelSpec(factory="networks:Net", inputs={"image": (1, 3, 8, 8)})


class Net(nn.Module):
    """Convolutions with batch norm, asymmetric padding, a shortcut, dropout and a flatten by size."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.down = nn.Conv2d(width, width, 3, stride=2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width * 16, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.norm(self.stem(image)))
        x = self.drop(self.down(self.pad(x))).relu()
        return self.head(x.view(x.size(0), -1))


class BuiltIn(nn.Module):
    """Knows its batch by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 64, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(image.reshape(1, 3 * 64))


class TwoInputs(nn.Module):
    """Token ids and a mask, given in another order than `forward` takes them; returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        weighted = self.table(ids) * mask[..., None]
        return {"mean": weighted.mean(1), "peak": weighted.amax(1)}


class Branches(nn.Module):
    """Takes another way for dark pictures: no trace can be right."""

    def __init__(self) -> None:
        super().__init__()
        self.bright, self.dark = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bright(x) if x.sum() > 0 else self.dark(x)


def seeded(module: Any) -> Any:
    """Give every weight and running statistic a value of its own."""
    generator = torch.Generator().manual_seed(0)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(noise + 0.5 if name.endswith("running_var") else noise - 0.5)
    return module


def pictures(count: int = 3) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"image": random.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(count)]
