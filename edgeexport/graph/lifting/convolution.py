"""Convolutions and pooling in one, two and three dimensions. Source: ONNX Operators.md, Conv to MaxPool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the name everybody knows

from edgeexport.graph.lifting.node import Node, Run

_CONV: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED: tuple[Any, ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MAX: tuple[Any, ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_MEAN: tuple[Any, ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_AUTO = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


# Padding before and after each spatial axis.
Pads = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Window:
    """How a kernel walks over the spatial axes."""

    strides: list[int]
    dilations: list[int]
    fixed: list[int]
    auto: str

    def pads(self, sizes: Sequence[int], kernel: Sequence[int]) -> Pads:
        """Return padding before and after each spatial axis of an input of these sizes."""
        count = len(self.strides)
        if self.auto in ("NOTSET", "VALID"):
            return self.fixed[:count], self.fixed[count:]
        before, after = [], []
        for size, width, stride, dilation in zip(sizes, kernel, self.strides, self.dilations, strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
            small, large = total // 2, total - total // 2
            before.append(small if self.auto == "SAME_UPPER" else large)
            after.append(large if self.auto == "SAME_UPPER" else small)
        return before, after


def _window(node: Node, rank: int) -> Window:
    auto = node.demand("auto_pad", "NOTSET", allowed=_AUTO)
    fixed = node.ints("pads", [0] * (2 * rank))
    return Window(
        strides=node.ints("strides", [1] * rank),
        dilations=node.ints("dilations", [1] * rank),
        fixed=[0] * (2 * rank) if auto == "VALID" else fixed,
        auto=auto,
    )


def spatial_pad(x: Tensor, pads: Pads, *, value: float = 0.0) -> Tensor:
    """Pad the spatial axes of x (negative: crop); torch counts them from the last."""
    flat = [size for pair in reversed(list(zip(*pads, strict=True))) for size in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def conv(node: Node) -> Run:
    """Conv: any padding, stride, dilation and group."""
    rank = node.rank(1) - 2
    window, group = _window(node, rank), node.get("group", 1)
    node.get("kernel_shape")
    function = _CONV[rank - 1]

    def run(x: Tensor, weight: Tensor, *rest: Tensor | None) -> Tensor:
        bias = rest[0] if rest else None
        before, after = window.pads(x.shape[2:], weight.shape[2:])
        if before == after:
            return function(x, weight, bias, window.strides, before, window.dilations, group)  # type: ignore[no-any-return]
        padded = spatial_pad(x, (before, after))
        return function(padded, weight, bias, window.strides, 0, window.dilations, group)  # type: ignore[no-any-return]

    return run


def conv_transpose(node: Node) -> Run:
    """ConvTranspose: the full result, then the padding cropped away."""
    rank = node.rank(1) - 2
    window, group = _window(node, rank), node.get("group", 1)
    extra, wanted = node.ints("output_padding", [0] * rank), node.ints("output_shape", [])
    node.get("kernel_shape")
    function = _TRANSPOSED[rank - 1]

    def run(x: Tensor, weight: Tensor, *rest: Tensor | None) -> Tensor:
        bias = rest[0] if rest else None
        before, after = _transposed_pads(
            window, x.shape[2:], kernel=weight.shape[2:], extra=extra, wanted=wanted[-rank:]
        )
        steps = zip(window.strides, window.dilations, extra, strict=True)
        if before == after and min(before) >= 0 and all(e < max(s, d) for s, d, e in steps):
            return function(x, weight, bias, window.strides, before, extra, group, window.dilations)  # type: ignore[no-any-return]
        full = function(x, weight, None, window.strides, 0, 0, group, window.dilations)
        cropped = spatial_pad(full, ([-p for p in before], [e - p for e, p in zip(extra, after, strict=True)]))
        return cropped if bias is None else cropped + bias.reshape(-1, *[1] * rank)

    return run


def _transposed_pads(
    window: Window, sizes: Sequence[int], *, kernel: Sequence[int], extra: list[int], wanted: list[int]
) -> Pads:
    count = len(window.strides)
    if not wanted and window.auto in ("NOTSET", "VALID"):
        return window.fixed[:count], window.fixed[count:]
    goal = wanted or [size * stride for size, stride in zip(sizes, window.strides, strict=True)]
    before, after = [], []
    for i in range(count):
        full = window.strides[i] * (sizes[i] - 1) + extra[i] + (kernel[i] - 1) * window.dilations[i] + 1
        total = max(full - goal[i], 0)
        small, large = total // 2, total - total // 2
        before.append(small if window.auto == "SAME_UPPER" else large)
        after.append(large if window.auto == "SAME_UPPER" else small)
    return before, after


def max_pool(node: Node) -> Run:
    """MaxPool without indices: torch's own where it can, else on an input padded with minus infinity."""
    node.one_output()
    node.demand("storage_order", 0, allowed=(0,))
    kernel = node.ints("kernel_shape", [])
    window, ceil = _window(node, len(kernel)), bool(node.get("ceil_mode", 0))
    function = _MAX[len(kernel) - 1]

    def run(x: Tensor) -> Tensor:
        before, after = window.pads(x.shape[2:], kernel)
        if before == after and all(2 * p <= k for p, k in zip(before, kernel, strict=True)):
            return function(x, kernel, window.strides, before, window.dilations, ceil)  # type: ignore[no-any-return]
        reach = _reach(window, kernel, sizes=x.shape[2:], pads=(before, after)) if ceil else after
        padded = spatial_pad(x, (before, reach), value=-math.inf)
        return function(padded, kernel, window.strides, 0, window.dilations)  # type: ignore[no-any-return]

    return run


