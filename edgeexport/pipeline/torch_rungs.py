"""The part of the road that lies in PyTorch: train, distil, prune, each step exported to a spine and gated.

The rule: a step whose spine loses more than allowed on the selection split, or that fails, is rolled back, and the next
step starts from the last one that held.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from edgeexport import data, quantization
from edgeexport.errors import ModelError, StepFailed
from edgeexport.pipeline.attempts import attempted, given_up, why
from edgeexport.pipeline.gates import Runnable, drop_gate, runnable_spine, scored
from edgeexport.pipeline.road import Road, declared_signature, model_key, training_key
from edgeexport.pipeline.spine import export_spine, onnx_spine
from edgeexport.pipeline.weights import Origin, keep, load_weights, origin_of
from edgeexport.records.artifact import Signature, TorchWeights
from edgeexport.records.base import digest, from_json
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import AUTO, Distill, ModelSpec, Prune, Recipe, Step, Train
from edgeexport.records.run import Rung
from edgeexport.records.stages import Scored, Spine
from edgeexport.records.target import Target
from edgeexport.records.training import Training
from edgeexport.workspace import Stage

if TYPE_CHECKING:
    from torch import nn

    from edgeexport.pipeline.layer_times import Place
    from edgeexport.training import TrainingData

# How a student was found decides nothing of what it learns.
CHOOSING = {"student", "speedup", "max_size_mb", "macs", "mixes", "round_to", "locked"}


@dataclass(frozen=True)
class TorchRung:
    """A network at one step of the road: its weights (None for an .onnx source), its spine, its selection score."""

    name: str
    weights: Stage[TorchWeights] | None
    spine: Stage[Spine]
    scored: Scored
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Where its spine, the fp32 ONNX file, lies."""
        return self.spine.folder / self.spine.record.artifact.path

    @property
    def runnable(self) -> Runnable:
        """The spine, ready to be run on samples."""
        return runnable_spine(self.spine)


@dataclass(frozen=True)
class TorchRoad:
    """Every rung that stands, the source first, and the ladder's rows for all that was tried."""

    standing: tuple[TorchRung, ...]
    rows: tuple[Rung, ...]


def climb(road: Road, bar: float | None, *, target: Target, device: str | None = None) -> TorchRoad:
    """Make the source, then take each PyTorch step of the recipe; roll back what loses more than `bar`, or fails.

    target, device: what pruning makes the network fast on. After a round that is rolled back its step has no others.
    Raises what is wrong with the source, the recipe, the samples or user code; see `pipeline.attempts`.
    """
    steps = road.recipe.step
    source = source_rung(road, next((step for step in steps if isinstance(step, Train)), None))
    _check_floats(road, source)
    standing, rows = [source], [_row(source, "")]
    for step in steps:
        for take in _moves(road, step, begin=standing[-1], place=(target, device)):
            made = _named_apart(take(last=standing[-1], source=source), rows)
            reason = made.reason if isinstance(made, Rung) else drop_gate(made.scored, bar)
            rows.append(made if isinstance(made, Rung) else _row(made, reason))
            if reason or isinstance(made, Rung):
                break
            standing.append(made)
    return TorchRoad(tuple(standing), tuple(rows))


def _check_floats(road: Road, source: TorchRung) -> None:
    """Refuse what is to stay in float and is not there, before trainings; a student of the user's may have it alone."""
    steps = road.recipe.step
    asked = road.recipe.quantize.keep_float if road.recipe.quantize else ()
    if asked and not any(isinstance(step, Distill) and isinstance(step.student, ModelSpec) for step in steps):
        quantization.check_nodes(asked, known=quantization.node_names(source.path))


def _named_apart(made: TorchRung | Rung, rows: Sequence[Rung]) -> TorchRung | Rung:
    """Return it with a number after its name where a row has that name: what is said of rungs is found by name."""
    taken, name = {row.name for row in rows}, made.name
    for number in itertools.count(2):
        if name not in taken:
            break
        name = f"{made.name} ({number})"
    return msgspec.structs.replace(made, name=name) if isinstance(made, Rung) else replace(made, name=name)


class Move(Protocol):
    """One try at a rung from the last one that stands; the source is the teacher."""

    def __call__(self, *, last: TorchRung, source: TorchRung) -> TorchRung | Rung:
        """Make the rung, or the row of one that was given up."""
        ...


def _moves(road: Road, step: Step, *, begin: TorchRung, place: tuple[Target, str | None]) -> Iterator[Move]:
    """Yield a move for a distil step, and one for every pruning round. begin: what stood before the step."""
    if isinstance(step, Distill):
        yield functools.partial(_distilled, road, step, place=place)
    if isinstance(step, Prune):
        from edgeexport.pipeline.pruned import Round, pruned

        where = place_of(road, place)
        for number in range(1, step.rounds + 1):
            yield functools.partial(pruned, road, Round(step, number, where), begin=begin)


