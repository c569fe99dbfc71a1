"""Resize and Upsample: exact coordinates of ONNX; torch's own interpolation where it has the same ones.

Source: ONNX Operators.md, Resize (coordinate_transformation_mode, nearest_mode).
"""
# ruff: noqa: ARG001  every builder gets its node and every operator all its inputs, needed or not

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the name everybody knows

from edgeexport.graph.lifting.node import Node, Run

_COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")
_ROUND: dict[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda x: math.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: math.floor(x + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}
_TORCH_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


@dataclass(frozen=True)
class Way:
    """How to resize: mode, coordinates, rounding."""

    mode: str
    coordinates: str = "asymmetric"
    rounding: str = "floor"


def resize(node: Node) -> Run:
    """Resize by stored scales, or to sizes that are known before the data."""
    if node.opset < 11:
        return _by_scales(node, Way(node.demand("mode", "nearest", allowed=("nearest", "linear"))), position=1)
    mode = node.demand("mode", "nearest", allowed=("nearest", "linear", "cubic"))
    way = Way(
        mode,
        node.demand("coordinate_transformation_mode", "half_pixel", allowed=_COORDINATES),
        node.demand("nearest_mode", "round_prefer_floor", allowed=tuple(_ROUND)),
    )
    if mode == "cubic" and (way.coordinates not in ("half_pixel", "align_corners") or node.rank() != 4):
        raise node.refusal(f"mode = 'cubic' with {way.coordinates!r} on {node.rank()} dimensions")
    node.demand("cubic_coeff_a", -0.75, allowed=(-0.75,))
    node.demand("exclude_outside", 0, allowed=(0,))
    node.demand("antialias", 0, allowed=(0,))
    node.demand("keep_aspect_ratio_policy", "stretch", allowed=("stretch",))
    node.get("extrapolation_value")
    scales = node.constant(2)
    if node.has(3):
        return _to_sizes(node, way)
    if scales is None:
        raise node.refusal("its scales are computed")
    return _by_scales(node, way, position=2)


def upsample(node: Node) -> Run:
    """Upsample, the forerunner of Resize: asymmetric coordinates, rounded down."""
    way = Way(node.demand("mode", "nearest", allowed=("nearest", "linear")))
    return _by_scales(node, way, position=1) if node.opset >= 9 else _scaled(node, way, scales=list(node.get("scales")))


def _by_scales(node: Node, way: Way, *, position: int) -> Run:
    value = node.constant(position)
    if value is None:
        raise node.refusal("its scales are computed")
    scales = [float(scale) for scale in value]
    axes = node.ints("axes", list(range(node.rank())))
    full = [1.0] * node.rank()
    for axis, scale in zip(axes, scales, strict=True):
        full[axis] = scale
    return _scaled(node, way, scales=full)


def _scaled(node: Node, way: Way, *, scales: list[float]) -> Run:
    if scales[:2] != [1.0, 1.0]:
        raise node.refusal(f"scales {scales} change batch or channels")

    def run(x: Tensor, *rest: Any) -> Tensor:
        sizes = [math.floor(size * scale) for size, scale in zip(x.shape[2:], scales[2:], strict=True)]
        return _resize(x, way, sizes=sizes, scales=scales[2:])

    return run


def _to_sizes(node: Node, way: Way) -> Run:
    axes = [axis % node.rank() for axis in node.ints("axes", list(range(node.rank())))]

    def run(x: Tensor, *rest: Any) -> Tensor:
        wanted: list[int] = list(x.shape)
        for axis, size in zip(axes, rest[2], strict=True):
            wanted[axis] = size
        ratios = [to / have for to, have in zip(wanted[2:], x.shape[2:], strict=True)]
        return _resize(x, way, sizes=wanted[2:], scales=ratios)

    return run


def _resize(x: Tensor, way: Way, *, sizes: list[int], scales: list[float]) -> Tensor:
    have = list(x.shape[2:])
    if sizes == have and scales == [1.0] * len(have):
        return x
    exact = all(math.isclose(s * h, n, rel_tol=1e-6) for s, h, n in zip(scales, have, sizes, strict=True))
    if way.mode == "nearest":
        return _nearest(x, way, sizes=sizes, scales=scales)
    corners = way.coordinates == "align_corners"
    if exact and (corners or way.coordinates == "half_pixel"):
        mode = "bicubic" if way.mode == "cubic" else _TORCH_LINEAR[x.dim()]
        return F.interpolate(x, size=sizes, mode=mode, align_corners=corners)
    for axis, (size, scale) in enumerate(zip(sizes, scales, strict=True), start=2):
        x = _linear(x, axis, size=size, scale=scale, way=way)
    return x


def _place(i: int, coordinates: str, *, size: int, have: int, scale: float) -> float:
    """Return where the value i of the result lies on the input's axis, in the runtimes' 32-bit arithmetic.

    Where a place falls between two values, more digits would round to the other neighbour.
    """
    half, ratio = np.float32(0.5), np.float32(scale)
    position, new, old = np.float32(i), np.float32(size), np.float32(have)
    match coordinates:
        case "asymmetric":
            return float(position / ratio)
        case "align_corners":
            return float(position * (old - 1) / (new - 1)) if size > 1 else 0.0
        case "pytorch_half_pixel" if size <= 1:
            return 0.0
        case "half_pixel_symmetric":
            center = old / 2 * (1 - new / (ratio * old))
            return float(center + (position + half) / ratio - half)
        case _:
            return float((position + half) / ratio - half)


def _nearest(x: Tensor, way: Way, *, sizes: list[int], scales: list[float]) -> Tensor:
    have = list(x.shape[2:])
    sources = []
    for size, old, scale in zip(sizes, have, scales, strict=True):
        places = [
            _ROUND[way.rounding](_place(i, way.coordinates, size=size, have=old, scale=scale)) for i in range(size)
        ]
        sources.append([min(max(place, 0), old - 1) for place in places])
    if sources == [[i * old // size for i in range(size)] for size, old in zip(sizes, have, strict=True)]:
        return F.interpolate(x, size=sizes, mode="nearest")
    for axis, source in enumerate(sources, start=2):
        x = x.index_select(axis, torch.tensor(source))
    return x


def _linear(x: Tensor, axis: int, *, size: int, scale: float, way: Way) -> Tensor:
    have = x.shape[axis]
    places = [
        min(max(_place(i, way.coordinates, size=size, have=have, scale=scale), 0.0), have - 1.0) for i in range(size)
    ]
    low = [math.floor(place) for place in places]
    high = [min(place + 1, have - 1) for place in low]
    share = [place - floor for place, floor in zip(places, low, strict=True)]
    weight = torch.tensor(share, dtype=x.dtype).reshape([-1] + [1] * (x.dim() - axis - 1))
    below, above = x.index_select(axis, torch.tensor(low)), x.index_select(axis, torch.tensor(high))
    return below * (1 - weight) + above * weight
