"""Inspect: what an .onnx file holds; on each target what will not run, what will not fuse and why, and what it costs.

The rule: an int8 file is audited as it is; a float one through a trial int8 form, and where nobody gave samples the
record says that its ranges come from random inputs. A machine that is not the target gives a graph, never a cost.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeexport import devices, graph, quantization, runtimes
from edgeexport.bundles import unpack
from edgeexport.errors import EdgeExportError, ModelError, RequestError
from edgeexport.pipeline.spine import REWRITINGS
from edgeexport.progress import Progress, silent
from edgeexport.quantization.audit import audit
from edgeexport.quantization.kernels import BOUNDARY
from edgeexport.records.audit import Audit
from edgeexport.records.base import digest, file_digest, listed
from edgeexport.records.inspection import Form, Inspection, TargetInspection
from edgeexport.records.target import Target, load_target
from edgeexport.runtimes.ort import model_floor, target_options
from edgeexport.runtimes.protocol import Conversion

if TYPE_CHECKING:
    from onnx import ModelProto

    from edgeexport.runtimes.protocol import Feeds

ORT, LITERT = "ort", "litert"
GIVEN, RANDOM = "ranges from the given samples", "trial: ranges from random inputs"
TRIAL_SAMPLES = 4
# Model files that are no ONNX graphs.
OTHERS, ONNX_ONLY = (".ort", ".tflite", ".pte"), "what `inspect` reads are .onnx files"
_DYNAMIC = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulNBits"})


def inspect(
    model: Path | str,
    targets: Sequence[Target | str] | Target | str = (),
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    samples: Sequence[Feeds] = (),
    progress: Progress = silent,
) -> Inspection:
    """Return what an .onnx file holds and how it would fare on each target; of a bundle, its model on its own target.

    shapes: input -> sizes, batch first, for inputs whose sizes the file leaves free. samples: feeds in the file's
    signature; without any, random ones are used and marked as such.
    Raises CorruptFile and ModelError for a file that cannot be read, RecipeError for a target that is not known.
    """
    path, places = Path(model), [load_target(item) if isinstance(item, str) else item for item in listed(targets)]
    if path.suffix == ".bundle":
        return _of_bundle(path, places, shapes=shapes, samples=samples, progress=progress)
    if path.suffix in OTHERS:
        raise RequestError(f"{path}: {ONNX_ONLY}", next_step=f"to measure it: edgeexport bench {path}")
    given = graph.load(path)
    form = form_of(given)
    counts = graph.macs(graph.with_input_shapes(given, shapes) if shapes else given)
    signature = graph.signature(given)
    subject = _Subject(path, given, form, dict(shapes or {}), samples, progress)
    return Inspection(
        path=str(path),
        digest=file_digest(path),
        bytes=path.stat().st_size,
        form=form,
        opset=graph.standard_opset(given),
        ir_version=int(given.ir_version),
        floor=model_floor(given),
        inputs=signature.inputs,
        outputs=signature.outputs,
        operators=graph.op_counts(given),
        parameters=_parameters(given),
        macs=sum(counts.values()) if counts is not None else None,
        subgraph_nodes=sum(graph.op_counts(given).values()) - len(given.graph.node),
        targets=tuple(_on(subject, target) for target in places),
    )


def _of_bundle(path: Path, places: Sequence[Target], **more: Any) -> Inspection:
    """Inspect the model of a bundle, for the bundle's own target where none is named."""
    with tempfile.TemporaryDirectory(prefix="edgeexport-inspect-") as folder:
        manifest = unpack(path, Path(folder) / "bundle")
        inner = Path(folder) / "bundle" / manifest.model
        if inner.suffix in OTHERS:
            step = f"inspect the .onnx it was made from, or measure it: edgeexport bench {path}"
            raise RequestError(f"{path} holds {manifest.model}, and {ONNX_ONLY}", next_step=step)
        found = inspect(inner, places or (manifest.target,), **more)
    return msgspec.structs.replace(found, path=f"{path}, {manifest.model}")


