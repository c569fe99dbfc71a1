"""Small networks whose exported graphs hold what real ones hold."""

from __future__ import annotations

import io
import warnings

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name everybody knows


class OptionA(nn.Module):
    """A residual block with the option-A shortcut: every second pixel, new channels of zeros."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.more = (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more)))


class ResNet(nn.Module):
    """A small ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.Sequential(OptionA(8, 16), OptionA(16, 32))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(self.layers(F.relu(self.stem(x))), 4)
        return self.fc(y.view(y.size(0), -1))


class Inverted(nn.Module):
    """An inverted residual with ReLU6 or HardSwish and squeeze-and-excitation."""

    def __init__(self, channels: int, act: type[nn.Module]) -> None:
        super().__init__()
        wide = channels * 2
        self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), act())
        self.depth = nn.Sequential(nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.BatchNorm2d(wide), act())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 4, 1), nn.ReLU(), nn.Conv2d(4, wide, 1))
        self.project = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        return x + self.project(y * F.hardsigmoid(self.squeeze(y)))


class MobileNet(nn.Module):
    """A small MobileNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU6())
        self.blocks = nn.Sequential(Inverted(8, nn.ReLU6), Inverted(8, nn.Hardswish), Inverted(8, nn.SiLU))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Perceptron(nn.Module):
    """Linear layers with one-dimensional batch normalization, GELU and layer normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.GELU(), nn.LayerNorm(16), nn.Tanh())
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.last(self.first(x)), dim=-1)


class Detector(nn.Module):
    """Two scales joined by resizing, heads flattened and joined, boxes and scores apart: two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.joined = nn.Conv2d(24, 8, 3, padding=1)
        self.near, self.far = nn.Conv2d(8, 12, 1), nn.Conv2d(16, 12, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = F.leaky_relu(self.down1(x), 0.1)
        coarse = F.max_pool2d(F.silu(self.down2(fine)), 3, stride=1, padding=1)
        fine = self.joined(torch.cat([fine, F.interpolate(coarse, scale_factor=2.0, mode="nearest")], 1))
        heads = [head.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 6) for head in (self.near(fine), self.far(coarse))]
        both = torch.cat(heads, 1)
        return both[..., :4].sigmoid() * 16, both[..., 4:].softmax(-1)


NETS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "resnet": (ResNet, (3, 16, 16)),
    "mobilenet": (MobileNet, (3, 16, 16)),
    "perceptron": (Perceptron, (12,)),
    "detector": (Detector, (3, 16, 16)),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Return the network in evaluation mode, its running statistics stirred, with a batch of two."""
    torch.manual_seed(0)
    kind, shape = NETS[name]
    net = kind()
    with torch.no_grad():
        for _ in range(2):
            net(torch.randn(8, *shape))
    return net.eval(), torch.randn(2, *shape)


def export(name: str, *, dynamo: bool) -> onnx.ModelProto:
    """Export a network with a free batch, by either of torch's exporters."""
    net, example = build(name)
    out = io.BytesIO()
    names = ["boxes", "scores"] if name == "detector" else ["y"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            batch = torch.export.Dim("batch")
            shapes = {"x": {0: batch}}
            program = torch.onnx.export(net, (example,), dynamo=True, opset_version=20, dynamic_shapes=shapes,
                                        input_names=["x"], output_names=names, verbose=False)  # fmt: skip
            assert program is not None
            return program.model_proto
        axes = {name: {0: "batch"} for name in ("x", *names)}
        torch.onnx.export(net, (example,), out, dynamo=False, opset_version=17, dynamic_axes=axes,
                          input_names=["x"], output_names=names)  # fmt: skip
    return onnx.ModelProto.FromString(out.getvalue())
