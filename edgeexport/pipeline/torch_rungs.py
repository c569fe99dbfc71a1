"""The part of the road that lies in PyTorch: train, distil, prune, each step exported to a spine and gated.

The rule: a step whose spine loses more than allowed on the selection split is rolled back, and the next step starts
from the last one that held.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from edgeexport.errors import ModelError
from edgeexport.pipeline.gates import Runnable, drop_gate, runnable_spine, scored
from edgeexport.pipeline.road import Road, declared_signature, model_key, training_key
from edgeexport.pipeline.spine import export_spine, onnx_spine
from edgeexport.records.artifact import Artifact, TorchWeights
from edgeexport.records.base import file_digest
from edgeexport.records.recipe import Distill, ModelSpec, Prune, Recipe, Step, Train, Training
from edgeexport.records.run import Rung
from edgeexport.records.stages import Scored, Spine
from edgeexport.workspace import Stage

if TYPE_CHECKING:
    from torch import nn

    from edgeexport.training import TrainingData

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class TorchRung:
    """A network at one step of the road: its weights (None for an .onnx source), its spine, its selection score."""

    name: str
    weights: Stage[TorchWeights] | None
    spine: Stage[Spine]
    scored: Scored

    @property
    def runnable(self) -> Runnable:
        """The spine, ready to be run on samples."""
        return runnable_spine(self.spine)


@dataclass(frozen=True)
class TorchRoad:
    """Every rung that stands, the source first, and the ladder's rows for all that was tried."""

    standing: tuple[TorchRung, ...]
    rows: tuple[Rung, ...]


def climb(road: Road, bar: float | None) -> TorchRoad:
    """Make the source, then take each PyTorch step of the recipe; roll back what loses more than `bar`."""
    steps = road.recipe.step
    source = _source(road, next((step for step in steps if isinstance(step, Train)), None))
    standing, rows = [source], [_row(source, "")]
    for take in _moves(road, steps):
        rung = take(last=standing[-1], source=source)
        reason = drop_gate(rung.scored, bar)
        rows.append(_row(rung, reason))
        if not reason:
            standing.append(rung)
    return TorchRoad(tuple(standing), tuple(rows))


class Move(Protocol):
    """One step that makes a rung from the last one that stands; the source is the teacher."""

    def __call__(self, *, last: TorchRung, source: TorchRung) -> TorchRung:
        """Make the rung."""
        ...


def _moves(road: Road, steps: Sequence[Step]) -> Iterator[Move]:
    """Yield a move for every distil step and every pruning round."""
    for step in steps:
        if isinstance(step, Distill):
            yield functools.partial(_distilled, road, step)
        if isinstance(step, Prune):
            share = msgspec.structs.replace(step, macs=step.macs ** (1 / step.rounds), rounds=1)
            for number in range(1, step.rounds + 1):
                name = "pruned" if step.rounds == 1 else f"pruned {number}/{step.rounds}"
                yield functools.partial(_pruned, road, share, name=name)


def _source(road: Road, train: Train | None) -> TorchRung:
    recipe = road.recipe
    if recipe.model.onnx:
        spine = onnx_spine(road)
        return _scored_rung(road, "source", weights=None, spine=spine, source=None)

    def make(folder: Path) -> TorchWeights:
        module = _built(road, recipe.model, seed=train.training.seed if train else 0)
        if train is not None:
            road.progress("train the source", 0.0)
            _fit(road, module, settings=train.training, state=road.workspace.unfinished("source", key=key))
        return _kept(module, recipe.model, folder=folder, maker="train" if train else "source", parent="")

    key = {"model": model_key(recipe.model, recipe, workspace=road.workspace)}
    if train is not None:
        key |= {
            "train": msgspec.to_builtins(train),
            **training_key(train.training, recipe, workspace=road.workspace),
            **road.data_key("train"),
        }
    trained = train is not None
    weights = road.workspace.stage("source", key=key, make=make, kind=TorchWeights, together=trained)
    return _rung(road, "source", weights=weights, source=None)


def _distilled(road: Road, step: Distill, *, last: TorchRung, source: TorchRung) -> TorchRung:
    recipe = road.recipe

    def make(folder: Path) -> TorchWeights:
        from edgeexport.compression.distill import distill

        road.progress("distil into the student" if step.student else "distil from the teacher", 0.0)
        teacher = _built(road, _teacher(step.teacher, recipe), seed=0) if step.teacher else load_rung(road, source)
        student = _built(road, step.student, seed=step.training.seed) if step.student else load_rung(road, last)
        state = road.workspace.unfinished("distill", key=key)
        distill(student, teacher, data=_training_data(road), step=step, progress=road.detail, state=state)
        if step.student:
            spec = msgspec.structs.replace(step.student, inputs=step.student.inputs or recipe.model.inputs)
            return _kept(student, spec, folder=folder, maker="distill", parent=_parent(source))
        kept = _record(last)
        return _kept(student, kept.model, folder=folder, maker="distill", parent=_parent(last), plans=kept.plans)

    key = {
        "step": msgspec.to_builtins(msgspec.structs.replace(step, student=None, teacher=None)),
        "teacher": model_key(step.teacher, recipe, workspace=road.workspace) if step.teacher else _stage_key(source),
        "student": model_key(step.student, recipe, workspace=road.workspace) if step.student else _stage_key(last),
        **training_key(step.training, recipe, workspace=road.workspace),
        **road.data_key("train"),
    }
    weights = road.workspace.stage("distill", key=key, make=make, kind=TorchWeights, together=True)
    return _rung(road, "distilled", weights=weights, source=source)


