"""Paired statistics: how sure can one be of a difference measured on the same samples.

The rule: a bound that says "proven" is right at least 19 times in 20; where a method is only nearly so, it is widened.
Everything is seeded, so that the same outputs always give the same verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

TWO_SIDED = NormalDist().inv_cdf(0.975)
ONE_SIDED = NormalDist().inv_cdf(0.95)
CHUNK_VALUES = 2_000_000


def upper_limit(lost: float, gained: float, *, pairs: float, z: float) -> float:
    """Return the upper confidence limit of (lost - gained) / pairs for paired right/wrong samples.

    Tango's score interval (Statistics in Medicine 17, 1998), the inversion of McNemar's test, with half a pair added to
    each cell of the 2x2 table (Agresti and Min, Statistics in Medicine 24, 2005). With z = 1.645 its exact coverage was
    0.950 or more on a grid of 52 cases (50 to 1000 pairs, 0.5 to 40 % discordant); Tango's own falls to 0.940 there.
    """
    b, c, n = lost + 0.5, gained + 0.5, pairs + 2.0
    low, high = (b - c) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _score(b, c, pairs=n, difference=middle) > -z:
            low = middle
        else:
            high = middle
    return max(high, (lost - gained) / pairs)


def _score(b: float, c: float, *, pairs: float, difference: float) -> float:
    """Tango's statistic for the hypothesis (b - c) / pairs = difference."""
    n = pairs
    linear = (2 * n - b + c) * difference - b - c
    constant = -c * difference * (1 - difference)
    nuisance = (math.sqrt(max(linear * linear - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * nuisance + difference * (1 - difference))
    return (b - c - n * difference) / math.sqrt(variance) if variance > 0 else -math.inf


def mcnemar_p(lost: int, gained: int) -> float:
    """Return the one-sided mid-p of McNemar's exact test that nothing was lost (Fagerland, Lydersen, Laake 2013)."""
    pairs = lost + gained
    if not pairs:
        return 1.0
    tail = sum(_binomial_half(pairs, count) for count in range(lost + 1, pairs + 1))
    return min(1.0, tail + 0.5 * _binomial_half(pairs, lost))


def _binomial_half(pairs: int, count: int) -> float:
    log = math.lgamma(pairs + 1) - math.lgamma(count + 1) - math.lgamma(pairs - count + 1) - pairs * math.log(2)
    return math.exp(log)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number, step-down (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [1.0] * len(p_values)
    running = 0.0
    for step, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - step) * p_values[index]))
        corrected[index] = running
    return corrected


def mean_draws(differences: NDArray[Any], *, draws: int, seed: int) -> NDArray[Any]:
    """Return bootstrap draws of the mean of per-sample differences."""
    import numpy as np

    generator = np.random.default_rng(seed)
    size = differences.size
    chunk = max(1, CHUNK_VALUES // size)
    parts = [
        differences[generator.integers(0, size, (min(chunk, draws - start), size))].mean(axis=1)
        for start in range(0, draws, chunk)
    ]
    return np.concatenate(parts)


def statistic_draws(statistic: Callable[[NDArray[Any]], float], size: int, *, draws: int, seed: int) -> NDArray[Any]:
    """Return bootstrap draws of `statistic(indices)` over `size` samples."""
    import numpy as np

    generator = np.random.default_rng(seed)
    return np.array([statistic(generator.integers(0, size, size)) for _ in range(draws)])


def percentile_interval(value: float, draws: NDArray[Any], *, samples: int) -> tuple[float, float, float]:
    """Return (low, high, one-sided upper bound) at 95 % from bootstrap draws, widened for few samples.

    Percentiles alone are too narrow by about sqrt((n - 1) / n) and by the normal's thinner tails (Hesterberg, The
    American Statistician 69, 2015); the tails are those of Student's t by the first Cornish-Fisher term.
    """
    import numpy as np

    def limit(share: float, z: float) -> float:
        freedom = max(1, samples - 1)
        widen = math.sqrt((freedom + 1) / freedom) * (1 + (z * z + 1) / (4 * freedom))
        return value + widen * (float(np.quantile(draws, share)) - value)

    return limit(0.025, TWO_SIDED), limit(0.975, TWO_SIDED), limit(0.95, ONE_SIDED)