def read_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read `NAME=1,3,224,224` texts. Raises RequestError for one that is not of this form."""
    found = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        parts = sizes.split(",")
        if not name or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            raise RequestError(f"--input {text!r} is not NAME=SIZE,SIZE,…", next_step="say e.g. --input x=1,3,224,224")
        found[name] = tuple(map(int, parts))
    return found


def form_of(model: ModelProto) -> Form:
    """Return in which numbers a file computes, as far as its operators tell."""
    ops = graph.op_counts(model).keys()
    if _DYNAMIC & ops or "MatMulInteger" in ops:
        return "dynamic int8"
    return "int8" if BOUNDARY & ops or any(op.startswith("QLinear") for op in ops) else "float"


@dataclass
class _Subject:
    """A file with all that its targets share."""

    path: Path
    model: ModelProto
    form: Form
    shapes: dict[str, tuple[int, ...]]
    samples: Sequence[Feeds]
    progress: Progress
    made: list[Feeds] = field(default_factory=list)

    def feeds(self) -> list[Feeds]:
        """The samples given, or random ones. Raises ModelError where a size is free and nobody said it."""
        if self.samples:
            return list(self.samples)
        if not self.made:
            sizes = self._sizes()
            values = graph.free_inputs(self.model)
            self.made = [
                {value.name: graph.random_input(value, sizes[value.name], seed=seed) for value in values}
                for seed in range(TRIAL_SAMPLES)
            ]
        return self.made

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        try:
            return graph.complete_inputs(self.model, self.shapes)
        except ModelError as error:
            raise ModelError(str(error), next_step="give its sizes: --input NAME=1,3,224,224") from error

    @property
    def basis(self) -> str:
        """Where the ranges of a trial come from."""
        return GIVEN if self.samples else RANDOM


def _on(subject: _Subject, target: Target) -> TargetInspection:
    """The file on one target, whatever stands in the way there."""
    subject.progress(f"inspect for {target.name}", None)
    found = TargetInspection(target.name, target.runtime, target.numbers())
    if target.runtime != ORT:
        return msgspec.structs.replace(found, refused=_refused_by_lift(subject, target))
    with tempfile.TemporaryDirectory(prefix="edgeexport-") as folder:
        if subject.form == "float":
            return _trial(subject, target, found=found, folder=Path(folder))
        return _as_it_is(subject, target, found=found, folder=Path(folder))


def _refused_by_lift(subject: _Subject, target: Target) -> tuple[str, ...]:
    """LiteRT files are made by way of torch, so what the lift does not know will not run there."""
    if target.runtime != LITERT:
        return (f"edgeexport has no check for the runtime {target.runtime!r}",)
    refused = []
    if subject.form != "float":
        refused.append(f"LiteRT files are made from float models, this one is {subject.form}: give the float one")
    known = graph.lift_operators()
    for op, count in graph.op_counts(subject.model).items():
        if op not in known and op not in BOUNDARY:
            refused.append(f"{op} ({count}): this version cannot turn it into torch, on the way to LiteRT")
    for spec in graph.signature(subject.model).inputs:
        free = [str(size) for size in spec.shape[1:] if isinstance(size, str)]
        if free and spec.name not in subject.shapes:
            refused.append(f"input {spec.name!r} has free sizes ({', '.join(free)}); LiteRT files have fixed ones")
    return tuple(refused)


def _as_it_is(subject: _Subject, target: Target, *, found: TargetInspection, folder: Path) -> TargetInspection:
    """Convert an int8 file and audit what would run."""
    job = Conversion(subject.path, subject.path, None, None, lambda: iter(()), target)
    types = _activation_types(subject.model)
    wanted = found.numbers.activations
    others = sorted(types - {wanted}) if types else []
    notes = (f"its activations are {' and '.join(others)}, the kernels there want {wanted}",) if others else ()
    return _audited(subject, job, found=msgspec.structs.replace(found, notes=notes), folder=folder)


def _activation_types(model: ModelProto) -> set[str]:
    stored = graph.initializers(model)
    points = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and len(node.input) > 2]
    return {stored[node.input[2]].dtype.name for node in points if node.input[2] in stored}


def _trial(subject: _Subject, target: Target, *, found: TargetInspection, folder: Path) -> TargetInspection:
    """Write a float file in the target's int8, with whatever ranges there are, and audit that."""
    plain = Conversion(subject.path, None, None, None, lambda: iter(()), target)
    try:
        runtimes.get(ORT).convert(plain, folder / f"float.{target.format}")
    except ModelError as error:
        return msgspec.structs.replace(found, refused=(str(error),))
    spine, int8 = folder / "spine.onnx", folder / "int8.onnx"
    try:
        notes = _cleaned(subject, spine)
        ranges = quantization.calibrate(
            spine, subject.feeds(), samples_digest=digest(subject.basis), symmetric=found.numbers.symmetric_activations
        )
        plan = quantization.plan_quantization(spine, ranges, numbers=found.numbers)
        quantization.quantize(spine, plan, out=int8)
    except EdgeExportError as error:
        tip = f"; {error.next_step}" if error.next_step else ""
        return msgspec.structs.replace(found, notes=(*found.notes, f"no int8 trial: {error}{tip}"))
    planned = msgspec.structs.replace(found, kept_float=plan.keep_float, notes=notes, basis=subject.basis)
    job = Conversion(spine, int8, ranges, plan, lambda: iter(()), target)
    return _audited(subject, job, found=planned, folder=folder)


