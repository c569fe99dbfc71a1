"""Measure: how fast and how big models are on a device, beside the first of them, as a record with its conditions.

The rule: every launch is a fresh process, and in every round all subjects take their turn in random order. Memory has
launches of its own. An invalid measurement carries reasons and no number; noise is met by measuring again, a bounded
number of times, and never by dropping samples.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeexport.devices.protocol import BENCH_RUNTIMES, Device
from edgeexport.errors import DataError, DeviceError
from edgeexport.progress import Progress, silent
from edgeexport.records.device import DeviceFacts
from edgeexport.records.measurement import Comparison, Conditions, Latency, Measurement, Memory
from edgeexport.validation import statistics
from edgeexport.validation.launches import Demand, Findings, Launch, examine, read_launch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feeds = dict[str, NDArray[Any]]

Mode = Literal["smoke", "quick", "official"]
START_SECONDS = 60.0
COOLED = 0.02
COOLING_STEP_SECONDS = 10.0


@dataclass(frozen=True)
class Plan:
    """What a mode does. Seconds and iterations are least values for each launch; `cap_seconds` is the most.

    memory_launches: how many more launches there are for memory, which is the largest of them.
    """

    launches: int
    warmup_iterations: int
    warmup_seconds: float
    timed_iterations: int
    timed_seconds: float
    cap_seconds: float
    tries: int
    cooldown_seconds: float
    memory_launches: int = 3


# quick: six launches are the fewest that have a 95 % interval at all, and they cost about half a second each; more
# launches tell more than longer ones, since processes differ more than iterations do.
PLANS: dict[Mode, Plan] = {
    "smoke": Plan(1, 3, 0.0, 10, 0.0, cap_seconds=10, tries=1, cooldown_seconds=0, memory_launches=1),
    "quick": Plan(6, 10, 0.05, 64, 0.2, cap_seconds=60, tries=2, cooldown_seconds=0),
    "official": Plan(10, 10, 2.0, 128, 6.0, cap_seconds=60, tries=2, cooldown_seconds=300),
}


@dataclass(frozen=True)
class Subject:
    """One model file to measure.

    runtime: as targets name it. inputs: one real sample, or several that are taken in turn, in the file's own
    signature. goldens: outputs expected for the first samples, checked before and after timing; tolerance: output
    name -> largest |difference| (0 where not given).
    """

    label: str
    path: Path
    digest: str
    runtime: str
    inputs: Feeds | Sequence[Feeds]
    threads: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    goldens: Sequence[Feeds] = ()
    tolerance: Mapping[str, float] = field(default_factory=dict)

    def samples(self) -> list[Feeds]:
        """Return the samples, at least one. Raises DataError."""
        found = [dict(self.inputs)] if isinstance(self.inputs, Mapping) else [dict(sample) for sample in self.inputs]
        if not found:
            raise DataError(f"{self.label}: no sample to measure with", next_step="give at least one real input")
        return found


@dataclass
class _Turn:
    """A subject with its files, and what its launches answered. `failure` ends its turns."""

    subject: Subject
    job: dict[str, Any]
    files: dict[str, Path]
    launches: list[Launch] = field(default_factory=list)
    failure: str = ""
    memory: Memory | None = None


def measure(
    subjects: Sequence[Subject],
    *,
    device: Device,
    mode: Mode = "quick",
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
        turns = [_prepared(subject, Path(folder) / str(index), plan=plan) for index, subject in enumerate(subjects)]
        facts = device.describe()
        drift, findings = _settled(turns, device, plan=plan, seed=seed, progress=progress)
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
    import numpy as np

    turn = _prepared(subject, folder / "in", plan=PLANS["smoke"])
    job = {key: value for key, value in turn.job.items() if key not in {"goldens", "warmup", "timed"}}
    answer = device.run(
        {**job, "mode": "outputs"}, files=turn.files, timeout=START_SECONDS * 5, outputs_to=folder / "out"
    )
    return [
        {name: np.load(folder / "out" / entry["file"], allow_pickle=False) for name, entry in written.items()}
        for written in answer["outputs"]
    ]


def _settled(
    turns: list[_Turn], device: Device, *, plan: Plan, seed: int, progress: Progress
) -> tuple[statistics.Drift, list[Findings]]:
    """Run all rounds; run them again while nothing but noise is wrong and tries are left."""
    previous: set[str] = set()
    for attempt in range(plan.tries):
        for turn in turns:
            turn.launches.clear()
        order = _rounds(turns, device, plan=plan, seed=seed + attempt, progress=progress)
        drift = _drift(order)
        findings = [_found(turn, plan, drift=drift) for turn in turns]
        noise = {reason for found in findings if found.noisy for reason in found.reasons}
        if not noise or attempt + 1 == plan.tries:
            break
        previous |= noise
        progress(f"measure again: {min(noise)}", None)
    if previous:
        repeated = f"measured {attempt + 1} times; an earlier try was invalid: {min(previous)}"
        findings = [Findings(found.reasons, (*found.warnings, repeated), found.noisy) for found in findings]
    return drift, findings


def _rounds(turns: list[_Turn], device: Device, *, plan: Plan, seed: int, progress: Progress) -> list[Launch]:
    """Let every subject take its turn in each round, in random order; return all launches in the order of time."""
    import numpy as np

    rng, order = np.random.default_rng(seed), list[Launch]()
    for number in range(plan.launches):
        progress(f"measure: round {number + 1} of {plan.launches}", number / plan.launches)
        if number and order:
            _cool_down(device, order[0], plan=plan)
        for index in rng.permutation(len(turns)):
            launch = _launch(turns[index], device, plan=plan)
            order.extend([launch] if launch else [])
    return order


def _launch(turn: _Turn, device: Device, *, plan: Plan) -> Launch | None:
    if turn.failure:
        return None
    timeout = START_SECONDS + 3 * plan.cap_seconds + plan.warmup_seconds
    try:
        launch = read_launch(device.run({**turn.job, "mode": "time"}, files=turn.files, timeout=timeout))
    except DeviceError as error:
        turn.failure = f"a launch failed: {error}"
        return None
    turn.launches.append(launch)
    return launch


def _cool_down(device: Device, first: Launch, *, plan: Plan) -> None:
    """Wait until the sentinel is as fast as it was at the start, within 2 %, but no longer than the plan says."""
    cold = min(first.sentinel.before_ns) * (1 + COOLED)
    for _ in range(int(plan.cooldown_seconds / COOLING_STEP_SECONDS)):
        answer = device.run({"mode": "sentinel"}, timeout=START_SECONDS)
        if min(answer["sentinel"]["before_ns"]) <= cold:
            return
        time.sleep(COOLING_STEP_SECONDS)


def _take_memory(turn: _Turn, device: Device, *, plan: Plan) -> None:
    """Measure memory in launches of its own: reading it must not disturb the clock, nor timing the peak.

    The largest peak counts: a limit that it holds is held by the others too.
    """
    if turn.failure:
        return
    job, timeout = {**turn.job, "mode": "memory"}, START_SECONDS + 3 * plan.cap_seconds
    try:
        answers = [device.run(job, files=turn.files, timeout=timeout)["memory"] for _ in range(plan.memory_launches)]
    except DeviceError as error:
        turn.failure = f"a memory launch failed: {error}"
        return
    most = max(answers, key=lambda answer: int(answer["peak_bytes"]))
    method = f"{most['method']}, largest of {len(answers)} launches" if len(answers) > 1 else str(most["method"])
    turn.memory = Memory(int(most["peak_bytes"]), int(most["before_load_bytes"]), method)


def _prepared(subject: Subject, folder: Path, *, plan: Plan) -> _Turn:
    """Write a subject's samples and goldens as .npy files, and the job that names them."""
    files = {"model": subject.path}
    job = {
        "runtime": BENCH_RUNTIMES.get(subject.runtime, subject.runtime),
        "model": "file:model",
        "sha256": subject.digest,
        "threads": subject.threads,
        "options": dict(subject.options),
        "inputs": [_written(feeds, folder, prefix=f"in{n}", files=files) for n, feeds in enumerate(subject.samples())],
        "goldens": [
            {
                "outputs": _written(outputs, folder, prefix=f"golden{n}", files=files),
                "tolerance": dict(subject.tolerance),
            }
            for n, outputs in enumerate(subject.goldens)
        ],
        "warmup": {"iterations": plan.warmup_iterations, "seconds": plan.warmup_seconds},
        "timed": {
            "iterations": plan.timed_iterations,
            "seconds": plan.timed_seconds,
            "cap_seconds": plan.cap_seconds,
        },
    }
    return _Turn(subject, job, files)


