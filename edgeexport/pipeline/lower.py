"""From a standing rung to one file that runs on a target: convert, compare, score, each gated on the way.

The rule: a candidate that was built has a row, whether its gates held or not; of what cannot be built there is just the
row, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edgeexport import quantization, runtimes
from edgeexport.errors import ConverterFailed, DataError, EdgeExportError, ModelError
from edgeexport.pipeline.attempts import why
from edgeexport.pipeline.gates import SPINE_RUNTIME, Runnable, drop_gate, scored
from edgeexport.pipeline.road import Road
from edgeexport.pipeline.torch_rungs import TorchRung
from edgeexport.records.artifact import Artifact, Signature
from edgeexport.records.base import file_digest
from edgeexport.records.parity import Parity
from edgeexport.records.ranges import Ranges
from edgeexport.records.run import Rung
from edgeexport.records.stages import Lowered, Quantized
from edgeexport.records.target import Target
from edgeexport.records.verdict import Verdict
from edgeexport.runtimes.protocol import Conversion
from edgeexport.validation.compare import compare_sessions
from edgeexport.workspace import Stage, versions

if TYPE_CHECKING:
    from edgeexport.runtimes.protocol import Feeds

INT8 = "int8.onnx"


@dataclass(frozen=True)
class Lane:
    """One target's part of the road: the source that everything is compared with, and the largest drop allowed.

    device: where the user wants things to be measured.
    refused: the verdicts so far of candidates that were measured and did not ship, by name; the ladder learns from it.
    """

    road: Road
    target: Target
    source: TorchRung
    bar: float | None
    device: str | None = None
    refused: dict[str, Verdict] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """A form as an ONNX file, and the rung it was made from: its weights may be other than the standing rung's.

    before: what those weights were made from, oldest first.
    """

    rung: TorchRung
    quantized: Stage[Quantized]
    before: tuple[Artifact, ...] = ()


@dataclass(frozen=True)
class Form:
    """One reduced form of a standing rung, not built yet.

    `build` raises ModelError, ConverterFailed, or DataError for samples that do not suffice, if it cannot.
    """

    name: str
    rung: TorchRung
    build: Callable[[], Built]


@dataclass(frozen=True)
class Candidate:
    """A file that runs on the target, with the row it has on the ladder. `row.status` says if its gates held.

    misfit: it was rolled back for the type of its inputs alone.
    """

    row: Rung
    lowered: Stage[Lowered]
    rung: TorchRung
    quantized: Stage[Quantized] | None
    before: tuple[Artifact, ...] = ()
    misfit: bool = False

    @property
    def stands(self) -> bool:
        """Whether every gate held."""
        return self.row.status == "kept"

    @property
    def path(self) -> Path:
        """The model file."""
        return self.lowered.folder / self.lowered.record.artifact.path

    def runnable(self, target: Target) -> Runnable:
        """The file, ready to be run on samples given in the spine's terms."""
        record = self.lowered.record
        signature = self.rung.spine.record.signature
        return Runnable(record.artifact.digest, self.path, target.runtime, record.session_options, signature)


def fp32_candidate(lane: Lane, rung: TorchRung) -> Candidate | Rung:
    """Return a rung in fp32 as it would ship, or just its row when it cannot be converted."""
    name = f"{rung.name} fp32"
    try:
        lowered = _lowered(lane, rung, quantized=None)
    except (ModelError, ConverterFailed) as error:
        return _unbuilt(lane, rung, name=name, error=error)
    return for_target(lane, _gated(lane, name, rung=rung, lowered=lowered, quantized=None))


def _unbuilt(lane: Lane, rung: TorchRung, *, name: str, error: EdgeExportError) -> Rung:
    """The row of what could not be built: it shows the spine that it would have been made from."""
    form = form_of(name)
    reason = f"{form} cannot be built: {why(error)}"
    return Rung(name, form, lane.target.name, rung.spine.record.artifact, "rolled back", reason)


def form_of(name: str) -> Literal["fp32", "fp16", "int8"]:
    """Tell from a form's name what numbers its file holds: "source fp32", "pruned fp16", "source int8 minmax"."""
    return "fp32" if name.endswith(" fp32") else "fp16" if name.endswith(" fp16") else "int8"


