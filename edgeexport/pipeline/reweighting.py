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
from edgeexport.pipeline.forms import Rework, Static, rework, spine_path, static_key, written
from edgeexport.pipeline.lower import Built, Lane, calibrated, calibration_feeds
from edgeexport.pipeline.spine import SPINE
from edgeexport.pipeline.torch_rungs import TorchRung
from edgeexport.records.artifact import Artifact
from edgeexport.records.base import file_digest
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.stages import Quantized, Refined
from edgeexport.workspace import Stage

Refinement: TypeAlias = Literal["bias-corrected", "rounded"]
REFINEMENTS: Mapping[Refinement, Callable[..., QuantizationPlan]] = MappingProxyType({
    "bias-corrected": quantization.correct_biases,
    "rounded": quantization.learn_rounding,
})  # fmt: skip


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
    road, numbers = lane.road, lane.target.numbers()
    ranges = calibrated(road, rung, method=choice.method, symmetric=numbers.symmetric_activations)
    path = spine_path(rung)

    def make(folder: Path) -> Refined:
        road.progress(f"{of.name}: {how} weights", 0.0)
        plan = quantization.plan_quantization(path, ranges.record, numbers=numbers, keep_float=choice.keep_float)
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