def _teacher(spec: ModelSpec, recipe: Recipe) -> ModelSpec:
    return msgspec.structs.replace(spec, inputs=spec.inputs or recipe.model.inputs)


def _pruned(road: Road, step: Prune, *, last: TorchRung, source: TorchRung, name: str) -> TorchRung:
    def make(folder: Path) -> TorchWeights:
        from edgeexport.compression.prune import apply_pruning, plan_pruning, retrain

        road.progress(name.replace("pruned", "prune and retrain"), 0.0)
        module = load_rung(road, last)
        example = next(road.parity_feeds(declared_signature(road.recipe.model.inputs)))
        plan = plan_pruning(module, example, step=step)
        module = apply_pruning(module, plan, example=example)
        if step.training.epochs > 0:
            state, data = road.workspace.unfinished("prune", key=key), _training_data(road)
            retrain(module, load_rung(road, source), data=data, step=step, progress=road.detail, state=state)
        kept = _record(last)
        return _kept(module, kept.model, folder=folder, maker="prune", parent=_parent(last), plans=(*kept.plans, plan))

    key = {
        "step": msgspec.to_builtins(step),
        "from": _stage_key(last),
        "source": _stage_key(source),
        **training_key(step.training, road.recipe, workspace=road.workspace),
        **road.data_key("train"),
    }
    weights = road.workspace.stage("prune", key=key, make=make, kind=TorchWeights, together=True)
    return _rung(road, name, weights=weights, source=source)


def _built(road: Road, spec: ModelSpec, *, seed: int) -> nn.Module:
    """Build a network from its factory, with seeded starting weights where it brings none of its own."""
    import torch

    from edgeexport.compression.source import load_torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_torch(road.with_live(spec), Path(road.recipe.folder))


def load_rung(road: Road, rung: TorchRung) -> nn.Module:
    """Rebuild a rung's network: factory, stored pruning, stored weights. Raises ModelError for an .onnx source."""
    if rung.weights is None:
        raise ModelError("an .onnx source has no PyTorch network to train, distil or prune")
    return load_weights(road, rung.weights)


def load_weights(road: Road, stage: Stage[TorchWeights]) -> nn.Module:
    """Rebuild the network that a stage left behind."""
    from edgeexport.compression.source import load_torch

    kept = stage.record
    path = stage.folder / kept.artifact.path
    return load_torch(road.with_live(kept.model), Path(road.recipe.folder), plans=kept.plans, weights=path)


def _record(rung: TorchRung) -> TorchWeights:
    if rung.weights is None:
        raise ModelError("an .onnx source has no PyTorch network to train, distil or prune")
    return rung.weights.record


def _parent(rung: TorchRung) -> str:
    return _record(rung).artifact.digest


def _stage_key(rung: TorchRung) -> str:
    """What made a rung: its code and settings too, which equal weights say nothing of."""
    _record(rung)
    return rung.weights.key if rung.weights else ""


def _kept(
    module: nn.Module, spec: ModelSpec, *, folder: Path, maker: str, parent: str, plans: tuple[Any, ...] = ()
) -> TorchWeights:
    from edgeexport.compression.checkpoint import save_weights

    path = folder / WEIGHTS
    save_weights(module, path)
    artifact = Artifact(WEIGHTS, "torch", file_digest(path), path.stat().st_size, parent, maker)
    return TorchWeights(spec, artifact, plans)


def _fit(road: Road, module: nn.Module, *, settings: Training, state: Path) -> None:
    from edgeexport.training import resolve_loss, train

    loss = resolve_loss(settings.loss, road.recipe.folder)
    train(module, _training_data(road), loss=loss, settings=settings, progress=road.detail, state=state)


def _training_data(road: Road) -> TrainingData:
    from edgeexport import data
    from edgeexport.training import TrainingData

    prepared = road.prepared("train", declared_signature(road.recipe.model.inputs))
    inputs, labels = data.arrays(prepared, progress=road.detail)
    return TrainingData(tuple(inputs.values()), labels, folder=road.recipe.folder)


def _rung(road: Road, name: str, *, weights: Stage[TorchWeights], source: TorchRung | None) -> TorchRung:
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
        notes=(f"exporter: {spine.exporter}", *spine.notes),
    )
