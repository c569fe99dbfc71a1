"""Weights that suit integers better: balanced between layers, rounded by what they do, with corrected biases.

The rule: every change is made to the fp32 spine, so that all runtimes get the same weights, and a form is compared with
the rung that stands, whatever its weights went through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

import msgspec

from edgeexport import quantization
from edgeexport.pipeline.forms import Rework, Static, planned, rework, static, static_key, written
from edgeexport.pipeline.lower import Built, Lane, calibrated, calibration_feeds
from edgeexport.pipeline.spine import SPINE
from edgeexport.pipeline.torch_rungs import TorchRung
from edgeexport.records.artifact import Artifact
from edgeexport.records.base import file_digest
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.stages import Quantized, Refined
from edgeexport.workspace import Stage

Refinement: TypeAlias = Literal["bias-corrected", "rounded"]
# What is done to weights before they are quantized; "" is nothing. Equalized weights get corrected biases as well.
Way: TypeAlias = Literal["", "equalized", "rounded", "equalized rounded"]
WAYS: tuple[Way, ...] = ("equalized", "rounded", "equalized rounded")
REFINEMENTS: Mapping[Refinement, Callable[..., QuantizationPlan]] = MappingProxyType({
    "bias-corrected": quantization.correct_biases,
    "rounded": quantization.learn_rounding,
})  # fmt: skip


def static_int8(lane: Lane, rung: TorchRung, *, way: Way, choice: Static) -> Built:
    """Quantize a rung after its weights went one of the ways."""
    if not way:
        return Built(rung, static(lane, rung, choice=choice, of=rung))
    if way == "rounded":
        return refined(lane, rung, choice=choice, how="rounded", of=rung)
    how: Refinement = "rounded" if way == "equalized rounded" else "bias-corrected"
    built = refined(lane, equalized(lane, rung), choice=choice, how=how, of=rung)
    return replace(built, before=(rung.spine.record.artifact, *built.before))


def equalized(lane: Lane, rung: TorchRung) -> TorchRung:
    """The rung with its channels balanced between layers, the same numbers in float (Nagel et al. 2019)."""
    road, per_channel = lane.road, lane.target.numbers().per_channel

    def write(path: Path, out: Path) -> tuple[str, ...]:
        feeds = calibration_feeds(road, rung)
        found = quantization.equalize(path, feeds, out=out, per_channel=per_channel, progress=road.detail)
        return (f"equalized {len(found.changed)} sets of channels, left {len(found.left)}",)

    key = {"per_channel": per_channel, **road.data_key("calibration")}
    return rework(road, rung, change=Rework("equalize", key, write))


def refined(lane: Lane, rung: TorchRung, *, choice: Static, how: Refinement, of: TorchRung) -> Built:
    """Plan a rung, change its weights to suit the plan, and quantize the result."""
    road = lane.road
    ranges = calibrated(road, rung, method=choice.method, symmetric=lane.target.numbers().symmetric_activations)
    path = rung.path

    def make(folder: Path) -> Refined:
        road.progress(f"change weights of {of.name} ({how})", 0.0)
        plan = planned(lane, rung, choice=choice, ranges=ranges.record)
        out = folder / SPINE
        feeds = calibration_feeds(road, rung)
        plan = REFINEMENTS[how](path, plan, samples=feeds, out=out, progress=road.detail)
        parent = rung.spine.record.artifact.digest
        return Refined(Artifact(SPINE, "onnx", file_digest(out), out.stat().st_size, parent, how), plan)

    key = {**static_key(lane, choice=choice, ranges=ranges, of=of), "how": how, **road.data_key("calibration")}
    stage = road.workspace.stage("refine", key=key, make=make, kind=Refined)
    spine = msgspec.structs.replace(rung.spine.record, artifact=stage.record.artifact, parity=None)
    changed = replace(rung, spine=Stage(spine, stage.folder, stage.key, stage.fresh))

    def write(folder: Path) -> Quantized:
        return written(lane, changed, plan=stage.record.plan, ranges=ranges.record, folder=folder, of=of)

    quantized = road.workspace.stage("quantize", key={"refined": stage.key}, make=write, kind=Quantized)
    return Built(changed, quantized, before=(rung.spine.record.artifact,))
