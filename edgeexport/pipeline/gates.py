"""Gates: how a rung is run on a split, scored against the source, and let through or not.

The rule: a gate looks at the selection split only, and answers with a reason or with nothing. The evaluation split goes
through the same `scored`, but only `ship` may ask for it, once a target.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import data, runtimes
from edgeexport.pipeline.road import Road, metric_key
from edgeexport.records.artifact import Signature
from edgeexport.records.recipe import Recipe
from edgeexport.records.splits import SplitName
from edgeexport.records.stages import MetricUnit, Predicted, Scored, Spine
from edgeexport.records.target import Target
from edgeexport.runtimes.protocol import adapt_feeds, adapt_outputs
from edgeexport.validation.metrics import METRICS
from edgeexport.workspace import Stage, Workspace, versions

if TYPE_CHECKING:
    from edgeexport.runtimes.protocol import Feeds, Outputs

OUTPUTS = "outputs.npz"
TARGETS = "targets.npz"
SPINE_RUNTIME = "ort"
BATCH = 32


@dataclass(frozen=True)
class Runnable:
    """A model file with what it takes to run it in terms of the spine's own inputs and outputs."""

    digest: str
    path: Path
    runtime: str
    options: dict[str, Any]
    spine: Signature

    def open(self) -> tuple[Callable[[Feeds], Outputs], int]:
        """Open the file; return a function from spine feeds to spine outputs, and the batch it takes at once."""
        threads = os.cpu_count() or 1
        session = runtimes.get(self.runtime).open(self.path, threads=threads, options=self.options)
        signature = session.signature

        def run(feeds: Feeds) -> Outputs:
            return adapt_outputs(session.run(adapt_feeds(feeds, self.spine, to=signature)), signature, to=self.spine)

        free = all(isinstance(spec.shape[0], str) for spec in signature.inputs if spec.shape)
        return run, BATCH if free else 1

    def key(self) -> dict[str, Any]:
        """What running this file adds to a stage key."""
        packages = runtimes.get(self.runtime).packages
        return {"model": self.digest, "options": self.options, "versions": versions("numpy", *packages)}


def runnable_spine(stage: Stage[Spine]) -> Runnable:
    """Return a spine as something to run: always with onnxruntime on this machine."""
    artifact = stage.record.artifact
    return Runnable(artifact.digest, stage.folder / artifact.path, SPINE_RUNTIME, {}, stage.record.signature)


def predicted(road: Road, model: Runnable, *, split: SplitName) -> Stage[Predicted]:
    """Run a model over a split once, and keep its outputs and, where they can be written down, the targets."""

    def make(folder: Path) -> Predicted:
        from edgeexport.validation.evaluate import predictions, save_outputs, save_targets

        samples = road.prepared(split, model.spine)
        run, batch = model.open()
        found = predictions(run, samples, batch=batch, progress=road.detail)
        save_outputs(folder / OUTPUTS, found.outputs)
        save_targets(folder / TARGETS, found.targets)
        return Predicted(model.digest, len(samples), road.splits.get(split).digest)

    return road.workspace.stage("predict", key={**model.key(), **road.data_key(split)}, make=make, kind=Predicted)


def scored(road: Road, model: Runnable, *, source: Runnable, split: SplitName) -> Scored:
    """Score a model on a split and, unless it is the source itself, its drop against the source, sample by sample."""
    ours = predicted(road, model, split=split)
    theirs = predicted(road, source, split=split)

    def make(_: Path) -> Scored:
        from edgeexport.validation.evaluate import load_outputs, load_targets, resolve_metric, score
        from edgeexport.validation.judge import drop

        targets = load_targets(ours.folder / TARGETS)
        if targets is None:
            samples = road.prepared(split, model.spine)
            targets = [samples.target(index) for index in range(len(samples))]
        metric = resolve_metric(road.recipe.data.metric, Path(road.recipe.folder))
        candidate, reference = load_outputs(ours.folder / OUTPUTS), load_outputs(theirs.folder / OUTPUTS)
        digest = road.splits.get(split).digest
        value = score(metric, candidate, targets=targets, reference=reference, samples_digest=digest)
        if model.digest == source.digest:
            return Scored(value, None)
        return Scored(value, drop(metric, reference, candidate=candidate, targets=targets))

    key = {"ours": ours.key, "theirs": theirs.key, "metric": metric_key(road.recipe, road.workspace)}
    return road.workspace.stage("score", key=key, make=make, kind=Scored).record


def metric_unit(recipe: Recipe, workspace: Workspace) -> str:
    """The unit of the recipe's metric. That of a user's function is kept, so that a finished run need not import it."""
    from edgeexport.validation.evaluate import resolve_metric

    metric = recipe.data.metric

    def make(_: Path) -> MetricUnit:
        return MetricUnit(resolve_metric(metric, Path(recipe.folder)).unit)

    if not data.is_reference(metric) or metric.partition(":")[0] in METRICS:
        return make(Path()).unit
    key = {"metric": metric_key(recipe, workspace)}
    return workspace.stage("metric", key=key, make=make, kind=MetricUnit).record.unit


def check_bars(recipe: Recipe, workspace: Workspace, *, targets: Sequence[Target]) -> None:
    """Raise RecipeError, before any work, where nothing says how much may be lost in the metric's own unit."""
    from edgeexport.validation.judge import bars_in_force

    unit = metric_unit(recipe, workspace)
    for target in targets:
        bars_in_force(recipe.limits, target, unit=unit)


def max_drop(road: Road, target: Target) -> float | None:
    """The limit in force on what may be lost, in the metric's unit; None when neither recipe nor target sets one."""
    from edgeexport.validation.judge import bars_in_force

    return bars_in_force(road.recipe.limits, target, unit=metric_unit(road.recipe, road.workspace)).max_drop


def drop_gate(result: Scored, bar: float | None) -> str:
    """Return why a rung must not stand on the selection split; empty when it may."""
    if result.drop is None or bar is None or result.drop.value <= bar:
        return ""
    unit = result.score.unit
    return f"loses {result.drop.value:.2f} {unit} on the selection split (limit {bar:g})"