def source_rung(road: Road, train: Train | None) -> TorchRung:
    """Make the rung that everything is compared with; trained first where the recipe says so."""
    recipe = road.recipe
    if recipe.model.onnx:
        spine = onnx_spine(road)
        return _scored_rung(road, "source", weights=None, spine=spine, source=None)

    def make(folder: Path) -> TorchWeights:
        seed = train.training.seed if train else 0
        module = _built(road, recipe.model, seed=seed)
        if train is not None:
            road.progress("train the source", 0.0)
            _fit(road, module, settings=train.training, state=road.workspace.unfinished("source", key=key))
        origin, maker = Origin(recipe.model, seed), "train" if train else "source"
        return keep(module, origin, folder=folder, maker=maker, parent="")

    key = {"model": model_key(recipe.model, recipe, workspace=road.workspace)}
    if train is not None:
        key |= {
            "train": msgspec.to_builtins(train),
            **training_key(train.training, recipe, workspace=road.workspace),
            **road.data_key("train"),
        }
    trained = train is not None
    weights = road.workspace.stage("source", key=key, make=make, kind=TorchWeights, together=trained)
    return rung_of(road, "source", weights=weights, source=None)


def place_of(road: Road, place: tuple[Target, str | None]) -> Place:
    """Return where, and in which form, the recipe's network is to be fast. place: target, device."""
    from edgeexport.pipeline.layer_times import Place

    return Place(place[0], "int8" if road.recipe.quantize else "fp32", place[1])


def distilled(
    road: Road, step: Distill, *, last: TorchRung, source: TorchRung, place: tuple[Target, str | None]
) -> TorchRung:
    """Make the rung of a distil step from the last one that stands. place: where a student made here is to be fast.

    Raises StepFailed for a training that diverges, and a student that cannot be exported or run.
    """
    pupil = _pupil(road, step, last=last, source=source, place=place)
    return _taught(road, step, pupil=pupil, last=last, source=source)


def _distilled(
    road: Road, step: Distill, *, last: TorchRung, source: TorchRung, place: tuple[Target, str | None]
) -> TorchRung | Rung:
    """The rung of a distil step, or the row of one that failed."""
    notes: tuple[str, ...] = ()
    try:
        pupil = _pupil(road, step, last=last, source=source, place=place)
        notes = pupil.notes
        return _taught(road, step, pupil=pupil, last=last, source=source)
    except StepFailed as error:
        return given_up("distilled", last, reason=why(error), notes=notes)


def _taught(road: Road, step: Distill, *, pupil: _Pupil, last: TorchRung, source: TorchRung) -> TorchRung:
    key = {**_lesson_key(road, step, source=source), "student": pupil.key}

    def make(folder: Path) -> TorchWeights:
        from edgeexport.compression.distill import distill

        road.progress("distil into the student" if step.student else "distil from the teacher", 0.0)
        teacher, student = teacher_of(road, step, source=source), pupil.build()
        state = road.workspace.unfinished("distill", key=key)
        distill(student, teacher, data=training_data(road), step=step, progress=road.detail, state=state)
        parent = _parent(source if isinstance(step.student, ModelSpec) else last)
        with attempted():
            return keep(student, pupil.origin, folder=folder, maker="distill", parent=parent)

    weights = road.workspace.stage("distill", key=key, make=make, kind=TorchWeights, together=True)
    with attempted():
        rung = rung_of(road, "distilled", weights=weights, source=source)
    return replace(rung, notes=(*pupil.notes, *road.taught_alone))


def _lesson_key(road: Road, step: Distill, *, source: TorchRung) -> dict[str, Any]:
    """What decides the outcome of a distil step besides who is taught."""
    lesson, recipe = msgspec.structs.replace(step, teacher=None), road.recipe
    return {
        "step": {name: value for name, value in msgspec.to_builtins(lesson).items() if name not in CHOOSING},
        "teacher": model_key(step.teacher, recipe, workspace=road.workspace) if step.teacher else stage_key(source),
        "answers": road.answers,
        **training_key(step.training, recipe, workspace=road.workspace),
        **road.data_key("train"),
    }


def teacher_of(road: Road, step: Distill, *, source: TorchRung) -> nn.Module:
    """Build the network that a distil step learns from."""
    return _built(road, _teacher(step.teacher, road.recipe), seed=0) if step.teacher else load_rung(road, source)


@dataclass(frozen=True)
class _Pupil:
    """Who is taught: how it is built, what rebuilds it, what it is known by, and what a report says of it."""

    build: Callable[[], nn.Module]
    origin: Origin
    key: Any
    notes: tuple[str, ...] = ()