def baseline(lane: Lane) -> Candidate:
    """Return the uncompressed fp32 source in the target's runtime and format: what everything is compared with."""
    rung = lane.source
    return _gated(lane, f"{rung.name} fp32", rung=rung, lowered=_lowered(lane, rung, quantized=None), quantized=None)


def candidate(lane: Lane, form: Form) -> Candidate | Rung:
    """Build a form, convert it for the target and gate it; just its row when one of these cannot be done."""
    try:
        made = form.build()
        lowered = _lowered(lane, made.rung, quantized=made.quantized)
    except (ModelError, DataError, ConverterFailed) as error:
        return _unbuilt(lane, form.rung, name=form.name, error=error)
    gated = _gated(lane, form.name, rung=made.rung, lowered=lowered, quantized=made.quantized)
    return for_target(lane, replace(gated, before=made.before))


def _gated(
    lane: Lane, name: str, *, rung: TorchRung, lowered: Stage[Lowered], quantized: Stage[Quantized] | None
) -> Candidate:
    """Score a converted file on the selection split and write its row, with the first gate that does not hold."""
    row = Rung(
        name=name,
        form=form_of(name),
        target=lane.target.name,
        artifact=lowered.record.artifact,
        status="kept",
        parity=quantized.record.parity if quantized else lowered.record.parity,
        notes=(*(_told(lane, rung, quantized=quantized) if quantized else ()), *lowered.record.notes),
    )
    candidate = Candidate(row, lowered, rung, quantized)
    reason = _parity_reason(lowered, quantized)
    if not reason:
        lane.road.progress(f"score {name} for {lane.target.name}", 0.0)
        result = scored(lane.road, candidate.runnable(lane.target), source=lane.source.runnable, split="selection")
        row = msgspec.structs.replace(row, score=result.score, drop=result.drop)
        reason = drop_gate(result, lane.bar)
    if reason:
        row = msgspec.structs.replace(row, status="rolled back", reason=reason)
    return Candidate(row, lowered, rung, quantized)


def _told(lane: Lane, rung: TorchRung, *, quantized: Stage[Quantized]) -> tuple[str, ...]:
    """What is to be said of a reduced form: of a planned one, too, what should stay in float and is gone."""
    step = lane.road.recipe.quantize
    gone = cut_away(lane, rung, names=step.keep_float) if step and quantized.record.plan else []
    return (*quantized.record.notes, *(f"`{name}` is not kept in float: it was cut away" for name in gone))


def cut_away(lane: Lane, rung: TorchRung, *, names: Iterable[str]) -> list[str]:
    """Return those of the named nodes that the source has and a rung has no longer."""
    asked = list(names)
    if not asked:
        return []
    had, has = (set(quantization.node_names(each.path)) for each in (lane.source, rung))
    return [name for name in asked if name in had - has]


def for_target(lane: Lane, candidate: Candidate) -> Candidate:
    """Return the candidate as something to ship, rolled back when its inputs are not what the target asks for.

    The fp32 source is compared with whatever its inputs are; only to ship it needs this.
    """
    reason = _io_reason(lane.target, candidate.lowered.record.signature)
    if not reason or not candidate.stands:
        return candidate
    row = msgspec.structs.replace(candidate.row, status="rolled back", reason=reason)
    return replace(candidate, row=row, misfit=True)


def _io_reason(target: Target, signature: Signature) -> str:
    """Return why a file cannot be fed as the target says; empty when it can."""
    if target.io == "int8" and any(spec.dtype == "float32" for spec in signature.inputs):
        return "its inputs are float32, the target asks for int8"
    return ""


def _parity_reason(lowered: Stage[Lowered], quantized: Stage[Quantized] | None) -> str:
    """Return the first numeric gate that failed, in words; empty when all hold."""
    if quantized is not None and not quantized.record.parity.holds:
        return f"int8 differs from float: {describe(quantized.record.parity)}"
    if not lowered.record.parity.holds:
        return f"the converted file differs: {describe(lowered.record.parity)}"
    return ""


def describe(parity: Parity) -> str:
    """Say how a comparison failed, and where it began when that is known."""
    where = parity.first_divergence
    if where is None:
        return parity.reason
    return f"{parity.reason}; it begins at {where.tensor!r} (made by {where.op} {where.node!r}, {where.sqnr_db:.1f} dB)"


