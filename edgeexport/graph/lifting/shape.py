"""Operators that move, cut and join values. Source: ONNX Operators.md.

The rule: sizes come as numbers (Python integers, symbolic ones for a free batch), so that nothing here depends on data.
"""
# ruff: noqa: ARG001, ARG005  every builder gets its node and every operator all its inputs, needed or not

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the name everybody knows

from edgeexport.graph.lifting.node import Node, Run

Numbers = Any  # an object array of integers, symbolic ones among them


def reshape(node: Node) -> Run:
    """Reshape: 0 keeps the size (unless allowzero), -1 is what remains."""
    keep_zero = bool(node.get("allowzero", 0))

    def run(x: Tensor, to: Numbers) -> Tensor:
        sizes = [x.shape[axis] if _is_zero(size) and not keep_zero else size for axis, size in enumerate(to)]
        return x.reshape(sizes)

    return run


def _is_zero(size: Any) -> bool:
    """True for a plain 0; a symbolic size is never asked (that would pin it)."""
    return isinstance(size, int) and size == 0


def flatten(node: Node) -> Run:
    """Flatten to two dimensions; the front stays as it is where it is one axis (a free batch)."""
    axis = int(node.get("axis", 1))
    axis = axis + node.rank() if axis < 0 else axis
    if axis == 0:
        return lambda x: x.reshape(1, -1)
    if axis == node.rank():
        return lambda x: x.reshape(-1, 1)
    return lambda x: x.flatten(axis).flatten(0, axis - 1)


def transpose(node: Node) -> Run:
    """Transpose; without an order, the axes are reversed."""
    order = node.ints("perm", list(reversed(range(node.rank()))))
    return lambda x: x.permute(order)


def squeeze(node: Node) -> Run:
    """Squeeze: the named axes, or all of size one."""
    axes = node.stored_ints(1, "axes") if node.opset >= 13 else node.ints("axes", [])
    chosen = axes or [axis for axis, size in enumerate(node.shape(0)) if size == 1]
    return lambda x, *rest: torch.squeeze(x, dim=chosen)


def unsqueeze(node: Node) -> Run:
    """Unsqueeze: axes count in the result."""
    axes = node.stored_ints(1, "axes") if node.opset >= 13 else node.ints("axes", [])
    rank = node.rank() + len(axes or [])

    def run(x: Tensor, *rest: Any) -> Tensor:
        for axis in sorted(axis % rank for axis in axes or []):
            x = x.unsqueeze(axis)
        return x

    return run


def concat(node: Node) -> Run:
    """Concat."""
    axis = int(node.get("axis", 1))
    return lambda *parts: torch.cat(parts, dim=axis)