def _written(arrays: Feeds, folder: Path, *, prefix: str, files: dict[str, Path]) -> dict[str, str]:
    """Write arrays as .npy files, enter them into `files`, and return name -> `file:...` for a job."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    placed = {}
    for index, (name, value) in enumerate(arrays.items()):
        key = f"{prefix}.{index}.npy"
        np.save(folder / key, value, allow_pickle=False)
        files[key] = folder / key
        placed[name] = f"file:{key}"
    return placed


def _drift(order: Sequence[Launch]) -> statistics.Drift:
    """The sentinel's drift over all launches, in the order of time: the machine is one, whatever ran on it."""
    import numpy as np

    if not order:
        return statistics.Drift(0.0, shown=False)
    # The lower quartile: an interruption by another program lengthens some pieces, throttling lengthens all.
    before = [float(np.quantile(launch.sentinel.before_ns, 0.25)) for launch in order]
    after = [float(np.quantile(launch.sentinel.after_ns, 0.25)) for launch in order]
    return statistics.sentinel_drift(before, after)


def _found(turn: _Turn, plan: Plan, *, drift: statistics.Drift) -> Findings:
    if turn.failure:
        return Findings((turn.failure,), (), noisy=False)
    demand = Demand(plan.timed_iterations, plan.timed_seconds, turn.subject.threads)
    found = examine(turn.launches, demand, drift=drift)
    unchecked = () if turn.subject.goldens else ("outputs were not checked on the device: no goldens were given",)
    return Findings(found.reasons, (*found.warnings, *unchecked), found.noisy)


