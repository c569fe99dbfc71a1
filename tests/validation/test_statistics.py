"""Statistics against known distributions, published counts, and simulated comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeexport.records.measurement import Interval
from edgeexport.validation import statistics as st

RNG = np.random.default_rng


def _launches(rng: Any, count: int, *, between: float, within: float = 0.05, level: float = 1.0) -> list[Any]:
    centres = level * (1 + between * rng.standard_normal(count))
    return [centre * (1 + within * rng.standard_normal(100)) for centre in centres]


def test_the_point_estimate_is_the_median_of_launch_medians() -> None:
    launches = [np.array([1.0, 1.0, 99.0]), np.array([2.0, 2.0, 2.0]), np.array([3.0, 3.0, 0.0])]
    assert st.median_interval(launches, seed=0).value == 2.0


@pytest.mark.parametrize("count", [1, 5])
def test_below_six_launches_there_are_no_bounds(count: int) -> None:
    launches = _launches(RNG(0), count, between=0.01)
    assert st.median_interval(launches, seed=0).low is None
    assert st.paired_ratio(launches, launches, seed=0).high is None


@pytest.mark.parametrize(("count", "ranks"), [(5, None), (6, (1, 6)), (10, (2, 9))])
def test_order_statistic_ranks_are_the_published_ones(count: int, ranks: tuple[int, int] | None) -> None:
    assert st.order_statistic_ranks(count) == ranks


def test_the_interval_covers_the_true_median_at_least_19_times_in_20() -> None:
    rng = RNG(1)
    found = [st.median_interval(_launches(rng, 6, between=0.03), seed=k, draws=500) for k in range(300)]
    covered = sum(each.low <= 1.0 <= each.high for each in found if each.low is not None and each.high is not None)
    assert covered >= 0.93 * 300


def test_an_interval_is_the_same_for_the_same_seed() -> None:
    launches = _launches(RNG(2), 8, between=0.02)
    assert st.median_interval(launches, seed=5) == st.median_interval(launches, seed=5)


@pytest.mark.parametrize("size", [7, 8])
def test_drawn_medians_are_distributed_as_medians_of_resamples(size: int) -> None:
    values = RNG(3).exponential(size=size)
    chosen = np.zeros((20_000, 1), int)
    drawn = st._drawn_medians([values], chosen, rng=RNG(4))[:, 0]
    honest = np.median(RNG(5).choice(values, size=(20_000, size)), axis=1)
    quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
    np.testing.assert_allclose(np.quantile(drawn, quantiles), np.quantile(honest, quantiles), rtol=0.02)
    assert drawn.std() == pytest.approx(honest.std(), rel=0.03)


def test_a_model_against_itself_is_seldom_called_faster_or_slower() -> None:
    rng, claims = RNG(6), []
    for k in range(300):
        spread = (0.01, 0.03, 0.08)[k % 3]
        pair = [_launches(rng, 6, between=spread) for _ in range(2)]
        claims.append(st.claim(st.paired_ratio(pair[0], pair[1], seed=k, draws=500), drift=0.0))
    assert sum(each != "no difference shown" for each in claims) <= 0.05 * 300


@pytest.mark.parametrize(("level", "verdict"), [(1.10, "slower"), (0.90, "faster")])
def test_a_planted_tenth_is_found(level: float, verdict: str) -> None:
    rng = RNG(7)
    found = [
        st.claim(
            st.paired_ratio(
                _launches(rng, 6, between=0.01, level=level), _launches(rng, 6, between=0.01), seed=k, draws=500
            ),
            drift=0.0,
        )
        for k in range(100)
    ]
    assert sum(each == verdict for each in found) >= 98


def test_what_slows_down_a_whole_round_cancels() -> None:
    rounds = np.array([1.0, 1.5, 0.7, 2.0, 1.1, 0.9])
    ratio = st.paired_ratio([np.full(64, 0.8 * r) for r in rounds], [np.full(64, r) for r in rounds], seed=0)
    assert [ratio.value, ratio.low, ratio.high] == pytest.approx([0.8, 0.8, 0.8])


def test_rounds_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="6 and 5"):
        st.paired_ratio([np.ones(3)] * 6, [np.ones(3)] * 5, seed=0)


@pytest.mark.parametrize(
    ("ratio", "drift", "verdict"),
    [
        (Interval(0.5, 0.4, 0.6), 0.0, "faster"),
        (Interval(1.5, 1.4, 1.6), 0.0, "slower"),
        (Interval(0.5, 0.4, 1.01), 0.0, "no difference shown"),
        (Interval(0.985, 0.98, 0.99), 0.0, "no difference shown"),
        (Interval(0.95, 0.94, 0.96), 0.06, "no difference shown"),
        (Interval(0.5), 0.0, "too few launches to say"),
    ],
)
def test_a_claim_needs_the_interval_and_the_effect(ratio: Interval, drift: float, verdict: str) -> None:
    assert st.claim(ratio, drift=drift) == verdict


@pytest.mark.parametrize(
    ("count", "percentile", "dropped"),
    [(63, 0.90, None), (64, 0.90, 0), (1024, 0.90, 79), (661, 0.99, None), (662, 0.99, 0), (1024, 0.99, 2)],
)
def test_tails_follow_the_early_stopping_rule(count: int, percentile: float, dropped: int | None) -> None:
    samples = RNG(8).permutation(count).astype(float)
    expected = None if dropped is None else float(count - 1 - dropped)
    assert st.tail_estimate(samples, percentile) == expected


def test_a_tail_estimate_is_below_the_truth_once_in_a_hundred_at_most() -> None:
    rng = RNG(9)
    estimates = [st.tail_estimate(rng.random(200), 0.90) or 0.0 for _ in range(2000)]
    assert np.mean(np.asarray(estimates) < 0.90) <= 0.015


def test_outliers_are_counted_by_tukeys_fences() -> None:
    samples = np.concatenate([np.linspace(0, 1, 101), [2.0, 9.0]])
    mild, severe = st.outliers(samples)
    assert (mild, severe) == (2, 1)
    assert len(samples) == 103


def test_one_odd_launch_does_not_move_the_spread_but_disorder_does() -> None:
    assert st.spread([1.0, 1.01, 0.99, 1.0, 5.0]) < 0.02
    assert st.spread([1.0, 1.3, 0.8, 1.5, 0.7]) > 0.2


def test_trend_is_spearmans() -> None:
    assert st.trend([1, 2, 3, 9]) == pytest.approx(1.0)
    assert st.trend([9, 3, 2, 1]) == pytest.approx(-1.0)
    assert st.trend([2, 2, 2]) == 0.0
    assert st.trend([1, 1, 2, 2]) == pytest.approx(0.894, abs=1e-3)


def _traces(rng: Any, shape: Any, noise: float) -> tuple[Any, Any]:
    series = shape * (1 + noise * rng.standard_normal(24))
    return series[::2], series[1::2]


def test_steady_machines_seldom_seem_to_drift() -> None:
    rng = RNG(10)
    found = [st.sentinel_drift(*_traces(rng, np.ones(24), 0.03)) for _ in range(1000)]
    assert sum(each.shown and each.share > 0.05 for each in found) <= 10


@pytest.mark.parametrize(
    "shape",
    [
        1 + 0.15 * np.arange(24) / 23,
        1 + 0.1 * (np.arange(24) >= 12),
        1 + 0.1 * (np.arange(24) >= 18),
        1 + 0.1 * (np.arange(24) >= 6),
        1 + 0.1 * (np.arange(24) % 2),
    ],
    ids=["ramp", "step", "late step", "early step", "within"],
)
def test_machines_that_throttle_are_found(shape: Any) -> None:
    rng = RNG(11)
    found = [st.sentinel_drift(*_traces(rng, shape, 0.015)) for _ in range(300)]
    assert sum(each.shown and each.share > 0.05 for each in found) >= 297


def test_bootstrap_means_agree_with_theory() -> None:
    values = RNG(12).standard_normal(400)
    drawn = st.bootstrap_means(values, seed=0)
    assert drawn.shape == (10_000,)
    assert drawn.std() == pytest.approx(values.std() / 20, rel=0.05)
    interval = st.percentile_interval(float(values.mean()), drawn)
    assert interval.low is not None
    assert interval.low < values.mean()
