"""Measure a candidate beside the fp32 source on a device, and keep the result: a stored input for everything after.

The rule: a machine that lacks the target's CPU or its features never gives a figure for that target, only a reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeexport import devices, runtimes
from edgeexport.pipeline.lower import Candidate
from edgeexport.pipeline.road import Road
from edgeexport.records.device import DeviceFacts
from edgeexport.records.stages import Timed
from edgeexport.records.target import Target
from edgeexport.runtimes.protocol import adapt_feeds
from edgeexport.workspace import versions

if TYPE_CHECKING:
    from edgeexport.devices.protocol import Device
    from edgeexport.runtimes.protocol import Feeds

NO_DEVICE = "none"
MODE = "quick"


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

    def make(_: Path) -> Timed:
        from edgeexport.validation.measure import Subject, measure

        subjects = [
            Subject(
                label=each.row.name,
                path=each.path,
                digest=each.row.artifact.digest,
                runtime=target.runtime,
                threads=target.threads,
                options=each.lowered.record.session_options,
                inputs=_inputs(road, each),
            )
            for each in ([base] if candidate.row.artifact.digest == base.row.artifact.digest else [base, candidate])
        ]
        road.progress(f"measure {candidate.row.name} on {target.name}", 0.0)
        measured, compared = measure(subjects, device=machine, mode=MODE, progress=road.progress)
        return Timed(measured[0], measured[-1], compared[-1] if compared else None)

    key = {
        "source": base.lowered.key,
        "candidate": candidate.lowered.key,
        "threads": target.threads,
        "device": _lasting(machine.describe()),
        "mode": MODE,
        "versions": versions("numpy", *runtimes.get(target.runtime).packages),
    }
    stage = road.workspace.stage("measure", key=key, make=make, kind=Timed)
    if any(part is not None and not part.valid for part in (stage.record.source, stage.record.candidate)):
        road.workspace.forget(stage)
    return stage.record


def _lasting(facts: DeviceFacts) -> dict[str, Any]:
    """What of a machine's facts stays the same until somebody changes the machine."""
    passing = {"boot_id", "governor", "frequency_khz", "load_average", "runtime_version"}
    return {name: value for name, value in msgspec.to_builtins(facts).items() if name not in passing}


def _inputs(road: Road, candidate: Candidate) -> Feeds:
    """One real sample in the file's own signature."""
    spine = candidate.rung.spine.record.signature
    return adapt_feeds(next(road.parity_feeds(spine)), spine, candidate.lowered.record.signature)
