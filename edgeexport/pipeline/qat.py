"""Quantization-aware training, the last remedy for static int8 that loses too much: weights and plan are trained.

The rule: the teacher is the source in float, and the recipe's training samples are what is learnt on; neither selection
nor evaluation samples are. The trained weights become a spine, so that every runtime gets the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeexport import quantization
from edgeexport.pipeline.encoders import RUNTIME, compared, form_choice, is_encoder
from edgeexport.pipeline.forms import Rework, Static, rework, written
from edgeexport.pipeline.lower import INT8, Built, Form, Lane, calibrated
from edgeexport.pipeline.reweighting import Way, static_int8
from edgeexport.pipeline.road import training_key
from edgeexport.pipeline.spine import SPINE
from edgeexport.pipeline.torch_rungs import TorchRung, training_data
from edgeexport.records.artifact import Artifact
from edgeexport.records.base import file_digest
from edgeexport.records.recipe import Quantize, teaches
from edgeexport.records.stages import Quantized, Refined
from edgeexport.records.target import NumberFormat
from edgeexport.workspace import Stage

if TYPE_CHECKING:
    from edgeexport.quantization.qat import Lesson
    from edgeexport.records.plan import QuantizationPlan
    from edgeexport.records.ranges import Ranges

NAME = "qat"


def may_train(lane: Lane, step: Quantize) -> bool:
    """Whether a recipe allows quantization-aware training, and has samples for it."""
    return step.qat != "never" and teaches(lane.road.recipe)


def trained_form(lane: Lane, rung: TorchRung, *, step: Quantize, way: Way, choice: Static) -> Form:
    """Return the trained form of a rung: of an encoder's linear layers, else of all, whose weights went `way` first."""
    if is_encoder(rung) and lane.target.runtime == RUNTIME:
        return Form(f"{rung.name} int8 {NAME} static", rung, lambda: _encoder(lane, rung, step=step))
    name = " ".join(filter(None, [rung.name, "int8", way, NAME, choice.method]))
    return Form(name, rung, lambda: _whole(lane, rung, step=step, choice=choice, way=way))


@dataclass(frozen=True)
class _Job:
    """One training: of which spine, by which plan, written how."""

    rung: TorchRung
    step: Quantize
    plan: Callable[[], QuantizationPlan]
    form: Any
    key: dict[str, Any]


def _whole(lane: Lane, rung: TorchRung, *, step: Quantize, choice: Static, way: Way) -> Built:
    """Train a rung for its static int8 form, from the weights and the plan that `way` leads to, and write it."""
    built = static_int8(lane, rung, way=way, choice=choice)
    ranges, plan = built.quantized.record.ranges, built.quantized.record.plan
    assert ranges is not None
    assert plan is not None
    job = _Job(built.rung, step, lambda: plan, "qdq", {"from": built.quantized.key})
    stage, changed = _trained(lane, job)

    def write(folder: Path) -> Quantized:
        made = written(lane, changed, plan=stage.record.plan, ranges=ranges, folder=folder, of=rung)
        return msgspec.structs.replace(made, notes=stage.record.notes)

    quantized = lane.road.workspace.stage("quantize", key={NAME: stage.key}, make=write, kind=Quantized)
    start = built.rung.spine.record.artifact
    return Built(changed, quantized, before=tuple(dict.fromkeys((*built.before, start))))


def _encoder(lane: Lane, rung: TorchRung, *, step: Quantize) -> Built:
    """Train an encoder for the static int8 form of its linear layers, and write it."""
    road = lane.road
    start = _rewritten(lane, rung)
    numbers = msgspec.structs.replace(lane.target.numbers(), activations="uint8", symmetric_activations=False)
    ranges = calibrated(road, start, method="minmax", symmetric=False)
    job = _Job(
        start,
        step,
        lambda: _linear_plan(start.path, ranges.record, numbers=numbers),
        "encoder",
        {"ranges": ranges.key, "numbers": msgspec.to_builtins(numbers), "of": rung.spine.record.artifact.digest},
    )
    stage, changed = _trained(lane, job)

    def write(folder: Path) -> Quantized:
        quantization.quantize_static_encoder(changed.path, stage.record.plan, out=folder / INT8)
        return compared(lane, rung, folder=folder, maker=f"quantize {NAME} static", notes=stage.record.notes)

    key = {NAME: stage.key, "tolerance": lane.target.tolerance.int8_sqnr_db}
    quantized = road.workspace.stage("quantize", key=key, make=write, kind=Quantized)
    return Built(changed, quantized, before=_before(rung, start))