def calibrated(road: Road, rung: TorchRung, *, method: str, symmetric: bool) -> Stage[Ranges]:
    """Collect the ranges of a spine's tensors over the calibration split."""
    spine = rung.spine.record
    path = rung.path
    step = road.recipe.quantize
    collected = {
        "spine": spine.artifact.digest,
        "symmetric": symmetric,
        "versions": versions("numpy", "onnxruntime", "onnx"),
        **road.data_key("calibration"),
    }

    def make(_: Path) -> Ranges:
        road.progress(f"calibrate {rung.name} ({method})", 0.0)
        return quantization.calibrate(
            path,
            road.prepared("calibration", spine.signature),
            method=method,
            symmetric=symmetric,
            samples_digest=road.splits.calibration.digest,
            progress=road.detail,
            memory_limit_mb=step.memory_limit_mb if step else None,
            state=road.workspace.unfinished("calibrate", key={**collected, "minmax": method == "minmax"}),
        )

    return road.workspace.stage("calibrate", key={**collected, "method": method}, make=make, kind=Ranges)


def _lowered(lane: Lane, rung: TorchRung, *, quantized: Stage[Quantized] | None) -> Stage[Lowered]:
    """Convert a rung's spine, or its int8 form, into the file that runs on the target, and compare the two."""
    road, target = lane.road, lane.target
    runtime = runtimes.get(target.runtime)
    below = quantized.record.artifact if quantized else rung.spine.record.artifact
    name = f"model.{target.format}"

    def make(folder: Path) -> Lowered:
        road.progress(f"convert {rung.name} to {'int8' if quantized else 'fp32'} for {target.name}", None)
        job = Conversion(
            spine=rung.path,
            quantized=quantized.folder / INT8 if quantized else None,
            ranges=quantized.record.ranges if quantized else None,
            plan=quantized.record.plan if quantized else None,
            samples=lambda: calibration_feeds(road, rung),
            target=target,
        )
        out = folder / name
        converted = runtime.convert(job, out, progress=road.detail)
        artifact = Artifact(
            name, target.format, file_digest(out), out.stat().st_size, below.digest, f"convert {target.runtime}"
        )
        parity = _converted_parity(lane, rung, quantized=quantized, out=out, options=converted.session_options)
        return Lowered(
            artifact, converted.signature, converted.session_options, converted.floor, parity, converted.notes
        )

    key = {
        "below": below.digest,
        "quantized": quantized.key if quantized else None,
        "spine": rung.spine.record.artifact.digest,
        "target": _conversion_facts(target),
        "versions": versions("numpy", *runtime.packages),
        **road.data_key("calibration"),
    }
    return road.workspace.stage("convert", key=key, make=make, kind=Lowered)


def _converted_parity(
    lane: Lane, rung: TorchRung, *, quantized: Stage[Quantized] | None, out: Path, options: dict[str, Any]
) -> Parity:
    """Compare a converted file, run in its own runtime, with the ONNX file that it stands for."""
    spine = rung.spine.record
    below = quantized.folder / INT8 if quantized else rung.path
    run, _ = Runnable("", out, lane.target.runtime, options, spine.signature).open()
    labels = (file_digest(below), file_digest(out))
    tolerance = lane.target.tolerance
    bars = {"sqnr_db": tolerance.convert_sqnr_db} if quantized else {"float_error": tolerance.float_error}
    feeds = list(lane.road.parity_feeds(spine.signature))
    return compare_sessions(runtimes.get(SPINE_RUNTIME).open(below).run, run, samples=feeds, artifacts=labels, **bars)


def _conversion_facts(target: Target) -> dict[str, Any]:
    """What of a target decides the bytes of a converted file: everything but its name, words and limits."""
    facts = msgspec.to_builtins(target)
    return {key: value for key, value in facts.items() if key not in {"name", "title", "notes", "limits"}}


def calibration_feeds(road: Road, rung: TorchRung) -> Iterator[Feeds]:
    """Yield the calibration samples one by one, in the spine's signature."""
    prepared = road.prepared("calibration", rung.spine.record.signature)
    return (prepared.feeds(index) for index in range(len(prepared)))
