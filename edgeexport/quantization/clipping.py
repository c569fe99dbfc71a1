"""How ranges are chosen from what was seen: min-max, percentile, entropy, least squared error.

The rule: a method only narrows the extremes that were seen, never widens them. The histogram methods try thresholds t
and keep [max(low, -t), min(high, t)]; exact zeros stand apart, since every range represents zero without error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from edgeexport.quantization.histogram import HALF, Histogram

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PERCENTILE = 99.999
LEVELS = 256
# Thresholds tried, as parts of the largest magnitude.
_STEPS = 128
_LEAST_STEP = _STEPS // 8
_UNLIKELY = 1e-7

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


def _best(histogram: Histogram, seen: Limits, *, cost: Callable[[Histogram, Limits], float]) -> Limits:
    """Return the candidate of least cost; of equals the widest."""
    chosen, least = seen, float("inf")
    for candidate in _candidates(seen):
        price = cost(histogram, candidate)
        if price < least:
            chosen, least = candidate, price
    return chosen


def _candidates(seen: Limits) -> Iterator[Limits]:
    low, high = seen
    largest = max(-low, high)
    for step in range(_STEPS, _LEAST_STEP - 1, -1):
        threshold = largest * step / _STEPS
        yield max(low, -threshold), min(high, threshold)


def _divergence(histogram: Histogram, limits: Limits) -> float:
    import numpy as np

    first, last = _window(histogram, limits)
    inside = histogram.counts[first:last].astype(np.float64)
    real = inside.copy()
    real[0] += histogram.counts[:first].sum()
    real[-1] += histogram.counts[last:].sum()
    if not inside.any():
        return float("inf")
    starts = (np.arange(LEVELS) * len(inside)) // LEVELS
    used = np.repeat(np.add.reduceat((inside > 0).astype(np.float64), starts), np.diff([*starts, len(inside)]))
    mass = np.repeat(np.add.reduceat(inside, starts), np.diff([*starts, len(inside)]))
    quantized = np.where(inside > 0, mass / np.maximum(used, 1.0), 0.0) / inside.sum()
    real = real / real.sum()
    there = real > 0
    return float(np.sum(real[there] * np.log(real[there] / np.maximum(quantized[there], _UNLIKELY))))


def _window(histogram: Histogram, limits: Limits) -> tuple[int, int]:
    """Return the first bin within `limits` and the one after the last, at least LEVELS apart."""
    low, high = limits
    first = int(low // histogram.width) + HALF
    last = max(int(-(-high // histogram.width)) + HALF, first + LEVELS)
    return max(min(first, 2 * HALF - LEVELS), 0), min(last, 2 * HALF)


def _squared_error(histogram: Histogram, limits: Limits) -> float:
    import numpy as np

    low, high = limits
    centres: NDArray[np.float64] = histogram.edges()[:-1] + histogram.width / 2
    beyond = np.maximum(centres - high, 0.0) + np.maximum(low - centres, 0.0)
    step = (max(high, 0.0) - min(low, 0.0)) / (LEVELS - 1)
    error = np.where(beyond > 0, beyond**2, step**2 / 12)
    return float(np.dot(histogram.counts, error))
