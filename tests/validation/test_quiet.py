"""Iterations timed while something else used the core count in no median; the model's own times never decide."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from edgeexport.errors import DeviceError
from edgeexport.validation.launches import Launch, read_launch
from edgeexport.validation.measure import measure
from edgeexport.validation.quiet import State, disturbed, states_of, undisturbed_ms
from edgeexport.validation.subjects import PLANS
from tests.validation.test_launches import _moment, answer
from tests.validation.test_measure import Scripted, _subject

QUIET, SHARED = 37_000, 54_000
BLOCK = 10


def _launch(states: str, *, level: float = 1.0, slower: float = 1.4) -> dict[str, Any]:
    """Blocks of ten iterations, `q` in a quiet and `s` in a shared moment, with the reference work between them."""
    times = [int(1_000_000 * level * (slower if state == "s" else 1)) for state in states for _ in range(BLOCK)]
    spent = [SHARED if state == "s" else QUIET for state in states]
    probes = [[number * BLOCK, ns] for number, ns in enumerate([*spent, spent[-1]])]
    seconds = {"seconds": 0.3, "cpu_seconds": 0.3}
    return {"iterations_ns": times, "probes": probes, "timed": seconds}


def _read(states: str, **more: Any) -> Launch:
    return read_launch(answer(**_launch(states, **more)))


def _state(launches: list[Launch]) -> State:
    return states_of(launches)[0]


def test_iterations_between_two_quiet_moments_count_and_no_others() -> None:
    launch = _read("qqqsssqq")
    calm = undisturbed_ms(launch, _state([launch]))
    assert len(calm) == 4 * BLOCK  # the last quiet block before the shared ones ended in a shared moment
    assert calm.max() == 1.0


def test_all_iterations_count_where_no_reference_work_was_done() -> None:
    launch = read_launch(answer())
    assert _state([launch]) == State()
    assert len(undisturbed_ms(launch, State())) == len(launch.times_ms)
    assert not disturbed(launch, State())


def test_the_fastest_state_counts_while_it_is_common() -> None:
    assert _state([_read("qqqqqsssssss")]).low == QUIET
    rare = _state([_read("q" + "s" * 40)])
    assert (rare.low, rare.fastest) == (SHARED, True)
    seldom = _state([_read("qqqqqq" + "s" * 40)])
    assert (seldom.low, seldom.fastest) == (SHARED, False)


def test_a_broad_state_above_does_not_draw_the_fast_one_to_itself() -> None:
    spent = [37_000] * 60 + [42_000 + 60 * step for step in range(100)]
    launch = read_launch(answer(probes=[[min(index, 150), ns] for index, ns in enumerate(spent)]))
    assert _state([launch]).low == 37_000
    assert _state([launch]).fastest


def test_the_times_of_the_model_do_not_decide() -> None:
    """A model that is slow now and then, with the core quiet, stays slow now and then."""
    launch = _read("qqqqqqqqqq")
    times = np.array(launch.iterations_ns)
    times[::2] *= 3
    spiky = read_launch(answer(**{**_launch("qqqqqqqqqq"), "iterations_ns": times.tolist()}))
    assert len(undisturbed_ms(spiky, _state([spiky]))) == len(times)


def test_a_launch_without_a_quiet_moment_is_disturbed() -> None:
    state = _state([_read("q" * 20)])
    assert disturbed(_read("s" * 20), state)
    assert disturbed(_read("s" * 17 + "qqq"), state)
    assert not disturbed(_read("s" * 17 + "qqqq"), state)


def test_five_percent_are_seen_through_a_core_that_is_shared_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same times without the reference work tell next to nothing."""
    rng = np.random.default_rng(0)

    def script(digest: str, number: int) -> dict[str, Any]:
        level = (1.05 if digest.endswith("b") else 1.0) * (1 + 0.002 * (number % 3))
        first = int(rng.integers(4, 37))
        states = "q" * first + "s" * (40 - first)
        return _launch(states if rng.random() < 0.5 else states[::-1], level=level)

    measured, compared = measure([_subject("a"), _subject("b")], device=Scripted(script))
    assert [each.reasons for each in measured] == [(), ()]
    assert compared[0].claim == "slower"
    assert compared[0].ratio.value == pytest.approx(1.05, abs=0.005)
    assert measured[0].latency
    assert 0.2 < measured[0].latency.undisturbed < 0.9
    of_quiet = [
        measured[0].latency.median_ms.value,
        measured[0].latency.median_ms.high,
        measured[0].latency.sustained_ms,
    ]
    assert of_quiet == pytest.approx([1.0, 1.0, 1.0], abs=0.01)
    assert measured[0].latency.p90_ms == pytest.approx(1.4, abs=0.01)  # tails hold every iteration
    assert "something else used the core during" in measured[0].warnings[-1]

    # No more rounds than it takes: of many, the last few may happen to be quiet all through.
    monkeypatch.setitem(PLANS, "brief", dataclasses.replace(PLANS["brief"], most=8))
    blind = Scripted(lambda digest, number: {**script(digest, number), "probes": []})
    measured, compared = measure([_subject("a"), _subject("b")], device=blind)
    assert not compared or (compared[0].ratio.high or 9) / (compared[0].ratio.low or 1) > 1.3


