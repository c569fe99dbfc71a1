"""bench: all subjects interleaved on each device, with what is measured in launches of its own, as one record.

The rule: a launch that measures something else (energy, operators, throughput) comes after the timed ones and never
changes them; what a device cannot tell has a reason in its place.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from edgeexport import __version__, devices, graph
from edgeexport.benchmark.counting import counted
from edgeexport.devices.emulated import Emulated
from edgeexport.devices.protocol import Device
from edgeexport.errors import DeviceError, RequestError
from edgeexport.progress import Progress, details, silent
from edgeexport.records.base import file_digest, listed
from edgeexport.records.benchmark import (
    NOT_FOR_TARGET,
    SCHEMA_VERSION,
    BenchRecord,
    Compared,
    Energy,
    Entry,
    NodeTime,
    Rail,
    Throughput,
)
from edgeexport.records.measurement import Comparison, Measurement, Mode
from edgeexport.validation.answers import read_energy, read_nodes
from edgeexport.validation.launches import read_launch
from edgeexport.validation.measure import PLANS, Subject, measure
from edgeexport.validation.subjects import Turn, prepared

SEED = 0
SUBNORMAL_LEAST = 1e-4
BATCHES, SWEEP_LAUNCHES = (1, 4, 16), 3
ENERGY = {"timed": {"iterations": 64, "seconds": 60, "cap_seconds": 120}, "idle": 10}
SIDE_SECONDS = 300.0


def bench(
    subjects: Sequence[Subject],
    *,
    on: Sequence[str] | str = "local",
    mode: Mode = "quick",
    keep: Path | str,
    throughput: bool = False,
    progress: Progress = silent,
) -> BenchRecord:
    """Measure subjects on devices (`local`, `ssh://…`); each later subject is compared with the first, on each device.

    On an emulated CPU instructions are counted instead: there are no times. keep: folder for the raw launches, one file
    each, named by its digest. throughput: sweep batch and threads as well.
    Raises DeviceError when a device cannot be reached.
    """
    entries: list[Entry] = []
    compared: list[Compared] = []
    keep = Path(keep)
    for number, reference in enumerate(listed(on)):
        device = devices.get(reference)
        progress(f"bench on {reference}", None)
        if isinstance(device, Emulated):
            entries += _counted(subjects, device, mode=mode, throughput=throughput, progress=details(progress))
            continue
        raw = keep / f".{number}"
        measured, found = measure(subjects, device=device, mode=mode, seed=SEED, progress=details(progress), keep=raw)
        compared += _named(reference, measured, found=found)
        for index, subject in enumerate(subjects):
            digest = _stored(raw / f"{index}.json", keep)
            progress(f"bench on {reference}: {subject.label} in launches of its own", None)
            entries.append(_entry(subject, device, measurement=measured[index], throughput=throughput, raw=digest))
        shutil.rmtree(raw)
    created = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return BenchRecord(SCHEMA_VERSION, created, __version__, mode, SEED, tuple(entries), tuple(compared))


def _counted(
    subjects: Sequence[Subject], device: Emulated, *, mode: Mode, throughput: bool, progress: Progress
) -> Iterator[Entry]:
    if throughput:
        raise RequestError(f"{device.name} has no times, so no throughput", next_step="leave out --throughput")
    for number, subject in enumerate(subjects):
        progress(f"count instructions of {subject.label}", number / len(subjects))
        yield counted(subject, device, mode=mode)


def _named(device: str, measured: Sequence[Measurement], *, found: Sequence[Comparison]) -> list[Compared]:
    """Say by labels what each comparison compares: several subjects may be one file, opened in different ways."""
    base, *others = measured
    labels = [each.label for each in others if base.valid and each.valid]
    return [Compared(device, base.label, label, each) for label, each in zip(labels, found, strict=True)]


def _stored(path: Path, folder: Path) -> str:
    """Name a raw file by its digest."""
    digest = file_digest(path)
    path.rename(folder / f"{digest.removeprefix('sha256:')}.json")
    return digest


def _entry(subject: Subject, device: Device, *, measurement: Measurement, throughput: bool, raw: str) -> Entry:
    import tempfile

    warned = _warned(measurement, subject, device=device)
    base = Entry(device.name, subject.path.stat().st_size, warned, Energy(), raw=raw)
    if not measurement.valid:
        return msgspec.structs.replace(base, energy=Energy(reason="not measured: the measurement is invalid"))
    with tempfile.TemporaryDirectory(prefix="edgeexport-bench-") as folder:
        turn = prepared(subject, Path(folder), plan=PLANS["brief"])
        nodes, reason = _nodes(turn, device)
        swept = _swept(subject, device, folder=Path(folder)) if throughput else ()
        energy = _energy(turn, device, mode=measurement.conditions.mode)
    return msgspec.structs.replace(base, energy=energy, nodes=nodes, nodes_reason=reason, throughput=swept)


def _warned(measurement: Measurement, subject: Subject, *, device: Device) -> Measurement:
    """Add what gives cause to doubt: a device that cannot judge a bundle's target, and the model file itself."""
    found = [text for text in (_foreign(subject, device), _subnormal(subject)) if text]
    return msgspec.structs.replace(measurement, warnings=(*measurement.warnings, *found))


