"""Statistics of measurements: intervals over launches, tail estimates, ratios, drift; and seeded resampling for others.

The rule: variance is taken where it arises. Iterations of one process agree with each other and not with the next
process, so launches are what is resampled first (Kalibera and Jones, ISMM 2013). No sample that is given is dropped, no
percentile is stated that the number of samples does not support, and everything random has a seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeexport.records.measurement import Claim, Interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[Any]

DRAWS = 10_000
# With fewer launches not even the range of their medians is a 95 % interval (5: 93.75 %, 6: 96.9 %).
LEAST_LAUNCHES = 6
LEAST_EFFECT = 0.02
CHUNK_VALUES = 4_000_000


@dataclass(frozen=True)
class Drift:
    """How far a machine's speed moved while it measured: a share (0.05 is 5 %), and whether more than noise."""

    share: float
    shown: bool


def median_interval(launches: Sequence[Floats], *, seed: int, draws: int = DRAWS) -> Interval:
    """Return the median of launch medians with its 95 % interval; no bounds below 6 launches.

    The interval is the two-level bootstrap's (launches, then iterations), widened where it is narrower to the order
    statistics' interval of the median, since a bootstrap of few launches is too sure of itself.
    """
    import numpy as np

    medians = np.array([np.median(times) for times in launches])
    if len(launches) < LEAST_LAUNCHES:
        return Interval(float(np.median(medians)))
    rng = np.random.default_rng(seed)
    drawn = np.median(_drawn_medians(launches, _drawn_launches(len(launches), draws, rng=rng), rng=rng), axis=1)
    return _widened(medians, drawn)


def paired_ratio(candidate: Sequence[Floats], baseline: Sequence[Floats], *, seed: int, draws: int = DRAWS) -> Interval:
    """Return candidate / baseline: the median over rounds of the ratio of launch medians, with its 95 % interval.

    The n-th launches of both belong to one round, run one after the other: they are resampled together, so what
    slows down a whole round cancels. Below 6 rounds there are no bounds.
    """
    import numpy as np

    if len(candidate) != len(baseline):
        raise ValueError(f"rounds do not pair: {len(candidate)} and {len(baseline)} launches")
    ratios = np.array([np.median(a) / np.median(b) for a, b in zip(candidate, baseline, strict=True)])
    if len(ratios) < LEAST_LAUNCHES:
        return Interval(float(np.median(ratios)))
    rng = np.random.default_rng(seed)
    chosen = _drawn_launches(len(ratios), draws, rng=rng)
    drawn = _drawn_medians(candidate, chosen, rng=rng) / _drawn_medians(baseline, chosen, rng=rng)
    return _widened(ratios, np.median(drawn, axis=1))


