"""Measure: how fast and how big models are on a device, beside the first of them, as a record with its conditions.

The rule: every launch is a fresh process, and in every round all subjects take their turn in random order. Memory has
launches of its own. An invalid measurement carries reasons and no number; noise is met by more rounds, a bounded number
of them, and never by dropping what is slow.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeexport.devices.protocol import Device, read_outputs
from edgeexport.errors import DeviceError
from edgeexport.progress import Progress, silent
from edgeexport.records.device import DeviceFacts
from edgeexport.records.measurement import Comparison, Conditions, Latency, Measurement, Memory, Mode, Moment
from edgeexport.validation import statistics
from edgeexport.validation.answers import PeakMemory, read_array, read_memory
from edgeexport.validation.launches import Findings, Launch
from edgeexport.validation.rounds import START_SECONDS, Rounds, quiet_ns
from edgeexport.validation.subjects import PLANS, UNTIMED, Plan, Subject, Turn, prepared

__all__ = ["PLANS", "Mode", "Plan", "Subject", "latency", "measure", "run_on_device"]

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feeds = dict[str, NDArray[Any]]

# Below this share of undisturbed iterations a measurement says so.
UNDISTURBED_WARNING = 0.9


def measure(
    subjects: Sequence[Subject],
    *,
    device: Device,
    mode: Mode = "brief",
    seed: int = 0,
    progress: Progress = silent,
    keep: Path | None = None,
) -> tuple[list[Measurement], list[Comparison]]:
    """Measure all subjects interleaved; return one Measurement each, and each later one compared with the first.

    A comparison needs both sides valid: others are left out. keep: folder that receives the raw answers as JSON.
    Raises DeviceError when the device cannot even be described, MissingExtra when a runtime is not there.
    """
    plan = PLANS[mode]
    with tempfile.TemporaryDirectory(prefix="edgeexport-measure-") as folder:
        turns = [prepared(subject, Path(folder) / str(index), plan=plan) for index, subject in enumerate(subjects)]
        facts = device.describe()
        drift, findings = Rounds(turns, device, plan, progress, facts.cores).run(seed)
        for turn in turns:
            _take_memory(turn, device, plan=plan)
    if keep is not None:
        _keep(keep, turns)
    measured = [
        _measurement(turn, found, conditions=_conditions(turn, facts, mode=mode), drift=drift, seed=seed)
        for turn, found in zip(turns, findings, strict=True)
    ]
    return measured, _comparisons(turns, measured, drift=drift, seed=seed)


def run_on_device(subject: Subject, *, device: Device, folder: Path) -> list[Feeds]:
    """Return the outputs of every sample of a subject, as the device computes them. Raises DeviceError."""
    turn = prepared(subject, folder / "in", plan=PLANS["smoke"])
    job = {key: value for key, value in turn.job.items() if key not in UNTIMED}
    answer = device.run(
        {**job, "mode": "outputs"}, files=turn.files, timeout=START_SECONDS * 5, outputs_to=folder / "out"
    )
    written, count = read_outputs(answer), len(turn.job["inputs"])
    if len(written) != count or any(set(sample) != set(written[0]) for sample in written):
        raise DeviceError(f"{device.name}: outputs of {len(written)} samples, or others for each, of {count} asked for")
    return [{name: read_array(folder / "out" / entry.file) for name, entry in sample.items()} for sample in written]


def _take_memory(turn: Turn, device: Device, *, plan: Plan) -> None:
    """Measure memory in launches of its own: reading it must not disturb the clock, nor timing the peak.

    The largest peak counts: a limit that it holds is held by the others too.
    """
    if turn.failure or not plan.memory_launches:
        return
    job, timeout = {**turn.job, "mode": "memory"}, START_SECONDS + 3 * plan.cap_seconds
    try:
        told = [read_memory(device.run(job, files=turn.files, timeout=timeout)) for _ in range(plan.memory_launches)]
    except DeviceError as error:
        turn.failure = f"a memory launch failed: {error}"
        return
    turn.no_memory = next((f"memory is {each}" for each in told if isinstance(each, str)), "")
    if not turn.no_memory:
        turn.memory = _memory([each for each in told if isinstance(each, PeakMemory)])


def _memory(answers: Sequence[PeakMemory]) -> Memory:
    most = max(answers, key=lambda answer: answer.peak_bytes)
    rollup = most.rollup or {}
    return Memory(
        peak_bytes=most.peak_bytes,
        before_load_bytes=most.before_load_bytes,
        method=f"{most.method}, largest of {len(answers)} launches" if len(answers) > 1 else most.method,
        after_load_bytes=most.after_load_bytes,
        least_peak_bytes=min(answer.peak_bytes for answer in answers),
        pss_bytes=rollup.get("Pss"),
        private_dirty_bytes=rollup.get("Private_Dirty"),
        swap_bytes=rollup.get("Swap"),
    )


def _conditions(turn: Turn, facts: DeviceFacts, *, mode: Mode) -> Conditions:
    launch, subject = turn.launches[0] if turn.launches else None, turn.subject
    return Conditions(
        device=facts.device,
        arch=facts.arch,
        features=facts.features,
        cpu=facts.cpu,
        cores=facts.cores,
        runtime=subject.runtime,
        runtime_version=launch.runtime_version if launch else "",
        threads=subject.threads,
        mode=mode,
        bench_digest=facts.bench_digest,
        affinity=subject.affinity,
        accelerator=launch.accelerator.actual if launch else subject.accelerator,
        arena=bool(subject.options.get("enable_cpu_mem_arena", True)) if subject.runtime == "ort" else None,
        governor=launch.environment.before.governor if launch else "",
        inputs=subject.inputs_are,
    )


def _measurement(
    turn: Turn, found: Findings, *, conditions: Conditions, drift: statistics.Drift, seed: int
) -> Measurement:
    reasons = tuple(dict.fromkeys([*found.reasons, *([turn.failure] if turn.failure else [])]))
    launches, times = turn.kept, turn.times
    share = _undisturbed(launches, times)
    warnings = [*found.warnings, *([turn.no_memory] if turn.no_memory else [])]
    if share < UNDISTURBED_WARNING:
        warnings.append(f"something else used the core during {1 - share:.0%} of the iterations: no median has them")
    if not turn.state.fastest:
        warnings.append("something else used the core most of the time: alone, the model would be faster")
    pieces = [piece for each in launches for piece in (*each.sentinel.before_ns, *each.sentinel.after_ns)]
    return Measurement(
        artifact=turn.subject.digest,
        label=turn.subject.label,
        conditions=conditions,
        valid=not reasons,
        reasons=reasons,
        warnings=tuple(warnings),
        latency=None if reasons else latency(launches, seed, times=times),
        memory=None if reasons else turn.memory,
        sentinel_drift=drift.share if turn.launches else None,
        sentinel_ms=quiet_ns(pieces) / 1e6 if pieces else None,
        before=_moment(launches[0].environment.before) if launches else None,
        after=_moment(launches[-1].environment.after) if launches else None,
        set_aside=len(turn.set_aside),
    )


def _moment(told: Any) -> Moment:
    return Moment(**{name: getattr(told, name) for name in Moment.__struct_fields__})


def _undisturbed(launches: Sequence[Launch], times: Sequence[NDArray[Any]]) -> float:
    total = sum(len(launch.times_ms) for launch in launches)
    return sum(len(each) for each in times) / total if total else 1.0


def latency(launches: Sequence[Launch], seed: int, *, times: Sequence[NDArray[Any]]) -> Latency:
    """Return the figures of valid launches. times: the undisturbed milliseconds of each, which medians are taken of.

    Tails and means are taken over all iterations, outliers counted in each launch.
    """
    import numpy as np

    every = np.concatenate([launch.times_ms for launch in launches])
    beyond = [statistics.outliers(launch.times_ms) for launch in launches]
    warm = [value / 1e6 for launch in launches for value in launch.warmup.iterations_ns]
    medians = [float(np.median(each)) for each in times]
    return Latency(
        median_ms=statistics.median_interval(times, seed=seed),
        launch_medians_ms=tuple(medians),
        iterations=len(every),
        load_ms=float(np.median([launch.load_ms for launch in launches])),
        first_ms=float(np.median([launch.first_ms for launch in launches])),
        p90_ms=statistics.tail_estimate(every, 0.90),
        p99_ms=statistics.tail_estimate(every, 0.99),
        outliers=sum(mild for mild, _ in beyond),
        warm_ms=float(np.median(warm)) if warm else None,
        sustained_ms=float(np.median([np.median(each[-max(1, len(each) // 4) :]) for each in times])),
        severe_outliers=sum(severe for _, severe in beyond),
        mean_ms=float(np.median([launch.times_ms.mean() for launch in launches])),
        spread=statistics.spread(medians),
        clock_batch=max(launch.clock.batch for launch in launches),
        undisturbed=_undisturbed(launches, times),
    )


def _comparisons(
    turns: Sequence[Turn], measured: Sequence[Measurement], *, drift: statistics.Drift, seed: int
) -> list[Comparison]:
    found = []
    for turn, measurement in zip(turns[1:], measured[1:], strict=True):
        if not (measured[0].valid and measurement.valid):
            continue
        ratio = statistics.paired_ratio(*turn.beside(turns[0]), seed=seed)
        verdict = statistics.claim(ratio, drift=drift.share)
        found.append(Comparison(measured[0].artifact, measurement.artifact, ratio, verdict))
    return found


def _keep(folder: Path, turns: Sequence[Turn]) -> None:
    """Write the raw launches of every subject, all iterations included; those set aside are marked."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, turn in enumerate(turns):
        marked = [
            msgspec.structs.replace(launch, set_aside=index in turn.set_aside)
            for index, launch in enumerate(turn.launches)
        ]
        (folder / f"{number}.json").write_bytes(msgspec.json.encode(marked))