def split(node: Node) -> Run:
    """Split into given sizes, or into equal parts of which the last may be smaller."""
    sizes = node.stored_ints(1, "split sizes") if node.opset >= 13 else node.ints("split", [])
    count, axis = node.get("num_outputs", len(node.proto.output)), node.axis()

    def run(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        part = -(-x.shape[axis] // count)
        return tuple(torch.split(x, sizes or part, dim=axis))

    return run


def slicing(node: Node) -> Run:
    """Slice with steps of either sign; bounds as attributes up to opset 9, as inputs after."""
    if node.opset < 10:
        starts, ends = node.ints("starts", []), node.ints("ends", [])
        axes = node.ints("axes", list(range(len(starts))))
        return lambda x: _slice(x, zip(axes, starts, ends, [1] * len(starts), strict=True))

    def run(x: Tensor, *bounds: Numbers) -> Tensor:
        starts, ends, axes, steps = (*bounds, None, None)[:4]
        count = len(starts)
        where = range(count) if axes is None else axes
        return _slice(x, zip(where, starts, ends, [1] * count if steps is None else steps, strict=True))

    return run


def _slice(x: Tensor, cuts: Any) -> Tensor:
    for axis, start, end, step in cuts:
        cut: list[slice] = [slice(None)] * x.dim()
        if step > 0:
            cut[axis] = slice(start, end, step)
            x = x[tuple(cut)]
            continue
        size = x.shape[axis]
        kept = range(*slice(start, end, step).indices(size))
        first = size - 1 - kept.start
        cut[axis] = slice(first, first - step * len(kept), -step)
        x = x.flip(axis)[tuple(cut)]
    return x


def pad(node: Node) -> Run:
    """Pad in the modes constant, reflect, edge and wrap, on any axes."""
    mode = node.demand("mode", "constant", allowed=("constant", "reflect", "edge", "wrap"))
    rank = node.rank()
    if node.opset < 11:
        amounts, fill = node.ints("pads", []), node.get("value", 0.0)
        return lambda x: _pad(x, amounts, mode=mode, fill=fill)
    value = node.constant(2)
    if node.has(2) and value is None:
        raise node.refusal("its fill value is computed")
    fill = 0.0 if value is None else value.item()
    axes = node.stored_ints(3, "axes")

    def run(x: Tensor, amounts: Numbers, *rest: Any) -> Tensor:
        if axes is None:
            return _pad(x, amounts, mode=mode, fill=fill)
        full = [0] * (2 * rank)
        for i, axis in enumerate(axes):
            full[axis % rank], full[axis % rank + rank] = amounts[i], amounts[i + len(axes)]
        return _pad(x, full, mode=mode, fill=fill)

    return run


def _pad(x: Tensor, amounts: Sequence[int], *, mode: str, fill: float) -> Tensor:
    rank = x.dim()
    pairs = [(amounts[axis], amounts[axis + rank]) for axis in range(rank)]
    if mode == "constant":
        flat = [amount for pair in reversed(pairs) for amount in pair]
        while len(flat) > 2 and flat[-2:] == [0, 0]:
            flat = flat[:-2]
        return F.pad(x, flat, value=fill)
    for axis, (before, after) in enumerate(pairs):
        if (before, after) != (0, 0):
            x = x.index_select(axis, torch.tensor(_mirrored(x.shape[axis], mode, before=before, after=after)))
    return x


def _mirrored(size: int, mode: str, *, before: int, after: int) -> list[int]:
    """Return where each value along a padded axis comes from."""
    places = range(-before, size + after)
    if mode == "edge":
        return [min(max(place, 0), size - 1) for place in places]
    if mode == "wrap":
        return [place % size for place in places]
    period = max(2 * (size - 1), 1)
    return [min(place % period, period - place % period) if size > 1 else 0 for place in places]


def expand(node: Node) -> Run:
    """Expand: broadcasting in both directions, so a 1 keeps the size that is there."""

    def run(x: Tensor, to: Numbers) -> Tensor:
        sizes = list(to)
        x = x.reshape([1] * (len(sizes) - x.dim()) + list(x.shape))
        sizes = [1] * (x.dim() - len(sizes)) + sizes
        return x.expand([-1 if isinstance(size, int) and size == 1 else size for size in sizes])

    return run


def tile(node: Node) -> Run:
    """Tile: every axis repeated."""
    return lambda x, counts: x.repeat(list(counts))


def gather(node: Node) -> Run:
    """Gather slices by index; negative ones count from the end."""
    axis, stored = node.axis(), node.constant(1)
    if stored is not None and stored.ndim == 0:
        place = int(stored)
        return lambda x, indices: x.select(axis, place)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        if stored is None or (stored < 0).any():
            indices = torch.where(indices < 0, indices + x.shape[axis], indices)
        if axis == 0 and x.dim() == 2 and indices.dim() > 0:
            return F.embedding(indices, x)
        flat = x.index_select(axis, indices.reshape(-1))
        return flat.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])

    return run


def gather_elements(node: Node) -> Run:
    """GatherElements; negative indices count from the end."""
    axis = node.axis()

    def run(x: Tensor, indices: Tensor) -> Tensor:
        return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).long())

    return run


def gather_nd(node: Node) -> Run:
    """GatherND: slices by the index rows along the last axis; negative ones count from the end."""
    batch, rank = int(node.get("batch_dims", 0)), node.rank(1)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        before = [torch.arange(x.shape[axis]).reshape([-1] + [1] * (rank - 2 - axis)) for axis in range(batch)]
        return x[(*before, *indices.unbind(-1))]

    return run


def depth_to_space(node: Node) -> Run:
    """DepthToSpace in both orders."""
    block, mode = node.get("blocksize"), node.demand("mode", "DCR", allowed=("DCR", "CRD"))
    if mode == "CRD":
        return lambda x: F.pixel_shuffle(x, block)

    def run(x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        parts = x.reshape(count, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(count, channels // block**2, height * block, width * block)

    return run


def space_to_depth(node: Node) -> Run:
    """SpaceToDepth."""
    block = node.get("blocksize")

    def run(x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        parts = x.reshape(count, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(count, channels * block**2, height // block, width // block)

    return run


def constant_of_shape(node: Node) -> Run:
    """ConstantOfShape: zeros unless the node stores a value."""
    import numpy as np
    from onnx import numpy_helper

    stored = node.get("value")
    value = np.zeros(1, np.float32) if stored is None else numpy_helper.to_array(stored)
    dtype = torch.from_numpy(value.copy()).dtype
    return lambda sizes: torch.full(list(sizes), value.item(), dtype=dtype)


def number_range(node: Node) -> Run:
    """Range of numbers that are known before the data."""
    return lambda start, limit, step: torch.arange(start.item(), limit.item(), step.item())


def trilu(node: Node) -> Run:
    """Trilu: the upper or lower triangle."""
    diagonal = (node.stored_ints(1, "diagonal") or [0])[0]
    function = torch.triu if node.get("upper", 1) else torch.tril
    return lambda x, *rest: function(x, diagonal)


def identity(node: Node) -> Run:
    """Identity."""
    return lambda x: x


def dropout(node: Node) -> Run:
    """Dropout at inference: nothing is dropped."""
    node.one_output()
    node.get("ratio")
    node.get("seed")
    training = node.constant(2)
    if node.has(2) and (training is None or bool(training)):
        raise node.refusal("its training_mode is not false")
    return lambda x, *rest: x