def unpaired_ratio(candidate: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Return candidate / baseline of launch medians from two sessions, which do not pair.

    The estimate is Hodges and Lehmann's. The interval is the rank-sum test's, turned round (Bauer 1972): the k-th
    smallest and largest of all ratios, k by the normal approximation. Below 6 launches on either side: no bounds.
    """
    import numpy as np

    ratios = np.sort(np.divide.outer(np.asarray(candidate, float), np.asarray(baseline, float)), axis=None)
    value, count, other = float(np.median(ratios)), len(candidate), len(baseline)
    if min(count, other) < LEAST_LAUNCHES:
        return Interval(value)
    pairs = count * other
    rank = max(1, math.floor(pairs / 2 - 1.96 * math.sqrt(pairs * (count + other + 1) / 12)))
    return Interval(value, float(ratios[rank - 1]), float(ratios[pairs - rank]))


def claim(ratio: Interval, *, drift: float) -> Claim:
    """Return what a ratio shows: its interval must exclude 1, and its effect exceed 2 % and the sentinel's drift."""
    if ratio.low is None or ratio.high is None:
        return "too few launches to say"
    if abs(ratio.value - 1) <= max(LEAST_EFFECT, drift):
        return "no difference shown"
    return "faster" if ratio.high < 1 else "slower" if ratio.low > 1 else "no difference shown"


def order_statistic_ranks(count: int, *, confidence: float = 0.95) -> tuple[int, int] | None:
    """Return the 1-based ranks between which the median lies with `confidence`, or None when there are too few.

    The narrowest symmetric pair: 6 values give (1, 6) with 96.9 %, 10 give (2, 9) with 97.9 %.
    """
    found = None
    for low in range(1, count // 2 + 1):
        covered = 1 - 2 * sum(math.comb(count, below) for below in range(low)) / 2**count
        found = (low, count + 1 - low) if covered >= confidence else found
    return found


def tail_estimate(samples: Floats, percentile: float) -> float | None:
    """Return an upper estimate of a percentile (0.9, say) with 99 % confidence, or None with too few samples.

    MLPerf LoadGen's early-stopping estimate (tolerance 0): drop the t - 1 highest and take the highest of the rest,
    t being the largest number of excesses that still shows the percentile. p90 needs 64 samples, p99 662.
    """
    import numpy as np

    excesses = _allowed_excesses(len(samples), percentile)
    return None if excesses == 0 else float(np.partition(samples, len(samples) - excesses)[len(samples) - excesses])


def outliers(samples: Floats) -> tuple[int, int]:
    """Return how many samples lie outside Tukey's fences: mild (1.5 IQR, the severe ones included), severe (3 IQR)."""
    import numpy as np

    low, high = np.quantile(samples, [0.25, 0.75])
    beyond = np.maximum(low - samples, samples - high)
    return int((beyond > 1.5 * (high - low)).sum()), int((beyond > 3 * (high - low)).sum())


def spread(medians: Sequence[float]) -> float:
    """Return how far launches lie apart, as a share of their median: 1.4826 MAD, which one odd launch does not move."""
    import numpy as np

    values = np.asarray(medians)
    middle = float(np.median(values))
    return float(1.4826 * np.median(np.abs(values - middle)) / middle)


def trend(values: Sequence[float]) -> float:
    """Return Spearman's rank correlation with time, -1 to 1 (ties share their mean rank); 0 below 3 values."""
    import numpy as np

    series = np.asarray(values, float)
    if len(series) < 3 or (series == series[0]).all():
        return 0.0
    ranks = ((series[:, None] > series).sum(1) + (series[:, None] >= series).sum(1)) / 2
    return float(np.corrcoef(ranks, np.arange(len(series)))[0, 1])


def sentinel_drift(before: Sequence[float], after: Sequence[float]) -> Drift:
    """Return how far the sentinel moved, from its times before and after each launch, in the order of time.

    Three signs of throttling are looked for: launch after launch ends slower than it began (sign test), the whole
    series climbs (Spearman), or its first and last quarter do not overlap at all (rank sum), which finds a step near
    either end; each at p < 0.01. `share` is the larger movement, shown or not.
    """
    import numpy as np

    first, last = np.asarray(before, float), np.asarray(after, float)
    within = float(np.median(last / first)) - 1
    series = np.column_stack([first, last]).ravel()
    quarter = max(1, len(series) // 4)
    start, end = np.sort(series[:quarter]), np.sort(series[-quarter:])
    along = float(np.median(end) / np.median(start)) - 1
    shown_within = _sign_test(int((last > first).sum()), len(first)) < 0.01
    shown_along = abs(trend(series.tolist())) * math.sqrt(len(series) - 1) > 2.576
    apart = bool(start[-1] < end[0] or end[-1] < start[0]) and 2 / math.comb(2 * quarter, quarter) < 0.01
    shown_along = shown_along or apart
    shown = [abs(share) for share, is_shown in ((within, shown_within), (along, shown_along)) if is_shown]
    return Drift(max(shown), True) if shown else Drift(max(abs(within), abs(along)), False)


def resamples(count: int, *, seed: int, draws: int = DRAWS) -> Iterator[NDArray[Any]]:
    """Yield blocks of bootstrap indices, each of shape (some draws, count), `draws` rows in all."""
    import numpy as np

    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK_VALUES // max(count, 1))
    for start in range(0, draws, rows):
        yield rng.integers(0, count, size=(min(rows, draws - start), count))


def bootstrap_means(values: Floats, *, seed: int, draws: int = DRAWS) -> Floats:
    """Return the means of `draws` bootstrap resamples of `values` (paired differences, say)."""
    import numpy as np

    return np.concatenate([values[block].mean(axis=1) for block in resamples(len(values), seed=seed, draws=draws)])


def percentile_interval(value: float, drawn: Floats, *, confidence: float = 0.95) -> Interval:
    """Return `value` with the percentile interval of its bootstrap draws."""
    import numpy as np

    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _widened(values: Floats, drawn: Floats) -> Interval:
    """The bootstrap's interval of the median of `values`, hulled with the order statistics'."""
    import numpy as np

    found = percentile_interval(float(np.median(values)), drawn)
    ranks = order_statistic_ranks(len(values))
    if ranks is None or found.low is None or found.high is None:
        return found
    ordered = np.sort(values)
    low, high = float(ordered[ranks[0] - 1]), float(ordered[ranks[1] - 1])
    return Interval(found.value, min(found.low, low), max(found.high, high))


def _drawn_launches(count: int, draws: int, *, rng: Any) -> NDArray[Any]:
    chosen: NDArray[Any] = rng.integers(0, count, size=(draws, count))
    return chosen


def _drawn_medians(launches: Sequence[Floats], chosen: NDArray[Any], *, rng: Any) -> Floats:
    """The median of a fresh resample of each chosen launch's iterations, in the shape of `chosen`.

    Nothing is resampled one by one: the k-th smallest of n uniform draws has the Beta(k, n + 1 - k) distribution, so
    one draw of it (and of the next one, for even n) picks the same order statistics that a resample would.
    """
    import numpy as np

    result = np.empty(chosen.shape)
    for index, times in enumerate(launches):
        ordered, where = np.sort(np.asarray(times, float)), chosen == index
        size, middle = len(ordered), (len(ordered) + 1) // 2
        low = rng.beta(middle, size + 1 - middle, size=int(where.sum()))
        high = low + (1 - low) * rng.beta(1, size - middle, size=len(low)) if size % 2 == 0 else low
        picked = [ordered[np.minimum((uniform * size).astype(int), size - 1)] for uniform in (low, high)]
        result[where] = (picked[0] + picked[1]) / 2
    return result


def _allowed_excesses(count: int, percentile: float) -> int:
    """The largest t with P(Binomial(count, 1 - percentile) <= t) <= 1 %, or 0."""
    below, t = 0.0, -1
    while t < count:
        log_mass = math.lgamma(count + 1) - math.lgamma(t + 2) - math.lgamma(count - t)
        log_mass += (t + 1) * math.log(1 - percentile) + (count - t - 1) * math.log(percentile)
        below += math.exp(log_mass)
        if below > 0.01:
            return max(t, 0)
        t += 1
    return 0


def _sign_test(larger: int, count: int) -> float:
    """Two-sided p that `larger` of `count` pairs rise, if rising and falling are alike."""
    extreme = max(larger, count - larger)
    tail: int = sum(math.comb(count, k) for k in range(extreme, count + 1))
    return min(1.0, 2 * tail / float(2**count))
