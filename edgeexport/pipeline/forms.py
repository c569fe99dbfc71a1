"""The reduced forms of a rung, each a stage of its own: statically quantized, with the spine's weights or with others.

The rule: whatever the weights went through, a form is compared with the rung that stands, never with itself; `rework`
keeps the chain of files that led to other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from edgeexport import graph, quantization, runtimes
from edgeexport.pipeline.gates import SPINE_RUNTIME
from edgeexport.pipeline.lower import INT8, Lane, calibrated, cut_away
from edgeexport.pipeline.road import Road
from edgeexport.pipeline.spine import SPINE
from edgeexport.pipeline.torch_rungs import TorchRung
from edgeexport.records.artifact import Artifact
from edgeexport.records.base import file_digest
from edgeexport.records.parity import Parity
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.ranges import Ranges
from edgeexport.records.stages import Quantized, Spine
from edgeexport.validation.compare import compare_sessions, first_divergence
from edgeexport.workspace import Stage, versions

PACKAGES = ("onnxruntime", "onnx", "numpy")


@dataclass(frozen=True)
class Static:
    """What decides a static int8 form besides its rung: how ranges are chosen, and which nodes stay in float."""

    method: str
    keep_float: Mapping[str, str]


def static(lane: Lane, rung: TorchRung, *, choice: Static, of: TorchRung) -> Stage[Quantized]:
    """Plan and write the int8 QDQ file of a rung, and compare it with the standing rung that it is a form of."""
    road = lane.road
    ranges = calibrated(road, rung, method=choice.method, symmetric=lane.target.numbers().symmetric_activations)

    def make(folder: Path) -> Quantized:
        road.progress(f"quantize {of.name} ({choice.method})", None)
        plan = planned(lane, rung, choice=choice, ranges=ranges.record)
        return written(lane, rung, plan=plan, ranges=ranges.record, folder=folder, of=of)

    key = static_key(lane, choice=choice, ranges=ranges, of=of)
    return road.workspace.stage("quantize", key=key, make=make, kind=Quantized)


def planned(lane: Lane, rung: TorchRung, *, choice: Static, ranges: Ranges) -> QuantizationPlan:
    """Plan a rung's integers, with the nodes that static int8 leaves in float, as far as they were not cut away."""
    path, gone = rung.path, cut_away(lane, rung, names=choice.keep_float)
    asked = {name: reason for name, reason in choice.keep_float.items() if name not in gone}
    kept = left_in_float(path, ranges, asked=asked)
    return quantization.plan_quantization(path, ranges, numbers=lane.target.numbers(), keep_float=kept)


def left_in_float(path: Path, ranges: Ranges, *, asked: Mapping[str, str]) -> dict[str, str]:
    """Return what static int8 leaves in float, node -> reason: what is asked for, front-ends of a logarithm, heads.

    Heads are those that share a Concat but no range.
    """
    return {**quantization.front_floats(path), **quantization.head_floats(path, ranges), **asked}


def static_key(lane: Lane, *, choice: Static, ranges: Stage[Ranges], of: TorchRung) -> dict[str, Any]:
    """What decides a plan and how its file is judged."""
    return {
        "ranges": ranges.key,
        "of": of.spine.record.artifact.digest,
        "numbers": msgspec.to_builtins(lane.target.numbers()),
        "keep_float": dict(choice.keep_float),
        "tolerance": lane.target.tolerance.int8_sqnr_db,
        "versions": versions("torch", *PACKAGES),
    }


def written(
    lane: Lane, rung: TorchRung, *, plan: QuantizationPlan, ranges: Ranges, folder: Path, of: TorchRung
) -> Quantized:
    """Apply a plan to a rung's spine in `folder`, and compare the file with the spine of `of`."""
    out = folder / INT8
    quantization.quantize(rung.path, plan, out=out)
    digest = rung.spine.record.artifact.digest
    artifact = Artifact(INT8, "onnx", file_digest(out), out.stat().st_size, digest, f"quantize {plan.method}")
    parity = reduced_parity(lane.road, rung, out=out, sqnr_db=lane.target.tolerance.int8_sqnr_db, of=of)
    return Quantized(artifact, ranges, plan, parity)


def reduced_parity(road: Road, rung: TorchRung, *, out: Path, sqnr_db: float, of: TorchRung) -> Parity:
    """Compare a reduced ONNX file with the spine of `of` on real samples; when it does not hold, find where it begins.

    rung: whose weights the file has; inside the network only its tensors can be compared with the file's.
    """
    spine = of.spine.record
    runtime = runtimes.get(SPINE_RUNTIME)
    feeds = list(road.parity_feeds(spine.signature))
    labels = (spine.artifact.digest, file_digest(out))
    reference = runtime.open(of.path).run
    parity = compare_sessions(reference, runtime.open(out).run, samples=feeds, artifacts=labels, sqnr_db=sqnr_db)
    if parity.holds:
        return parity
    below = graph.load(rung.path)
    begins = first_divergence(below, graph.load(out), feeds=feeds[0], sqnr_db=sqnr_db)
    return msgspec.structs.replace(parity, first_divergence=begins)


@dataclass(frozen=True)
class Rework:
    """A change of a spine's weights. `write` makes the new file from the old and says what it did.

    name: what it is called in makers and rows. key: what decides its outcome besides the spine.
    """

    name: str
    key: Mapping[str, Any]
    write: Callable[[Path, Path], tuple[str, ...]]


def rework(road: Road, rung: TorchRung, *, change: Rework) -> TorchRung:
    """Return the rung with a spine of changed weights, as a stage of its own."""
    spine = rung.spine.record

    def make(folder: Path) -> Spine:
        road.progress(f"{change.name} {rung.name}", None)
        out = folder / SPINE
        notes = change.write(rung.path, out)
        artifact = Artifact(SPINE, "onnx", file_digest(out), out.stat().st_size, spine.artifact.digest, change.name)
        return msgspec.structs.replace(spine, artifact=artifact, parity=None, notes=notes)

    key = {"spine": spine.artifact.digest, "what": change.name, **change.key, "versions": versions("torch", *PACKAGES)}
    return replace(rung, spine=road.workspace.stage("rework", key=key, make=make, kind=Spine))
