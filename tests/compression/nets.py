"""Tiny networks in the shapes that pruning meets, and the zero-masked twin that a pruned one must equal."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from edgeexport.compression.macs import tensors
from edgeexport.records.pruning import PruningPlan

PICTURE = {"image": np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)}
TABLE = {"row": np.random.default_rng(0).standard_normal((1, 12)).astype(np.float32)}


class Shortcut(nn.Module):
    """Option A: subsample, pad the new channels with zeros."""

    def __init__(self, channels):
        super().__init__()
        self.padding = channels // 4

    def forward(self, x):
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class Block(nn.Module):
    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity() if stride == 1 else Shortcut(channels)

    def forward(self, x):
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class OptionA(nn.Module):
    """Like a CIFAR ResNet: three blocks, the second one widening without parameters."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.blocks = nn.Sequential(Block(32, 32, 1), Block(32, 64, 2), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, image):
        return self.linear(self.blocks(torch.relu(self.bn1(self.conv1(image)))).mean(dim=(2, 3)))


class Inverted(nn.Module):
    """The inverted residual of MobileNetV2."""

    def __init__(self, channels, wide):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, 1, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x):
        return x + self.body(x)


def mobile():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), Inverted(32, 64), Inverted(32, 96),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def plain():
    """Convolutions, then a flatten into linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 48, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(48 * 16, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def mlp():
    return nn.Sequential(
        nn.Linear(12, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 1)
    )


class Shuffle(nn.Module):
    """A channel shuffle between two convolutions: what a reshape hides from the dependency graph."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, 1, 1)
        self.second = nn.Conv2d(32, 32, 3, 1, 1)
        self.third = nn.Conv2d(32, 32, 3, 2, 1)
        self.last = nn.Linear(32, 10)

    def forward(self, image):
        x = torch.relu(self.first(image))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = torch.relu(self.third(torch.relu(self.second(x))))
        return self.last(x.mean(dim=(2, 3)))


class LogFront(nn.Module):
    """A front-end whose constants must stay what they are: the logarithm of what filters without negative taps pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("filters", torch.rand(3, 3, 1, 1))
        self.first = nn.Conv2d(3, 32, 3, 1, 1)
        self.second = nn.Conv2d(32, 32, 3, 2, 1)
        self.last = nn.Linear(32, 10)

    def forward(self, image):
        x = torch.log(nn.functional.conv2d(image * image, self.filters) + 1e-3)
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))).mean(dim=(2, 3)))


class Gated(nn.Module):
    """Focal modulation (Yang et al. 2022, arXiv:2203.11926): slices of one layer weigh other slices of it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, 1, 1)
        self.split = nn.Conv2d(32, 16 + 16 + 3, 1)
        self.contexts = nn.ModuleList(nn.Conv2d(16, 16, 3, 1, 1, groups=16) for _ in range(2))
        self.mixed = nn.Conv2d(16, 16, 1)
        self.wide = nn.Conv2d(16, 64, 3, 2, 1)
        self.last = nn.Linear(64, 10)

    def forward(self, image):
        asked, context, gates = torch.split(self.split(torch.relu(self.first(image))), (16, 16, 3), 1)
        total = 0
        for level, layer in enumerate(self.contexts):
            context = torch.relu(layer(context))
            total = total + context * gates[:, level : level + 1]
        total = total + context.mean(dim=(2, 3), keepdim=True) * gates[:, 2:]
        return self.last(torch.relu(self.wide(asked * self.mixed(total))).mean(dim=(2, 3)))


class Grouped(nn.Module):
    """A grouped convolution, and layer norm over channels: neither may be cut by the channel."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 32)
        self.norm = nn.LayerNorm(32)
        self.second = nn.Linear(32, 32)
        self.grouped = nn.Conv1d(32, 32, 1, groups=4)
        self.third = nn.Linear(32, 64)
        self.last = nn.Linear(64, 3)

    def forward(self, row):
        x = torch.relu(self.second(self.norm(self.first(row))))
        x = self.grouped(x[:, :, None]).flatten(1)
        return self.last(torch.relu(self.third(x)))


def settled(factory, seed=0):
    """A network with statistics and shifts that training would leave: no batch norm is the identity."""
    torch.manual_seed(seed)
    module = factory().eval()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 2.0)
                layer.weight.uniform_(0.2, 1.5)
                layer.bias.normal_(0, 0.3)
    return module


def silenced(module, plan: PruningPlan, example, silence_at):
    """Outputs of the unpruned network with the plan's channels set to zero where its readers see them.

    Independent of the dependency graph: `silence_at` says by hand behind which norms a layer's channels end up.
    """
    module = copy.deepcopy(module)
    layers = dict(module.named_modules())
    for group in plan.groups:
        for name in silence_at.get(group.layer, (group.layer,)):
            layers[name].register_forward_hook(_zero(list(group.removed)))
    with torch.no_grad():
        return module(*tensors(example))


def _zero(removed):
    def hook(layer, inputs, output):
        output = output.clone()
        output[:, removed] = 0
        return output

    return hook


# factory, example, and where channels are silenced; a residual stream is silenced at every place that writes it.
PRUNABLE = {
    "option-A": (OptionA, PICTURE, {f"blocks.{block}.conv1": (f"blocks.{block}.bn1",) for block in range(3)}),
    "mobile": (
        mobile,
        PICTURE,
        {"0": ("1", "2.body.7", "3.body.7"), "2.body.0": ("2.body.4",), "3.body.0": ("3.body.4",)},
    ),
    "plain": (plain, PICTURE, {"0": ("1",)}),
    "mlp": (mlp, TABLE, {"0": ("1",)}),
}
