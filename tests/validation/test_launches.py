"""Every rule that makes a measurement invalid goes red on the launch that breaks it, and on no other."""

from __future__ import annotations

from typing import Any

import pytest

from edgeexport.errors import DeviceError
from edgeexport.validation.launches import Demand, Findings, examine, read_launch
from edgeexport.validation.statistics import Drift

DEMAND = Demand(iterations=64, seconds=0.1, threads=1, cores=2)
CALM = Drift(0.0, shown=False)


def answer(median_ns: int = 1_000_000, **changes: Any) -> dict[str, Any]:
    """A good answer of mode `time`, with changes."""
    moment = {"boot_id": "b", "load_average": [0.1, 0.1, 0.1], "frequency_khz": 2_000_000, "governor": ""}
    good = {
        "runtime_version": "1.0",
        "model_digest": "sha256:m",
        "bench_digest": "sha256:p",
        "threads": {"requested": 1, "actual": 1},
        "accelerator": {"requested": "cpu", "actual": "cpu"},
        "load_ms": 3.0,
        "first_ms": 2.0,
        "iterations_ns": [median_ns - 1000, median_ns, median_ns + 1000] * 50,
        "timed": {"seconds": 0.2, "cpu_seconds": 0.2},
        "sentinel": {"before_ns": [10, 10], "after_ns": [10, 10]},
        "environment": {"before": moment, "after": moment},
        "clock": {"resolution_ns": 1.0},
    }
    return {**good, **changes}


def _examined(*answers: dict[str, Any], drift: Drift = CALM) -> Findings:
    launches = [read_launch(each) for each in answers]
    return examine(launches, DEMAND, drift=drift, medians=[launch.median_ms for launch in launches])


def _moment(**changes: Any) -> dict[str, Any]:
    moment = {**answer()["environment"]["before"], **changes}
    return {"environment": {"before": answer()["environment"]["before"], "after": moment}}


def test_good_launches_have_no_reasons_and_no_warnings() -> None:
    assert _examined(*[answer(**_moment(thermal_status=1)) for _ in range(6)]) == Findings((), (), noisy=False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iterations_ns": [1_000_000] * 63}, "too few samples"),
        ({"timed": {"seconds": 0.05, "cpu_seconds": 0.05}}, "too few samples"),
        ({"accelerator": {"requested": "gpu", "actual": "cpu"}}, "ran on cpu, gpu was asked for"),
        ({"threads": {"requested": 1, "actual": 4}}, "ran with 4 threads, 1 were asked for"),
        ({"timed": {"seconds": 0.2, "cpu_seconds": 0.39}}, "kept 1.9 cores busy"),
        ({"clock": {"resolution_ns": 100_000.0}}, "the clock ticks every 100000 ns"),
        (_moment(boot_id="other"), "rebooted"),
        ({"bench_digest": "sha256:other"}, "the device program changed"),
        ({"model_digest": "sha256:other"}, "the model file changed"),
        ({"runtime_version": "2.0"}, "the runtime changed"),
        (_moment(frequency_khz=1_500_000), "throttled: the processor fell from 2.00 to 1.50 GHz"),
        (_moment(throttle_events=3), "counted thermal throttling"),
        (_moment(firmware_throttled="0x50002"), "the firmware says 0x50002"),
        (_moment(thermal_status=2), "thermal status was None, then 2"),
        ({"affinity": {"requested": [0], "actual": [0, 1]}}, "ran on processors [0, 1], [0] were asked for"),
    ],
)
def test_one_broken_launch_makes_the_measurement_invalid(changes: dict[str, Any], reason: str) -> None:
    found = _examined(answer(), answer(**changes), answer())
    assert [text for text in found.reasons if reason in text], found
    assert not found.noisy


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (_moment(plugged=True), "the charger was plugged or unplugged"),
        (_moment(governor="powersave"), "the governor changed"),
        (_moment(battery_percent=12), "the battery is at 12 %"),
        (_moment(swapped_in_pages=7), "memory was swapped in"),
        (_moment(load_average=[3.0, 1.0, 1.0]), "the load average was 3.0 on 2 cores"),
    ],
)
def test_what_may_matter_is_a_warning(changes: dict[str, Any], warning: str) -> None:
    found = _examined(answer(), answer(**changes), answer())
    assert not found.reasons
    assert [text for text in found.warnings if warning in text], found


def test_launches_far_apart_are_noise() -> None:
    found = _examined(*[answer(value) for value in (1_000_000, 1_300_000, 800_000, 1_400_000, 700_000, 1_000_000)])
    assert "launches lie" in found.reasons[0]
    assert found.noisy


def test_launches_that_slow_down_one_after_another_are_noise() -> None:
    found = _examined(*[answer(1_000_000 + 15_000 * n) for n in range(6)])
    assert found.reasons == ("launch after launch went one way: by 7.5% in all",)
    assert found.noisy


def test_a_sentinel_that_drifted_is_noise_and_one_within_its_noise_is_a_warning() -> None:
    shown, hidden = (_examined(answer(), drift=Drift(0.12, shown=shown)) for shown in (True, False))
    assert "drifted by 12.0%" in shown.reasons[0]
    assert shown.noisy
    assert not hidden.reasons
    assert "within its noise" in hidden.warnings[0]


def test_a_contended_processor_is_a_warning() -> None:
    found = _examined(answer(timed={"seconds": 0.4, "cpu_seconds": 0.2}))
    assert not found.reasons
    assert "50% of its time" in found.warnings[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"iterations_ns": []},
        {"iterations_ns": [0, 1]},
        {"load_ms": "fast"},
        {"threads": None},
        {"timed": {"seconds": 0.0, "cpu_seconds": 0.0}},
        {"sentinel": {"before_ns": [], "after_ns": [10]}},
        {"sentinel": {"before_ns": [0], "after_ns": [10]}},
        {"probes": [[0, 10], [149, 10]]},
        {"probes": [[1, 10], [150, 10]]},
        {"probes": [[0, 10], [80, 10], [40, 10], [150, 10]]},
        {"probes": [[0, 0], [150, 10]]},
        _moment(firmware_throttled="throttled"),
        _moment(firmware_throttled="0x"),
    ],
)
def test_an_answer_that_is_no_launch_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DeviceError, match="the answer"):
        read_launch(answer(**changes))
