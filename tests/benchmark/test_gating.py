"""The gate passes, fails and refuses, each for a reason that it names."""

from __future__ import annotations

from typing import Any

import pytest

from edgeexport.benchmark.front import Benched
from edgeexport.benchmark.gating import gate, share_of
from edgeexport.errors import CheckFailed, DeviceError, RequestError
from tests.benchmark.records import MEDIANS, entry, record


def _states(new: Any, *, allowed: float = 0.05) -> dict[str, tuple[str, str]]:
    return {each.what: (each.state, each.reason) for each in gate(record(new), record(), allowed=allowed)}


def test_the_same_figures_hold() -> None:
    assert _states(entry()) == {"latency": ("holds", ""), "peak memory": ("holds", "")}
    Benched(record(), gate(record(), record(), allowed=0.05)).raise_faults()


def test_a_tenth_more_fails_a_gate_of_5_percent_and_holds_one_of_20() -> None:
    slower = entry([1.1 * value for value in MEDIANS])
    state, reason = _states(slower)["latency"]
    assert state == "fails"
    assert "1.1 times as long, 1.05 allowed" in reason
    assert _states(slower, allowed=0.2)["latency"][0] == "holds"
    with pytest.raises(CheckFailed, match="regression"):
        Benched(record(slower), gate(record(slower), record(), allowed=0.05)).raise_faults()


def test_a_difference_that_noise_explains_is_unproven_and_does_not_pass() -> None:
    noisy = entry([0.7, 1.5, 1.4, 0.8, 1.3, 1.2])
    assert _states(noisy)["latency"][0] == "unproven"
    with pytest.raises(DeviceError):
        Benched(record(noisy), gate(record(noisy), record(), allowed=0.05)).raise_faults()


def test_an_estimate_within_the_allowance_does_not_hold_when_the_noise_is_larger_than_it() -> None:
    wide = entry([0.85, 1.25, 0.9, 1.2, 0.95, 1.0])
    state, reason = _states(wide)["latency"]
    assert (state, "noise is larger than the 0.05 allowed" in reason) == ("unproven", True)
    assert _states(wide, allowed=0.4)["latency"][0] == "holds"
    with pytest.raises(DeviceError):
        Benched(record(wide), gate(record(wide), record(), allowed=0.05)).raise_faults()


def test_too_few_launches_are_unproven() -> None:
    assert "too few launches" in _states(entry([1.0]))["latency"][1]


def test_an_invalid_measurement_is_unproven() -> None:
    state, reason = _states(entry(valid=False, reasons=("too hot",), latency=None, memory=None))["latency"]
    assert (state, "too hot" in reason) == ("unproven", True)


def test_more_memory_fails() -> None:
    assert _states(entry(peak_bytes=33_000_000))["peak memory"] == ("fails", "1.1 times as much, 1.05 allowed")


def test_memory_that_is_not_there_any_more_is_unproven_and_what_never_was_is_not_judged() -> None:
    assert _states(entry(memory=None))["peak memory"] == (
        "unproven",
        "this measurement has none, the stored one VmHWM",
    )
    never = record(entry(memory=None))
    assert [each.what for each in gate(record(), never, allowed=0.05)] == ["latency"]


def test_a_machine_that_became_slower_itself_judges_nothing() -> None:
    assert "the machine itself takes 1.2 times as long" in _states(entry(sentinel_ms=1.2))["latency"][1]


def test_other_conditions_are_refused_by_name() -> None:
    with pytest.raises(RequestError, match=r"threads: 2 against 1; arena: False against None"):
        gate(record(entry(threads=2, arena=False)), record(), allowed=0.05)


def test_a_label_that_is_not_there_is_refused_unless_there_is_only_one() -> None:
    renamed = entry(label="other.onnx")
    assert _states(renamed)["latency"][0] == "holds"
    with pytest.raises(RequestError, match="not in the stored record"):
        gate(record(renamed), record(entry(), entry(label="b")), allowed=0.05)


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.1", 0.1), ("0%", 0.0)])
def test_shares_are_percents_or_fractions(text: str, share: float) -> None:
    assert share_of(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["five", "100%", "-1%", "nan", ""])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="not a share"):
        share_of(text)
