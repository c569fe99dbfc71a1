"""How ranges are chosen from what was seen: min-max, percentile, entropy, least squared error.

The rule: a method only narrows the extremes that were seen, never widens them. Entropy and squared error try every edge
of a bin as threshold t and keep [max(low, -t), min(high, t)]; exact zeros stand apart, since every range represents
zero without error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeexport.quantization.histogram import HALF, Histogram

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

PERCENTILE = 99.999
LEVELS = 256
# The least threshold tried, as a part of the largest magnitude.
_LEAST = 1 / 8
_UNLIKELY = 1e-7
_BLOCK = 512

Limits = tuple[float, float]


def minmax(_: Histogram, seen: Limits) -> Limits:
    """Return the extremes themselves."""
    return seen


def percentile(histogram: Histogram, seen: Limits) -> Limits:
    """Return the limits that leave out (100 - PERCENTILE) / 2 percent of all values at either end, to within a bin."""
    import numpy as np

    counts = histogram.counts.copy()
    counts[HALF] += histogram.zeros
    running = np.cumsum(counts)
    total = int(running[-1])
    cut = total * (100.0 - PERCENTILE) / 200.0
    first = int(np.searchsorted(running, cut, side="right"))
    last = int(np.searchsorted(running, total - cut, side="left"))
    edges = histogram.edges()
    return max(seen[0], float(edges[first])), min(seen[1], float(edges[last + 1]))


def entropy(histogram: Histogram, seen: Limits) -> Limits:
    """Return the limits whose quantized distribution has the least Kullback-Leibler divergence from the real one.

    Migacz, "8-bit Inference with TensorRT", GTC 2017; here with LEVELS levels over at least 8 times as many bins.
    """
    return _best(histogram, seen, cost=_divergence)


def mse(histogram: Histogram, seen: Limits) -> Limits:
    """Return the limits with the least expected squared error: step²/12 inside, the clipped part outside."""
    return _best(histogram, seen, cost=_squared_error)


METHODS: dict[str, Callable[[Histogram, Limits], Limits]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


@dataclass(frozen=True)
class _Windows:
    """Candidates, the widest first: threshold in bins, first bin inside, first bin beyond, at least LEVELS apart."""

    seen: Limits
    threshold: Integers
    first: Integers
    last: Integers


def _best(histogram: Histogram, seen: Limits, *, cost: Callable[[Histogram, _Windows], Floats]) -> Limits:
    """Return the candidate of least cost; of equals the widest."""
    import numpy as np

    windows = _windows(histogram, seen)
    if not windows.threshold.size or not histogram.counts.any():
        return seen
    threshold = float(windows.threshold[int(np.argmin(cost(histogram, windows)))]) * histogram.width
    return max(seen[0], -threshold), min(seen[1], threshold)


def _windows(histogram: Histogram, seen: Limits) -> _Windows:
    import numpy as np

    low, high = seen
    widest = math.ceil(max(-low, high) / histogram.width)
    threshold = np.arange(widest, math.ceil(widest * _LEAST) - 1, -1, dtype=np.int64)
    first = np.maximum(math.floor(low / histogram.width), -threshold) + HALF
    last = np.minimum(math.ceil(high / histogram.width), threshold) + HALF
    wide = last - first >= LEVELS
    return _Windows(seen, threshold[wide], first[wide], last[wide])


def _divergence(histogram: Histogram, windows: _Windows) -> Floats:
    """Return the divergence of every candidate, by running sums: each takes LEVELS steps, not one for each bin.

    The clipped values count in the outermost bins of the real distribution; a level spreads its mass evenly over those
    of its bins that hold anything; where the quantized distribution has nothing, it is taken as _UNLIKELY.
    """
    import numpy as np

    counts = histogram.counts.astype(np.float64)
    mass, used, plogp = (_running(each) for each in (counts, counts > 0, _xlogx(counts)))
    found = []
    for start in range(0, len(windows.threshold), _BLOCK):
        first, last = windows.first[start : start + _BLOCK], windows.last[start : start + _BLOCK]
        edges = first[:, None] + (np.arange(LEVELS + 1) * (last - first)[:, None]) // LEVELS
        inside = mass[last] - mass[first]
        level = np.diff(mass[edges], axis=1)
        share = level / np.maximum(np.diff(used[edges], axis=1), 1.0) / np.maximum(inside, 1.0)[:, None]
        likely = np.log(np.maximum(share, _UNLIKELY))
        real, quantized = plogp[last] - plogp[first], (level * likely).sum(axis=1)
        ends = ((first, mass[first], likely[:, 0]), (last - 1, mass[-1] - mass[last], likely[:, -1]))
        for end, clipped, logarithm in ends:
            real += _xlogx(counts[end] + clipped) - _xlogx(counts[end])
            quantized += clipped * np.where(counts[end] > 0, logarithm, math.log(_UNLIKELY))
        found.append(np.where(inside > 0, (real - quantized) / mass[-1] - math.log(mass[-1]), np.inf))
    return np.concatenate(found)


def _squared_error(histogram: Histogram, windows: _Windows) -> Floats:
    """Return the expected squared error of every candidate, times the number of values."""
    import numpy as np

    counts = histogram.counts.astype(np.float64)
    centres = histogram.edges()[:-1] + histogram.width / 2
    moments = [_running(counts * centres**power) for power in range(3)]
    threshold = windows.threshold * histogram.width
    low, high = np.maximum(windows.seen[0], -threshold), np.minimum(windows.seen[1], threshold)
    step = (np.maximum(high, 0.0) - np.minimum(low, 0.0)) / (LEVELS - 1)
    rounding = step**2 / 12 * (moments[0][windows.last] - moments[0][windows.first])
    above = [each[-1] - each[windows.last] for each in moments]
    below = [each[windows.first] for each in moments]
    clipping = sum(part[2] - 2 * limit * part[1] + limit**2 * part[0] for part, limit in ((above, high), (below, low)))
    return np.asarray(rounding + clipping)


def _running(values: NDArray[np.generic]) -> Floats:
    """Return the sums of the first 0, 1, 2, ... values."""
    import numpy as np

    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _xlogx(values: Floats) -> Floats:
    import numpy as np

    return values * np.log(np.maximum(values, 1.0))