def _conditions(turn: _Turn, facts: DeviceFacts, *, mode: Mode) -> Conditions:
    return Conditions(
        device=facts.device,
        arch=facts.arch,
        features=facts.features,
        cpu=facts.cpu,
        cores=facts.cores,
        runtime=turn.subject.runtime,
        runtime_version=turn.launches[0].runtime_version if turn.launches else "",
        threads=turn.subject.threads,
        mode=mode,
        bench_digest=facts.bench_digest,
    )


def _measurement(
    turn: _Turn, found: Findings, *, conditions: Conditions, drift: statistics.Drift, seed: int
) -> Measurement:
    reasons = tuple(dict.fromkeys([*found.reasons, *([turn.failure] if turn.failure else [])]))
    return Measurement(
        artifact=turn.subject.digest,
        label=turn.subject.label,
        conditions=conditions,
        valid=not reasons,
        reasons=reasons,
        warnings=found.warnings,
        latency=None if reasons else _latency(turn.launches, seed),
        memory=None if reasons else turn.memory,
        sentinel_drift=drift.share if turn.launches else None,
    )


def _latency(launches: Sequence[Launch], seed: int) -> Latency:
    """Figures of valid launches. Tails are taken over all iterations, outliers counted within each launch."""
    import numpy as np

    every = np.concatenate([launch.times_ms for launch in launches])
    return Latency(
        median_ms=statistics.median_interval([launch.times_ms for launch in launches], seed=seed),
        launch_medians_ms=tuple(launch.median_ms for launch in launches),
        iterations=len(every),
        load_ms=float(np.median([launch.load_ms for launch in launches])),
        first_ms=float(np.median([launch.first_ms for launch in launches])),
        p90_ms=statistics.tail_estimate(every, 0.90),
        p99_ms=statistics.tail_estimate(every, 0.99),
        outliers=sum(statistics.outliers(launch.times_ms)[0] for launch in launches),
    )


def _comparisons(
    turns: Sequence[_Turn], measured: Sequence[Measurement], *, drift: statistics.Drift, seed: int
) -> list[Comparison]:
    found = []
    for turn, measurement in zip(turns[1:], measured[1:], strict=True):
        if not (measured[0].valid and measurement.valid):
            continue
        both = ([launch.times_ms for launch in each.launches] for each in (turn, turns[0]))
        ratio = statistics.paired_ratio(*both, seed=seed)
        verdict = statistics.claim(ratio, drift=drift.share)
        found.append(Comparison(measured[0].artifact, measurement.artifact, ratio, verdict))
    return found


def _keep(folder: Path, turns: Sequence[_Turn]) -> None:
    """Write the raw launches of every subject, all iterations included."""
    import msgspec

    folder.mkdir(parents=True, exist_ok=True)
    for index, turn in enumerate(turns):
        (folder / f"{index}.json").write_bytes(msgspec.json.encode(turn.launches))