@pytest.mark.parametrize(("whose", "aside"), [("a", [1, 1, 1]), ("b", [0, 1, 0])])
def test_a_round_counts_for_a_subject_if_its_own_launch_and_the_first_ones_were_quiet(
    whose: str, aside: list[int]
) -> None:
    def script(digest: str, number: int) -> dict[str, Any]:
        level = 1.1 if digest.endswith("b") else 1.0
        return _launch(
            "s" * 20 if number == 2 and digest.endswith(whose) else "q" * 20, level=level + 0.3 * (number == 4)
        )

    measured, compared = measure([_subject(name) for name in "abc"], device=Scripted(script))
    assert [each.set_aside for each in measured] == aside
    assert [round(each.ratio.value, 3) for each in compared] == [1.1, 1.0]


def test_too_few_calm_rounds_make_it_invalid() -> None:
    """Each subject has its quiet moments, and never both in one round."""

    def script(digest: str, number: int) -> dict[str, Any]:
        return _launch(("q" if number % 2 == digest.endswith("b") else "s") * 20)

    device = Scripted(script)
    measured, compared = measure([_subject("a"), _subject("b")], device=device)
    assert not compared
    assert all("apart (limit 10%)" in each.reasons[0] for each in measured)
    assert len([mode for mode, _ in device.started if mode == "time"]) == 2 * PLANS["brief"].most


def test_a_core_that_is_shared_nearly_always_is_measured_as_it_is_and_said_to_be() -> None:
    device = Scripted(lambda *_: _launch("q" * 4 + "s" * 30))
    measured, _ = measure([_subject("a")], device=device)
    assert measured[0].latency
    assert measured[0].latency.median_ms.value == pytest.approx(1.4)
    assert "alone, the model would be faster" in measured[0].warnings[-1]


@pytest.mark.parametrize(
    "slow", [lambda number: number % 2 == 0, lambda number: number > 3], ids=["by turns", "a step"]
)
def test_a_clock_that_slows_down_is_no_neighbour(slow: Any) -> None:
    """The sentinel moves as much as the reference work does: nothing is set aside without a word."""

    def script(digest: str, number: int) -> dict[str, Any]:
        factor = 1.2 if slow(number) else 1.0
        launch = _launch("q" * 20, level=factor)
        probes = [[place, int(ns * factor)] for place, ns in launch["probes"]]
        pieces = [int(1_500_000 * factor)] * 12
        return {**launch, "probes": probes, "sentinel": {"before_ns": pieces, "after_ns": pieces}}

    measured, _ = measure([_subject("a")], device=Scripted(script))
    assert not measured[0].valid
    assert any("throttled" in reason for reason in measured[0].reasons)


def test_subjects_on_other_processors_have_a_state_of_their_own() -> None:
    def script(digest: str, number: int) -> dict[str, Any]:
        launch = _launch("q" * 20)
        factor = 3 if digest.endswith("b") else 1
        affinity = {"requested": [1], "actual": [1]} if factor == 3 else {"requested": None, "actual": []}
        return {**launch, "probes": [[place, ns * factor] for place, ns in launch["probes"]], "affinity": affinity}

    little = dataclasses.replace(_subject("b"), affinity=(1,))
    measured, _ = measure([_subject("a"), little], device=Scripted(script))
    assert [each.valid for each in measured] == [True, True]
    assert [each.set_aside for each in measured] == [0, 0]


