"""Measuring real tiny models in real processes, and scripted devices for what real ones do seldom."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeexport import devices
from edgeexport.errors import DataError, DeviceError
from edgeexport.records.base import file_digest
from edgeexport.records.device import DeviceFacts
from edgeexport.validation import statistics
from edgeexport.validation.launches import Launch
from edgeexport.validation.measure import PLANS, Plan, Subject, measure, run_on_device
from tests.device_bench.tiny import dense_model, sample
from tests.needs import need
from tests.validation.test_launches import answer

FACTS = DeviceFacts(
    device="scripted", arch="x86_64", cpu="c", features=(), cores=1, os="linux", kernel="k", python="3.11"
)
MEMORY = {"memory": {"peak_bytes": 2000, "before_load_bytes": 1000, "method": "VmHWM"}}


class Scripted:
    """A device whose launches take what a function says: model digest and number of the launch -> changes."""

    name = "scripted"

    def __init__(self, script: Any) -> None:
        self.script = script
        self.started: list[tuple[str, str]] = []

    def describe(self, *_: Any, **__: Any) -> DeviceFacts:
        return FACTS

    def can_judge(self, *_: Any, **__: Any) -> tuple[bool, str]:
        return True, ""

    def run(self, job: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        digest, mode = str(job.get("sha256", "")), str(job["mode"])
        self.started.append((mode, digest))
        if mode == "memory":
            return MEMORY
        number = sum(each == ("time", digest) for each in self.started)
        changes = self.script(digest, number)
        return answer(**{"model_digest": digest, "timed": {"seconds": 0.3, "cpu_seconds": 0.3}, **changes})


def _subject(label: str) -> Subject:
    return Subject(label, Path(label), f"sha256:{label}", "ort", sample())


def _times(level: float, number: int) -> dict[str, Any]:
    middle = int(1_000_000 * level * (1 + 0.003 * (number % 3)))
    return {"iterations_ns": [middle - 500, middle, middle + 500] * 40}


def _real(label: str, path: Path, **more: Any) -> Subject:
    return Subject(label, path, file_digest(path), "ort", sample(8, width=128), **more)


@pytest.fixture
def short(tmp_path: Path) -> Path:
    need("ort")
    return dense_model(tmp_path / "short.onnx", 2, width=128)


def _golden(path: Path) -> dict[str, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return {"y": np.asarray(session.run(None, sample(8, width=128))[0])}


def test_a_smoke_run_measures_latency_and_memory_and_claims_nothing(short: Path, tmp_path: Path) -> None:
    local = devices.get("local")
    keep = tmp_path / "raw"
    measured, compared = measure([_real("a", short), _real("b", short)], device=local, mode="smoke", keep=keep)
    assert [each.label for each in measured] == ["a", "b"]
    for each in measured:
        assert each.valid, each.reasons
        assert each.latency is not None
        assert each.memory is not None
        assert each.latency.median_ms.low is None
        assert each.memory.peak_bytes > each.memory.before_load_bytes > 0
        assert each.conditions.runtime_version
        assert each.conditions.bench_digest.startswith("sha256:")
    assert [each.claim for each in compared] == ["too few launches to say"]
    assert len(msgspec.json.decode((keep / "0.json").read_bytes())[0]["iterations_ns"]) >= 10


def test_a_planted_slow_down_is_seen(short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The raw launches are compared: on a busy machine the measurement itself may rightly be invalid.
    monkeypatch.setitem(PLANS, "brief", Plan(6, 5, 0.0, 64, 0.0, cap_seconds=30, most=6))
    longer = dense_model(tmp_path / "longer.onnx", 10, width=128)
    measure([_real("a", short), _real("b", longer)], device=devices.get("local"), keep=tmp_path)
    raw = [msgspec.json.decode((tmp_path / f"{index}.json").read_bytes(), type=list[Launch]) for index in range(2)]
    base, slow = ([launch.times_ms for launch in launches] for launches in raw)
    ratio = statistics.paired_ratio(slow, base, seed=0)
    assert statistics.claim(ratio, drift=0.0) == "slower"
    assert ratio.value > 1.5


def test_right_goldens_are_checked_on_the_device(short: Path) -> None:
    subject = _real("a", short, goldens=[_golden(short)], tolerance={"y": 1e-4})
    measured, _ = measure([subject], device=devices.get("local"), mode="smoke")
    assert measured[0].valid, measured[0].reasons
    assert not [text for text in measured[0].warnings if "goldens" in text]


def test_wrong_goldens_make_it_invalid_and_leave_no_number(short: Path) -> None:
    wrong = {"y": _golden(short)["y"] + 1}
    subjects = [_real("right", short), _real("wrong", short, goldens=[wrong], tolerance={"y": 0.1})]
    measured, compared = measure(subjects, device=devices.get("local"), mode="smoke")
    assert measured[0].valid
    assert not measured[1].valid
    assert "differs by 1, allowed 0.1" in measured[1].reasons[0]
    assert (measured[1].latency, measured[1].memory, compared) == (None, None, [])


def test_a_file_that_changed_makes_it_invalid(short: Path) -> None:
    subject = _real("a", short)
    short.write_bytes(short.read_bytes() + b"\x00")
    measured, _ = measure([subject], device=devices.get("local"), mode="smoke")
    assert not measured[0].valid
    assert "not the model asked for" in measured[0].reasons[0]


def test_a_device_returns_the_outputs_of_every_sample(short: Path, tmp_path: Path) -> None:
    found = run_on_device(_real("a", short), device=devices.get("local"), folder=tmp_path / "outputs")
    assert len(found) == 1
    np.testing.assert_allclose(found[0]["y"], _golden(short)["y"], atol=1e-5)


def test_a_subject_without_samples_is_refused() -> None:
    with pytest.raises(DataError, match="no sample"):
        measure([Subject("a", Path("a"), "", "ort", [])], device=Scripted(None))


def test_every_round_has_all_subjects_in_an_order_that_the_seed_decides() -> None:
    orders = []
    for seed in (0, 0, 1):
        device = Scripted(lambda _, number: _times(1.0, number))
        measure([_subject("a"), _subject("b"), _subject("c")], device=device, seed=seed)
        timed = [digest for mode, digest in device.started if mode == "time"]
        assert len(timed) == 3 * PLANS["brief"].launches
        assert all(len(set(timed[start : start + 3])) == 3 for start in range(0, len(timed), 3))
        orders.append(timed)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_a_faster_candidate_is_called_faster_with_its_interval() -> None:
    device = Scripted(lambda digest, number: _times(0.5 if digest.endswith("b") else 1.0, number))
    measured, compared = measure([_subject("a"), _subject("b")], device=device)
    assert all(each.valid for each in measured)
    assert compared[0].claim == "faster"
    assert (compared[0].baseline, compared[0].candidate) == ("sha256:a", "sha256:b")
    assert compared[0].ratio.value == pytest.approx(0.5, rel=0.01)


def test_noise_is_met_by_measuring_again_and_the_record_says_so() -> None:
    def script(digest: str, number: int) -> dict[str, Any]:
        return _times(1.0 if number > 6 else 1 + 0.5 * (number % 3), number)

    device = Scripted(script)
    measured, _ = measure([_subject("a")], device=device)
    assert measured[0].valid, measured[0].reasons
    rounds = len([mode for mode, _ in device.started if mode == "time"])
    assert 6 < rounds <= PLANS["brief"].most
    assert measured[0].set_aside == rounds - 6
    assert f"{rounds} rounds were run, {rounds - 6} of them set aside" in measured[0].warnings[-1]


def test_noise_that_stays_makes_it_invalid_after_a_bounded_number_of_tries() -> None:
    device = Scripted(lambda _, number: _times(1 + 0.5 * (number % 3), number))
    measured, _ = measure([_subject("a")], device=device)
    assert not measured[0].valid
    assert measured[0].latency is None
    assert len([mode for mode, _ in device.started if mode == "time"]) == PLANS["brief"].most


def test_what_is_wrong_and_not_noise_is_not_tried_again() -> None:
    device = Scripted(lambda _, number: {**_times(1.0, number), "bench_digest": f"sha256:{number}"})
    measured, _ = measure([_subject("a")], device=device)
    assert not measured[0].valid
    assert len([mode for mode, _ in device.started if mode == "time"]) == 6


def test_a_launch_that_is_lost_ends_that_subject_only() -> None:
    def script(digest: str, number: int) -> dict[str, Any]:
        if digest.endswith("b") and number == 3:
            raise DeviceError("the cable was pulled")
        return _times(1.0, number)

    device = Scripted(script)
    measured, compared = measure([_subject("a"), _subject("b"), _subject("c")], device=device)
    assert [each.valid for each in measured] == [True, False, True]
    assert "the cable was pulled" in measured[1].reasons[0]
    assert len(compared) == 1
    assert ("memory", "sha256:b") not in device.started


@pytest.mark.parametrize(("mode", "peak", "method"), [("smoke", 2000, "VmHWM"), ("brief", 2500, "of 3 launches")])
def test_memory_is_the_largest_of_its_launches_and_says_of_how_many(mode: Any, peak: int, method: str) -> None:
    peaks = iter([2000, 2500, 2400])

    class Uneven(Scripted):
        def run(self, job: Mapping[str, Any], **more: Any) -> dict[str, Any]:
            found = super().run(job, **more)
            return {"memory": {**MEMORY["memory"], "peak_bytes": next(peaks)}} if job["mode"] == "memory" else found

    measured, _ = measure([_subject("a")], device=Uneven(lambda _, number: _times(1.0, number)), mode=mode)
    assert measured[0].memory is not None
    assert measured[0].memory.peak_bytes == peak
    assert measured[0].memory.method.endswith(method)


def test_official_runs_wait_until_the_sentinel_has_cooled(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    heat = iter([[15], [12], [10]])

    class Hot(Scripted):
        def run(self, job: Mapping[str, Any], **more: Any) -> dict[str, Any]:
            if job["mode"] == "sentinel":
                return {"sentinel": {"before_ns": next(heat, [10])}}
            return super().run(job, **more)

    long_enough = {"timed": {"seconds": 7.0, "cpu_seconds": 7.0}}
    measured, _ = measure(
        [_subject("a")],
        device=Hot(lambda _, number: {**_times(1.0, number), **long_enough, "iterations_ns": [10**6] * 128}),
        mode="official",
    )
    assert measured[0].valid, measured[0].reasons
    assert len(naps) == 2


def test_a_device_that_is_lost_while_it_cools_ends_the_turns_and_discards_no_round(tmp_path: Path) -> None:
    class Lost(Scripted):
        def run(self, job: Mapping[str, Any], **more: Any) -> dict[str, Any]:
            if job["mode"] == "sentinel" or ("sentinel", "") in self.started:
                self.started.append((str(job["mode"]), ""))
                raise DeviceError("the cable was pulled")
            return super().run(job, **more)

    device = Lost(lambda _, number: _times(1.0, number))
    measured, _ = measure([_subject("a"), _subject("b")], device=device, mode="quick", keep=tmp_path)
    assert [each.valid for each in measured] == [False, False]
    assert all("the cable was pulled" in each.reasons[0] for each in measured)
    assert len(msgspec.json.decode((tmp_path / "0.json").read_bytes())) == 1


def test_a_sentinel_that_fails_once_costs_no_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLANS, "quick", Plan(6, 5, 0.0, 64, 0.0, cap_seconds=30, most=6, cooldown_seconds=60))

    class Shaky(Scripted):
        def run(self, job: Mapping[str, Any], **more: Any) -> dict[str, Any]:
            if job["mode"] == "sentinel":
                raise DeviceError("no answer within 60 s")
            return super().run(job, **more)

    measured, _ = measure([_subject("a")], device=Shaky(lambda _, number: _times(1.0, number)), mode="quick")
    assert measured[0].valid, measured[0].reasons


def test_a_ratio_that_is_not_known_closely_is_given_more_rounds_whatever_it_is() -> None:
    def script(digest: str, number: int) -> dict[str, Any]:
        return _times(1.0 if digest.endswith("a") else 1 + 0.06 * (-1) ** number, number)

    device = Scripted(script)
    measured, compared = measure([_subject("a"), _subject("b")], device=device)
    assert len(device.started) - 6 == 2 * PLANS["brief"].most
    assert [each.set_aside for each in measured] == [0, 0]
    assert compared[0].claim == "no difference shown"


def test_launches_that_do_not_fit_into_the_time_allowed_make_it_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLANS, "brief", Plan(6, 5, 0.0, 64, 0.0, cap_seconds=30, most=12, set_seconds=0.0))
    measured, _ = measure([_subject("a")], device=Scripted(lambda _, number: _times(1.0, number)))
    assert "too short: 1 launches fitted" in measured[0].reasons[0]


def _slow(count: int, number: int) -> dict[str, Any]:
    return {"iterations_ns": [5_000_000_000 + number] * count, "timed": {"seconds": 61.0, "cpu_seconds": 61.0}}


def test_a_model_that_takes_seconds_is_measured_by_fewer_iterations_with_a_warning_and_no_tails() -> None:
    measured, _ = measure([_subject("a")], device=Scripted(lambda _, number: _slow(10, number)), mode="smoke")
    assert measured[0].valid
    measured, _ = measure([_subject("a")], device=Scripted(lambda _, number: _slow(10, number)))
    assert measured[0].valid, measured[0].reasons
    assert "10 iterations in 61.00 s, its time was up before 64" in measured[0].warnings[0]
    assert measured[0].latency is not None
    assert (measured[0].latency.p90_ms, measured[0].latency.p99_ms) == (None, None)
    assert measured[0].latency.median_ms.value == pytest.approx(5000)


def test_fewer_than_ten_iterations_are_too_few_even_when_the_time_is_up() -> None:
    measured, _ = measure([_subject("a")], device=Scripted(lambda _, number: _slow(9, number)))
    assert "too few samples" in measured[0].reasons[0]


def test_the_record_says_the_state_of_the_machine_and_the_shares_of_memory(short: Path) -> None:
    subject = _real("a", short, affinity=(0,), inputs_are="seeded noise")
    measured, _ = measure([subject], device=devices.get("local"), mode="smoke")
    found = measured[0]
    assert found.before is not None
    assert found.after is not None
    assert found.before.load_average
    assert found.sentinel_ms
    assert found.conditions.affinity == (0,)
    assert (found.conditions.accelerator, found.conditions.arena) == ("CPUExecutionProvider", True)
    assert found.memory is not None
    assert found.memory.pss_bytes
    assert found.latency is not None
    assert found.latency.warm_ms
    assert found.latency.sustained_ms


def test_the_record_says_how_many_inferences_stand_between_two_readings_of_a_coarse_clock() -> None:
    batches = {1: 4, 2: 16}
    found = [
        measure([_subject("a")], device=Scripted(script))[0][0].latency
        for script in (
            lambda _, number: {"clock": {"resolution_ns": 1.0, "batch": batches.get(number, 8)}},
            lambda *_: {},
        )
    ]
    assert [latency.clock_batch for latency in found if latency is not None] == [16, 1]


def test_progress_says_which_round_of_how_many_runs() -> None:
    told: list[str] = []
    measure([_subject("a")], device=Scripted(lambda *_: {}), progress=lambda text, _: told.append(text))
    assert told == [f"measure: round {number} of 6" for number in range(1, 7)]


def test_a_noisy_measurement_says_how_far_it_may_go() -> None:
    told: list[str] = []
    noisy = Scripted(lambda _, number: _times(1.0 if number % 2 else 2.0, number))
    measure([_subject("a")], device=noisy, progress=lambda text, _: told.append(text))
    assert told[-1].endswith(" (noisy: 24 at most)")


def test_no_word_of_a_reason_is_one_that_only_the_program_knows() -> None:
    drifting = Scripted(
        lambda _, number: {"sentinel": {"before_ns": [100 + 9 * number], "after_ns": [105 + 9 * number]}}
    )
    found = measure([_subject("a")], device=drifting)[0][0]
    assert "the machine's time for a fixed workload drifted" in found.reasons[0]
    assert "sentinel" not in " ".join((*found.reasons, *found.warnings))