def _linear_plan(path: Path, ranges: Ranges, *, numbers: NumberFormat) -> QuantizationPlan:
    kept = quantization.keep_encoder_float(path)
    return quantization.plan_quantization(path, ranges, numbers=numbers, keep_float=kept)


def _rewritten(lane: Lane, rung: TorchRung) -> TorchRung:
    """The rung as its best static form has it: as it is, or smoothed and with its outliers split off."""
    found = form_choice(lane, rung)
    static = next((trial for trial in found.record.trials if trial.form == "static"), None)
    if static is None or not static.rewritings:
        return rung

    def write(path: Path, out: Path) -> tuple[str, ...]:
        del path
        shutil.copyfile(found.folder / quantization.SPLIT, out)
        return static.rewritings

    return rework(lane.road, rung, change=Rework("rewrite for int8", {"choice": found.key, "form": static.path}, write))


def _trained(lane: Lane, job: _Job) -> tuple[Stage[Refined], TorchRung]:
    """Train, as one stage; return it, and the rung with the trained weights."""
    road, recipe, rung = lane.road, lane.road.recipe, job.rung
    path, source = rung.path, lane.source

    def make(folder: Path) -> Refined:
        from edgeexport.quantization.qat import train_quantized

        road.progress(f"train {rung.name} for its integers", 0.0)
        out = folder / SPINE
        lesson = _lesson(lane, job.step, form=job.form, state=road.workspace.unfinished(NAME, key=key))
        plan = job.plan()
        samples = training_data(road, rung.spine.record.signature)
        found = train_quantized(path, plan, data=samples, out=out, lesson=lesson, progress=road.detail)
        artifact = Artifact(
            SPINE, "onnx", file_digest(out), out.stat().st_size, rung.spine.record.artifact.digest, NAME
        )
        steps = f"trained for its integers: {found.record.epochs:g} epochs, {found.record.steps} steps"
        return Refined(artifact, found.plan, (steps, *road.taught_alone, found.agreement))

    key = {
        **job.key,
        "how": NAME,
        "form": job.form,
        "training": msgspec.to_builtins(job.step.training),
        "learn_steps": job.step.learn_steps,
        "teacher": source.spine.record.artifact.digest,
        "metric": _is_classes(lane),
        "arch": lane.target.arch,
        **training_key(job.step.training, recipe, workspace=road.workspace),
        **road.data_key("train"),
    }
    stage = road.workspace.stage(NAME, key=key, make=make, kind=Refined)
    spine = msgspec.structs.replace(rung.spine.record, artifact=stage.record.artifact, parity=None)
    return stage, replace(rung, spine=Stage(spine, stage.folder, stage.key, stage.fresh))


def _lesson(lane: Lane, step: Quantize, *, form: Any, state: Path) -> Lesson:
    from edgeexport.quantization.qat import Lesson

    teacher = lane.source.path
    return Lesson(
        step.training,
        teacher,
        classes=_is_classes(lane),
        learn_steps=step.learn_steps,
        form=form,
        state=state,
        arm=lane.target.arch == "aarch64",
    )


def _is_classes(lane: Lane) -> bool:
    """Whether outputs are class logits: what the metric takes them for."""
    return lane.road.answers in {None, "classes"}


def _before(rung: TorchRung, start: TorchRung) -> tuple[Artifact, ...]:
    first, second = rung.spine.record.artifact, start.spine.record.artifact
    return (first,) if first == second else (first, second)
