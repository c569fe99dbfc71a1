"""Repair of an int8 form that is too slow: the known edits of its spine and plan, each kept if it is measured faster.

The rule: only a machine that may judge the target times an edit, and what was tried is told in the form's notes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeexport import quantization, runtimes
from edgeexport.errors import ModelError
from edgeexport.pipeline.forms import Static, planned, written
from edgeexport.pipeline.lower import Built, Candidate, Lane, calibrated, calibration_feeds
from edgeexport.pipeline.spine import SPINE
from edgeexport.pipeline.timing import MODE, Ready, device_for, lasting, ratio
from edgeexport.pipeline.torch_rungs import TorchRung
from edgeexport.quantization.repairs.loop import NOT_MEASURED
from edgeexport.records.artifact import Artifact
from edgeexport.records.base import file_digest
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.stages import Quantized, Refined
from edgeexport.runtimes.protocol import Conversion
from edgeexport.workspace import Stage, versions

if TYPE_CHECKING:
    from edgeexport.devices.protocol import Device
    from edgeexport.quantization.repairs import Bench

RUNTIME = "ort"


def repaired(lane: Lane, slow: Candidate, *, choice: Static, of: TorchRung) -> Built:
    """Return the fastest form that the known edits make of one that was too slow.

    Raises ModelError when no edit is faster here, or when nothing here may time one. That none is faster is not kept
    for the next run where the measurement of an edit was invalid.
    """
    machine, reason = device_for(lane.target, lane.device)
    if machine is None or lane.target.runtime != RUNTIME:
        raise ModelError(f"no repair can be judged: {reason or f'it is for {RUNTIME}, not {lane.target.runtime}'}")
    rung, below = slow.rung, slow.quantized
    if below is None or below.record.plan is None:
        raise ModelError("only a form with a plan can be repaired")
    plan = below.record.plan

    def make(folder: Path) -> Refined:
        bench = _bench(lane, slow, choice=choice, machine=machine)
        found = quantization.repair(rung.path, plan, bench=bench, folder=folder, progress=lane.road.detail)
        kept = folder / SPINE
        kept.write_bytes(found.spine.read_bytes())
        for leftover in [path for path in folder.iterdir() if path != kept]:
            leftover.unlink()
        artifact = Artifact(
            SPINE, "onnx", file_digest(kept), kept.stat().st_size, rung.spine.record.artifact.digest, "repair"
        )
        return Refined(artifact, found.plan, tuple(f"{step.name}: {step.outcome}" for step in found.steps))

    key = {
        "slow": slow.lowered.key,
        "quantized": below.key,
        "threads": lane.target.threads,
        "device": lasting(machine.describe()),
        "mode": MODE,
        "versions": versions("onnx", "onnxruntime", "numpy"),
    }
    stage = lane.road.workspace.stage("repair", key=key, make=make, kind=Refined)
    if stage.record.plan == plan and stage.record.artifact.digest == rung.spine.record.artifact.digest:
        if any(NOT_MEASURED in note for note in stage.record.notes):
            lane.road.workspace.forget(stage)
        raise ModelError(f"no repair is faster here ({'; '.join(stage.record.notes) or 'there is nothing to repair'})")
    # What the export was compared with is not this graph.
    spine = msgspec.structs.replace(
        rung.spine.record, artifact=stage.record.artifact, parity=None, notes=stage.record.notes
    )
    changed = replace(rung, spine=Stage(spine, stage.folder, stage.key, stage.fresh))

    symmetric = lane.target.numbers().symmetric_activations
    ranges = calibrated(lane.road, changed, method=choice.method, symmetric=symmetric).record

    def write(into: Path) -> Quantized:
        made = written(lane, changed, plan=stage.record.plan, ranges=ranges, folder=into, of=of)
        return msgspec.structs.replace(made, notes=stage.record.notes)

    quantized = lane.road.workspace.stage("quantize", key={"repaired": stage.key}, make=write, kind=Quantized)
    return Built(changed, quantized, before=(*slow.before, rung.spine.record.artifact))


def _bench(lane: Lane, slow: Candidate, *, choice: Static, machine: Device) -> Bench:
    from edgeexport.quantization.repairs import Bench

    road, numbers = lane.road, lane.target.numbers()
    feeds = list(road.parity_feeds(slow.rung.spine.record.signature))

    def replan(spine: Path) -> QuantizationPlan:
        record = msgspec.structs.replace(
            slow.rung.spine.record, artifact=Artifact(spine.name, "onnx", file_digest(spine), 0, "", "repair")
        )
        edited = replace(slow.rung, spine=Stage(record, spine.parent, file_digest(spine), fresh=True))
        ranges = calibrated(road, edited, method=choice.method, symmetric=numbers.symmetric_activations).record
        return planned(lane, edited, choice=choice, ranges=ranges)

    def build(spine: Path, plan: QuantizationPlan, *, out: Path) -> None:
        quantized = out.with_suffix(".qdq.onnx")
        quantization.quantize(spine, plan, out=quantized)
        job = Conversion(spine, quantized, None, plan, lambda: calibration_feeds(road, slow.rung), lane.target)
        runtimes.get(RUNTIME).convert(job, out)

    def timed(now: Path, edited: Path) -> float:
        options = slow.lowered.record.session_options
        files = [Ready(now, options), Ready(edited, options)]
        return ratio(road, lane.target, files=files, feeds=feeds, machine=machine)

    return Bench(replan, lambda spine, plan, out: build(spine, plan, out=out), timed, feeds)
