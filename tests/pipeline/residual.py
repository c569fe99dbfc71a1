"""A network with residual blocks on the embedded digits, small enough to be cut, distilled and shipped in seconds."""

from __future__ import annotations

MODELS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(32, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + 0.5 * self.second(torch.relu(self.first(x))))


def net():
    torch.manual_seed(0)
    blocks = [Block() for _ in range(2)]
    head = [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32 * 16, 10)]
    return nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), *blocks, *head)
"""

TRAIN = """
[[step]]
do = "train"
training = { steps = 120, learning_rate = 0.05, batch_size = 64, seed = 1 }
"""