def _cleaned(subject: _Subject, spine: Path) -> tuple[str, ...]:
    """Write the file as a run would clean it; return what was done. The first rewriting that works is taken."""
    model = subject.model
    if subject.shapes:
        model = graph.fix_inputs(model, graph.complete_inputs(model, subject.shapes), free_batch=True)
    notes: list[str] = []
    for name, rewrite in REWRITINGS:
        try:
            cleaned, told = rewrite(model)
            graph.save(cleaned, spine)
            graph.load(spine)
        except ModelError as error:
            notes.append(f"{name}: {error}")
            continue
        return (*notes, *told)
    raise ModelError(f"{subject.path}: it cannot be cleaned: {'; '.join(notes)}")


def _audited(subject: _Subject, job: Conversion, *, found: TargetInspection, folder: Path) -> TargetInspection:
    """Convert as a run would, and look at the graph that this onnxruntime makes of it under the target's options."""
    out = folder / "runs.onnx"
    as_onnx = replace(job, target=msgspec.structs.replace(job.target, format="onnx"))
    try:
        converted = runtimes.get(ORT).convert(as_onnx, out)
    except ModelError as error:
        return msgspec.structs.replace(found, refused=(*found.refused, str(error)))
    able, reason = devices.get("local").can_judge(job.target)
    notes = found.notes
    feeds: list[Feeds] = []
    if able:
        try:
            feeds = subject.feeds()
        except EdgeExportError as error:
            able, reason = False, str(error)
    if not able:
        notes = (*notes, f"no costs: {reason}")
    seen = audit(out, feeds=feeds, options=target_options(job), profile=able)
    told = _with_reason(seen, reason)
    return msgspec.structs.replace(found, notes=(*notes, *converted.notes), audit=told)


def _with_reason(seen: Audit, reason: str) -> Audit:
    return seen if seen.us is not None else msgspec.structs.replace(seen, unmeasured=reason)


def _parameters(model: ModelProto) -> int:
    stored = {**graph.constants(model), **graph.initializers(model)}
    return sum(value.size for value in stored.values() if value.dtype.kind == "f" or value.dtype.itemsize == 1)