def _pupil(
    road: Road, step: Distill, *, last: TorchRung, source: TorchRung, place: tuple[Target, str | None]
) -> _Pupil:
    """The network that a distil step teaches: the step's own, one cut from the present network, or that as it is."""
    student = step.student
    if isinstance(student, ModelSpec):
        spec = msgspec.structs.replace(student, inputs=student.inputs or road.recipe.model.inputs)
        key = model_key(student, road.recipe, workspace=road.workspace)
        seed = step.training.seed
        return _Pupil(lambda: _built(road, student, seed=seed), Origin(spec, seed), key)
    below = record_of(last)
    if student is None:
        return _Pupil(lambda: load_rung(road, last), origin_of(below), stage_key(last))

    def key_of(plan: PruningPlan) -> list[str]:
        return [stage_key(last), digest(plan)]

    def begun(plan: PruningPlan) -> bool:
        return road.workspace.begun("distill", key={**_lesson_key(road, step, source=source), "student": key_of(plan)})

    plan, notes = _cut(road, step, last=last, place=place, begun=begun)

    def build() -> nn.Module:
        from edgeexport.compression.prune import apply_pruning
        from edgeexport.compression.source import example_feeds

        return apply_pruning(load_rung(road, last), plan, example=example_feeds(below.model.inputs))

    origin = Origin(below.model, below.seed, (*below.plans, plan))
    return _Pupil(build, origin, key_of(plan), notes)


def _cut(
    road: Road,
    step: Distill,
    *,
    last: TorchRung,
    place: tuple[Target, str | None],
    begun: Callable[[PruningPlan], bool],
) -> tuple[PruningPlan, tuple[str, ...]]:
    """The plan that cuts a step's student from the present network: the one given, or the best of those made here."""
    if step.student != AUTO:
        path = data.existing(road.recipe.resolve(str(step.student)))
        return from_json(path.read_bytes(), PruningPlan, origin=str(path)), ()
    from edgeexport.pipeline.students import students, told

    found = students(road, step, last=last, place=place_of(road, place), begun=begun).record
    plan = found.tried[found.chosen].plan
    assert plan is not None
    return plan, told(found, step)


def _teacher(spec: ModelSpec, recipe: Recipe) -> ModelSpec:
    return msgspec.structs.replace(spec, inputs=spec.inputs or recipe.model.inputs)


def _built(road: Road, spec: ModelSpec, *, seed: int) -> nn.Module:
    """Build a network from its factory, with seeded starting weights where it brings none of its own."""
    from edgeexport.compression.source import load_torch

    return load_torch(road.with_live(spec), Path(road.recipe.folder), seed=seed)


def load_rung(road: Road, rung: TorchRung) -> nn.Module:
    """Rebuild a rung's network: factory, stored pruning, stored weights. Raises ModelError for an .onnx source."""
    if rung.weights is None:
        raise ModelError("an .onnx source has no PyTorch network to train, distil or prune")
    return load_weights(road, rung.weights)


def record_of(rung: TorchRung) -> TorchWeights:
    """Return what rebuilds a rung's network. Raises ModelError for an .onnx source."""
    if rung.weights is None:
        raise ModelError("an .onnx source has no PyTorch network to train, distil or prune")
    return rung.weights.record


def _parent(rung: TorchRung) -> str:
    return record_of(rung).artifact.digest


def stage_key(rung: TorchRung) -> str:
    """What made a rung: its code and settings too, which equal weights say nothing of."""
    record_of(rung)
    return rung.weights.key if rung.weights else ""


def _fit(road: Road, module: nn.Module, *, settings: Training, state: Path) -> None:
    from edgeexport.training import resolve_loss, train

    loss = resolve_loss(settings.loss, road.recipe.folder)
    train(module, training_data(road), loss=loss, settings=settings, progress=road.detail, state=state)


def training_data(road: Road, signature: Signature | None = None) -> TrainingData:
    """Return the training split in memory. signature: of what is fed with it; the recipe's network when left out."""
    from edgeexport.training import TrainingData

    prepared = road.prepared("train", signature or declared_signature(road.recipe.model.inputs))
    inputs, labels = data.arrays(prepared, progress=road.detail)
    return TrainingData(tuple(inputs.values()), labels, folder=road.recipe.folder, answers=road.answers)


def rung_of(road: Road, name: str, *, weights: Stage[TorchWeights], source: TorchRung | None) -> TorchRung:
    """Export a network that a stage left behind, and score it."""
    parent = weights.record.artifact.digest
    spine = export_spine(
        road, name, parent=parent, load=lambda: load_weights(road, weights), key={"weights": weights.key}
    )
    return _scored_rung(road, name, weights=weights, spine=spine, source=source)


def _scored_rung(
    road: Road, name: str, *, weights: Stage[TorchWeights] | None, spine: Stage[Spine], source: TorchRung | None
) -> TorchRung:
    road.progress(f"score {name} on the selection split", 0.0)
    model = runnable_spine(spine)
    result = scored(road, model, source=source.runnable if source else model, split="selection")
    return TorchRung(name, weights, spine, result)


def _row(rung: TorchRung, reason: str) -> Rung:
    spine = rung.spine.record
    return Rung(
        name=rung.name,
        form="fp32",
        target=None,
        artifact=spine.artifact,
        status="rolled back" if reason else "kept",
        reason=reason,
        parity=spine.parity,
        score=rung.scored.score,
        drop=rung.scored.drop,
        notes=(*rung.notes, f"exporter: {spine.exporter}", *spine.notes),
    )
