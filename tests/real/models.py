"""The CIFAR-10 ResNets of He et al. 2015 (arXiv:1512.03385, section 4.2), with parameter-free "option A" shortcuts.

Names follow the widely used released checkpoints, so that those load as they are.
"""

from __future__ import annotations

import torch
from torch import nn


class Shortcut(nn.Module):
    """Option A: take every second pixel and pad the new channels with zeros, half before and half after."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.padding = channels // 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class Block(nn.Module):
    """Two 3x3 convolutions and the shortcut around them."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity() if stride == 1 else Shortcut(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of `blocks` blocks each, 16, 32 and 64 channels wide; pictures (n, 3, 32, 32) to ten logits."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.linear(torch.mean(x, dim=(2, 3)))
        return logits


def _stage(channels_in: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = Block(channels_in, channels, stride)
    return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))


def resnet20() -> ResNet:
    """0.27 million parameters."""
    return ResNet(3)


def resnet32() -> ResNet:
    """0.46 million parameters."""
    return ResNet(5)


def resnet44() -> ResNet:
    """0.66 million parameters."""
    return ResNet(7)


def resnet56() -> ResNet:
    """0.85 million parameters."""
    return ResNet(9)
