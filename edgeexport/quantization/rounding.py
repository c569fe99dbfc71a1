"""Choosing integers for a layer's weights, given what its inputs look like.

The rule: pure numbers: weight matrix, grid and moments in, integers out. `nearest` is what quantization does anyway;
`compensated` keeps the layer's outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgeexport.quantization.moments import Moments
from edgeexport.quantization.pairs import room

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# How far weights may leave the original ones to make good what earlier layers lost: a ridge, as a multiple of the
# inputs' mean variance. Less follows the samples further than they speak for others (chosen on EfficientNet-Lite0).
RIDGE = 5.0
# Keeps columns that the samples hardly move from taking errors without bound: a share of the mean variance.
DAMPING = 0.01
# Multiples of a scale that are tried; of outputs with many weights, whose errors average out, fewer.
MULTIPLES = tuple(1 + step / 64 for step in range(17))
_NARROW = 128
_AT_ONCE = 1 << 22
_BLOCK = 64


@dataclass(frozen=True)
class Grid:
    """What integers may be. scales: (groups, outputs, 1). limit: of their size.

    met: (ways, width), the columns with which each must fit 16-bit sums (`ort_saturation.partners`); None: no limit.
    """

    scales: Floats
    limit: int
    met: NDArray[np.int64] | None = None


def nearest(matrix: NDArray[Any], grid: Grid) -> Floats:
    """Return the integers nearest to weights. matrix: (groups, outputs, width); `grid.scales` make pairs fit."""
    import numpy as np

    rounded: Floats = np.clip(np.rint(matrix / grid.scales), -grid.limit, grid.limit)
    return rounded


def compensated(matrix: Floats, grid: Grid, *, moments: Moments, alike: bool = False) -> tuple[Floats, Floats]:
    """Return integers and scales that keep the layer's outputs over the samples, up to their mean, the bias's part.

    First the least-squares weights for the inputs that the quantized model gives, with a ridge towards the original
    ones; then column by column, largest variance first, each column's rounding error moved into the columns after it
    (Frantar et al. 2022, OPTQ, arXiv 2210.17323). This is done for scales up to a quarter larger than those given, and
    each output takes the one that loses least: the fewer weights it has, the more that wins. alike: one for all.
    """
    import numpy as np

    second, cross = moments.covariances()
    width = matrix.shape[2]
    unit = np.trace(second, axis1=1, axis2=2)[:, None, None] / width * np.eye(width) + 1e-12 * np.eye(width)
    ridge = second + RIDGE * unit
    aim = np.linalg.solve(ridge, (matrix @ (cross + RIDGE * unit)).transpose(0, 2, 1)).transpose(0, 2, 1)
    hessian = second + DAMPING * unit
    order = np.argsort(-np.diagonal(hessian, axis1=1, axis2=2), axis=1, kind="stable")
    hessian = np.take_along_axis(np.take_along_axis(hessian, order[:, :, None], axis=1), order[:, None, :], axis=2)
    places = np.argsort(order, axis=1)
    met = None
    if grid.met is not None:
        met = np.take_along_axis(places[:, grid.met], order[:, None, :], axis=2)
    aim = np.take_along_axis(aim, order[:, None, :], axis=2)
    chosen, scales = _best_scales(aim, replace(grid, met=met), hessian=hessian, alike=alike)
    return np.take_along_axis(chosen, places[:, None, :], axis=2), scales


def _best_scales(aim: Floats, grid: Grid, *, hessian: Floats, alike: bool) -> tuple[Floats, Floats]:
    """Round with one multiple of the scales after the other; keep for each output what loses least.

    grid.met: (groups, ways, width), in the order of `aim`.
    """
    import numpy as np

    inverse = np.linalg.inv(hessian)
    # inverse = Uᵀ U with U upper triangular: its row j says how column j's error is best spread over the later ones.
    upper = np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1)
    best, scales = np.empty_like(aim), grid.scales.copy()
    least = np.full((*aim.shape[:2], 1), np.inf)
    tries = MULTIPLES[:: -(-aim.shape[2] // _NARROW)]
    for multiples in _portions(tries, size=max(1, _AT_ONCE // aim.size)):
        # All at once, as if they were so many outputs more: the loop over columns is what takes the time.
        wide = np.concatenate([aim] * len(multiples), axis=1)
        tried = np.concatenate([(grid.scales * one).astype(np.float32).astype(np.float64) for one in multiples], axis=1)
        chosen = _in_order(wide, replace(grid, scales=tried), upper=upper)
        wrong = wide - chosen * tried
        lost = ((wrong @ hessian) * wrong).sum(axis=2, keepdims=True)
        for ours in zip(*(np.split(each, len(multiples), axis=1) for each in (chosen, tried, lost)), strict=True):
            better = np.broadcast_to(ours[2].sum() < least.sum(), least.shape) if alike else ours[2] < least
            best, scales, least = (np.where(better, *pair) for pair in zip(ours, (best, scales, least), strict=True))
    return best, scales


def _portions(values: tuple[float, ...], *, size: int) -> Iterator[tuple[float, ...]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _in_order(aim: Floats, grid: Grid, *, upper: NDArray[Any]) -> Floats:
    """Round column after column; what a column misses is moved into the columns after it."""
    import numpy as np

    left, chosen, width = aim.copy(), np.zeros_like(aim), aim.shape[2]
    for start in range(0, width, _BLOCK):
        end = min(start + _BLOCK, width)
        errors = np.empty((*aim.shape[:2], end - start))
        for column in range(start, end):
            here = slice(column, column + 1)
            bounds = (
                (-grid.limit, grid.limit)
                if grid.met is None
                else room(_partners(chosen, grid.met[:, :, column]), limit=grid.limit)
            )
            chosen[:, :, here] = np.clip(np.rint(left[:, :, here] / grid.scales), *bounds)
            error = (left[:, :, here] - chosen[:, :, here] * grid.scales) / upper[:, here, here]
            errors[:, :, column - start] = error[:, :, 0]
            left[:, :, column + 1 : end] -= error * upper[:, here, column + 1 : end]
        left[:, :, end:] -= errors @ upper[:, start:end, end:]
    return chosen


def _partners(chosen: Floats, columns: NDArray[np.int64]) -> Floats:
    """Return the integers of columns (groups, ways) as (ways, groups, outputs, 1); 0 while they are not chosen."""
    import numpy as np

    return np.take_along_axis(chosen, columns[:, None, :], axis=2).transpose(2, 0, 1)[..., None]