def _foreign(subject: Subject, device: Device) -> str:
    """Say why figures of this device do not speak for the target that a bundle was made for; empty where they do."""
    if subject.target is None:
        return ""
    judges, reason = device.can_judge(subject.target)
    return "" if judges else f"{NOT_FOR_TARGET}, {subject.target.name}: {reason}"


def _subnormal(subject: Subject) -> str:
    share = graph.subnormal_share(graph.load(subject.path)) if subject.path.suffix == ".onnx" else 0.0
    if share <= SUBNORMAL_LEAST:
        return ""
    return f"{share:.2%} of the weights are subnormal numbers, which some processors multiply many times slower"


def _side(turn: Turn, device: Device, **changes: Any) -> Mapping[str, Any]:
    return device.run({**turn.job, **changes}, files=turn.files, timeout=SIDE_SECONDS)


def _nodes(turn: Turn, device: Device) -> tuple[tuple[NodeTime, ...], str]:
    try:
        found = read_nodes(_side(turn, device, mode="profile"))
    except DeviceError as error:
        return (), f"not profiled: {error}"
    if isinstance(found, str):
        return (), found
    times = [NodeTime(node.name, node.op or "", node.provider or "", node.us / max(1, node.calls)) for node in found]
    return tuple(sorted(times, key=lambda node: (-node.us, node.name))), ""


def _energy(turn: Turn, device: Device, *, mode: Mode) -> Energy:
    if mode != "official":
        return Energy(reason="not measured: only in mode official, whose launch for it is a minute long")
    try:
        found, reason = read_energy(_side(turn, device, mode="energy", **ENERGY))
    except DeviceError as error:
        return Energy(reason=f"not measured: {error}")
    rails = tuple(Rail(name, *msgspec.structs.astuple(figures)) for name, figures in sorted(found.items()))
    return Energy(rails, "" if rails else reason or "not measured: no counter ran on without a break")


def _swept(subject: Subject, device: Device, *, folder: Path) -> tuple[Throughput, ...]:
    """Samples in a second for each number of threads and each batch that the model takes, a few launches each."""
    import numpy as np

    found = []
    cores = device.describe().cores
    for batch in BATCHES:
        feeds = {name: np.concatenate([value] * batch) for name, value in subject.samples()[0].items()}
        turn = prepared(_with(subject, feeds), folder / f"batch{batch}", plan=PLANS["brief"])
        for threads in sorted({1, max(1, cores // 2), cores}):
            rates = _rates(turn, device, threads=threads, batch=batch)
            if rates:
                found.append(Throughput(threads, batch, median(rates), min(rates), max(rates)))
    return tuple(found)


def _with(subject: Subject, feeds: dict[str, Any]) -> Subject:
    from dataclasses import replace

    return replace(subject, inputs=[feeds], goldens=())


def _rates(turn: Turn, device: Device, *, threads: int, batch: int) -> list[float]:
    """Samples in a second of each launch; none when the model does not take this batch."""
    try:
        launches = [read_launch(_side(turn, device, mode="time", threads=threads)) for _ in range(SWEEP_LAUNCHES)]
    except DeviceError:
        if batch == 1:
            raise
        return []
    return [batch * len(launch.iterations_ns) / launch.timed.seconds for launch in launches]