def average_pool(node: Node) -> Run:
    """AveragePool: torch's own where it can, else sums divided by the number of cells that count."""
    kernel = node.ints("kernel_shape", [])
    window, ceil = _window(node, len(kernel)), bool(node.get("ceil_mode", 0))
    counted = bool(node.get("count_include_pad", 0))
    function = _MEAN[len(kernel) - 1]
    if any(dilation != 1 for dilation in window.dilations):
        raise node.refusal(f"attribute dilations = {window.dilations}, torch has no dilated average")

    def run(x: Tensor) -> Tensor:
        before, after = window.pads(x.shape[2:], kernel)
        if before == after and all(2 * p <= k for p, k in zip(before, kernel, strict=True)):
            return function(x, kernel, window.strides, before, ceil, counted)  # type: ignore[no-any-return]
        reach = _reach(window, kernel, sizes=x.shape[2:], pads=(before, after)) if ceil else after
        cells = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
        if counted:
            cells = spatial_pad(cells, (before, after), value=1.0)
            rest = [r - a for r, a in zip(reach, after, strict=True)]
            cells = spatial_pad(cells, ([0] * len(kernel), rest))
        else:
            cells = spatial_pad(cells, (before, reach))
        mean = function(spatial_pad(x, (before, reach)), kernel, window.strides)
        return mean / function(cells, kernel, window.strides)  # type: ignore[no-any-return]

    return run


def _reach(window: Window, kernel: list[int], *, sizes: Sequence[int], pads: Pads) -> list[int]:
    """Return the padding after each axis with which rounding down gives the size that rounding up asks for."""
    result = []
    for i, (size, before, after) in enumerate(zip(sizes, *pads, strict=True)):
        span = (kernel[i] - 1) * window.dilations[i] + 1
        count = math.ceil((size + before + after - span) / window.strides[i]) + 1
        if (count - 1) * window.strides[i] >= size + before:
            count -= 1
        result.append((count - 1) * window.strides[i] + span - size - before)
    return result


def global_average_pool(node: Node) -> Run:
    """GlobalAveragePool: the mean over all spatial axes, kept as axes of one."""
    axes = list(range(2, node.rank()))
    return lambda x: x.mean(dim=axes, keepdim=True)


def global_max_pool(node: Node) -> Run:
    """GlobalMaxPool: the maximum over all spatial axes, kept as axes of one."""
    axes = list(range(2, node.rank()))
    return lambda x: x.amax(dim=axes, keepdim=True)
