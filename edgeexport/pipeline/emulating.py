"""Run a candidate on emulated CPUs like the target's, where no device was given that can judge the target.

The rule: a file that computes something else there than here does not ship; what was not run is said, not assumed.
"""

from __future__ import annotations

from edgeexport import runtimes
from edgeexport.devices import get
from edgeexport.devices.guest import root
from edgeexport.pipeline.lower import Candidate
from edgeexport.pipeline.road import Road
from edgeexport.pipeline.timing import NO_DEVICE, lasting, subject_of
from edgeexport.records.emulation import EmulatedRun, EmulationRecord
from edgeexport.records.stages import Timed
from edgeexport.records.target import Target
from edgeexport.validation.emulation import not_validated, presets_for, validate_emulated
from edgeexport.workspace import versions


def emulated(
    road: Road, target: Target, *, candidate: Candidate, times: Timed, device: str | None
) -> EmulationRecord | None:
    """Return what emulation says of a candidate; None where a device ran it, or no emulated CPU is like the target's.

    `--device none` asks for no emulation either. The record is kept, so that a run that is resumed says the same,
    unless an emulated CPU gave no answer in time: a machine with less to do may get one.
    """
    if times.candidate is not None or device == NO_DEVICE or not presets_for(target):
        return None

    absent = not_validated(candidate.row.artifact.digest, target)
    if absent is not None:
        return absent

    def check() -> EmulationRecord:
        subject = subject_of(road, target, candidate=candidate)
        return validate_emulated(subject, target, int8=candidate.row.form == "int8", progress=road.detail)

    road.progress(f"emulate {candidate.row.name} for {target.name}", None)
    key = {
        "candidate": candidate.lowered.key,
        "threads": target.threads,
        "machines": root.recipe(),
        "host": lasting(get("local").describe()),
        "versions": versions("numpy", *runtimes.get(target.runtime).packages),
    }
    stage = road.workspace.stage("emulate", key=key, make=lambda _: check(), kind=EmulationRecord)
    if len(stage.record.runs) < len(presets_for(target)):
        road.workspace.forget(stage)
    return stage.record


def told(record: EmulationRecord | None) -> tuple[str, ...]:
    """Return what a report says of an emulation, a sentence for each machine."""
    return () if record is None else (*map(_of_run, record.runs), *record.notes)


def _of_run(run: EmulatedRun) -> str:
    if not run.holds:
        return f"{run.device}: {run.reason}"
    cost = run.counts_missing
    if run.counts is not None:
        millions = (run.counts.total / 1e6, run.counts.dot_product / 1e6)
        cost = "{:.3g} M instructions an inference, {:.3g} M of them dot products".format(*millions)
    return f"{run.device}: agrees with this machine ({cost})"