def test_a_launch_that_is_lost_shifts_no_round_of_the_others() -> None:
    def script(digest: str, number: int) -> dict[str, Any]:
        if digest.endswith("b") and number == 3:
            raise DeviceError("the cable was pulled")
        return _launch("s" * 20 if number == 5 and digest.endswith("a") else "q" * 20)

    measured, _ = measure([_subject("a"), _subject("b")], device=Scripted(script))
    assert [each.valid for each in measured] == [True, False]
    assert measured[0].set_aside == 1


def test_what_the_system_says_of_a_round_that_is_set_aside_still_counts() -> None:
    """A processor that throttled between two rounds that count has not been quiet."""

    def script(digest: str, number: int) -> dict[str, Any]:
        level = 1 + 0.08 * (number % 2) * digest.endswith("b")  # the ratio stays wide: there are more rounds than six
        hot = _moment(firmware_throttled="0x4") if number == 8 else {}
        return {**_launch("s" * 20 if number == 8 else "q" * 20, level=level), **hot}

    measured, _ = measure([_subject("a"), _subject("b")], device=Scripted(script))
    assert [each.set_aside for each in measured] == [1, 1]
    assert all("the firmware says 0x4" in each.reasons[0] for each in measured)


def test_after_the_last_round_the_state_counts_that_tells_the_ratio_more_closely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first six rounds were quiet, and say different things; the other nine shared the core, and say the same."""
    monkeypatch.setitem(PLANS, "brief", dataclasses.replace(PLANS["brief"], most=15))

    def script(digest: str, number: int) -> dict[str, Any]:
        level = 1.0 if digest.endswith("a") else 1.3 if number in {2, 4, 6} else 1.1
        return _launch(("q" if number <= 6 else "s") * 20, level=level)

    device = Scripted(script)
    measured, compared = measure([_subject("a"), _subject("b")], device=device)
    assert len([mode for mode, _ in device.started if mode == "time"]) == 2 * 15
    assert [each.set_aside for each in measured] == [6, 6]
    assert compared[0].ratio.value == pytest.approx(1.1, abs=0.001)
    assert any("alone, the model would be faster" in text for text in measured[0].warnings)


def test_a_neighbour_at_the_end_of_each_launch_is_no_loss_of_sustained_speed() -> None:
    """Three quarters of the quiet iterations take 1 ms, the last quarter 1.1 ms: that is the model's own."""

    def script(*_: Any) -> dict[str, Any]:
        launch = _launch("q" * 32 + "s" * 10)
        times = [int(ns * 1.1) if 240 <= place < 320 else ns for place, ns in enumerate(launch["iterations_ns"])]
        return {**launch, "iterations_ns": times}

    measured, _ = measure([_subject("a")], device=Scripted(script))
    assert measured[0].latency
    assert measured[0].latency.median_ms.value == pytest.approx(1.0)
    assert measured[0].latency.sustained_ms == pytest.approx(1.1)


def test_short_moments_that_no_round_shares_leave_all_iterations_to_count() -> None:
    """Quiet and shared moments by turns: no state lasts, and as the mixture is always the same, the median holds."""
    device = Scripted(lambda *_: _launch("qs" * 20, slower=1.04))
    measured, _ = measure([_subject("a")], device=device)
    assert measured[0].latency
    assert measured[0].latency.undisturbed == 1.0
    assert measured[0].set_aside == 0
    assert "alone, the model would be faster" in measured[0].warnings[-1]


def test_the_most_common_state_counts_where_a_faster_one_never_lasts() -> None:
    device = Scripted(lambda *_: _launch("qs" * 12 + "s" * 10))
    measured, _ = measure([_subject("a")], device=device)
    assert measured[0].latency
    assert measured[0].latency.median_ms.value == pytest.approx(1.4)
    assert measured[0].latency.iterations == 6 * 34 * BLOCK
    assert 0.2 < measured[0].latency.undisturbed < 0.4
