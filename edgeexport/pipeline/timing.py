"""Measure a candidate beside the fp32 source on a device, and keep the result: a stored input for everything after.

The rule: a machine that lacks the target's CPU or its features never gives a figure for that target, only a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeexport import devices, runtimes
from edgeexport.errors import DeviceError
from edgeexport.pipeline.goldens import examples_of
from edgeexport.pipeline.lower import Candidate
from edgeexport.pipeline.road import Road
from edgeexport.records.base import file_digest
from edgeexport.records.device import DeviceFacts
from edgeexport.records.stages import Timed
from edgeexport.records.target import Target
from edgeexport.workspace import versions

if TYPE_CHECKING:
    from edgeexport.devices.protocol import Device
    from edgeexport.runtimes.protocol import Feeds
    from edgeexport.validation.measure import Mode, Subject

NO_DEVICE = "none"
MODE: Mode = "brief"


def device_for(target: Target, wanted: str | None) -> tuple[Device | None, str]:
    """Return (device, "") when the wanted device can judge the target, else (None, why not).

    Raises RequestError for a device that this version does not know.
    """
    if wanted == NO_DEVICE:
        return None, "no device was given (--device none)"
    device = devices.get(wanted or "local")
    able, reason = device.can_judge(target)
    return (device, "") if able else (None, reason)


def timed(road: Road, target: Target, *, base: Candidate, candidate: Candidate, device: str | None) -> Timed:
    """Measure both files interleaved in fresh processes, once; an invalid measurement is not kept."""
    machine, reason = device_for(target, device)
    if machine is None:
        return Timed(reason=reason)

    def make(folder: Path) -> Timed:
        from edgeexport.validation.measure import measure

        files = [base] if candidate.row.artifact.digest == base.row.artifact.digest else [base, candidate]
        subjects = [subject_of(road, target, candidate=each) for each in files]
        road.progress(f"measure {candidate.row.name} on {target.name}", 0.0)
        measured, compared = measure(
            subjects, device=machine, mode=MODE, progress=road.detail, keep=folder / "launches"
        )
        return Timed(measured[0], measured[-1], compared[-1] if compared else None)

    key = {
        "source": base.lowered.key,
        "candidate": candidate.lowered.key,
        "threads": target.threads,
        "device": lasting(machine.describe()),
        "mode": MODE,
        "versions": versions("numpy", *runtimes.get(target.runtime).packages),
    }
    stage = road.workspace.stage("measure", key=key, make=make, kind=Timed)
    if any(part is not None and not part.valid for part in (stage.record.source, stage.record.candidate)):
        road.workspace.forget(stage)
    return stage.record


def lasting(facts: DeviceFacts) -> dict[str, Any]:
    """Return what of a machine's facts stays the same until somebody changes the machine."""
    passing = {"boot_id", "governor", "frequency_khz", "load_average", "runtime_version"}
    return {name: value for name, value in msgspec.to_builtins(facts).items() if name not in passing}


def subject_of(road: Road, target: Target, *, candidate: Candidate) -> Subject:
    """Return a candidate's file with real samples and the outputs it must give for them."""
    from edgeexport.validation.measure import Subject

    examples = examples_of(road, target, candidate=candidate)
    return Subject(
        label=candidate.row.name,
        path=candidate.path,
        digest=candidate.row.artifact.digest,
        runtime=target.runtime,
        inputs=[example.inputs for example in examples],
        threads=target.threads,
        options=candidate.lowered.record.session_options,
        goldens=[example.outputs for example in examples],
        tolerance={name: max(each.tolerance[name] for each in examples) for name in examples[0].tolerance},
    )


@dataclass(frozen=True)
class Ready:
    """A file of the target's runtime, and the session options that it is run with."""

    path: Path
    options: dict[str, Any]


def ratio(road: Road, target: Target, *, files: Sequence[Ready], feeds: Sequence[Feeds], machine: Device) -> float:
    """Return the latency of the second file over that of the first, measured in turns.

    Raises DeviceError where the measurement is not valid, with its reasons.
    """
    from edgeexport.validation.measure import Subject, measure

    subjects = [
        Subject(
            file.path.name,
            file.path,
            file_digest(file.path),
            target.runtime,
            list(feeds),
            threads=target.threads,
            options=file.options,
        )
        for file in files
    ]
    measured, compared = measure(subjects, device=machine, mode=MODE, progress=road.detail)
    if not compared:
        raise DeviceError("; ".join(reason for each in measured for reason in each.reasons))
    return compared[0].ratio.value
