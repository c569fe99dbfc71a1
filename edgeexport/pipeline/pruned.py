"""A pruning round on the road: plan for the target, see whether it is faster there, retrain.

The rule: whether a round is faster shows before it is retrained. One that is not, by a measurement beside the network
before it, costs no training and leaves a row with the reason; the last good one goes on.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeexport import graph, onnx_export
from edgeexport.errors import ModelError
from edgeexport.pipeline import torch_rungs
from edgeexport.pipeline.layer_times import Place, layer_table, shipped, whole
from edgeexport.pipeline.road import Road, declared_signature, training_key
from edgeexport.pipeline.timing import MODE
from edgeexport.pipeline.torch_rungs import TorchRung, load_rung, training_data
from edgeexport.records.artifact import TorchWeights
from edgeexport.records.base import digest
from edgeexport.records.pruning import PlannedGoal, PruningPlan
from edgeexport.records.recipe import Prune
from edgeexport.records.run import Rung
from edgeexport.records.stages import PlannedRound, Timed
from edgeexport.records.target import Tolerance
from edgeexport.workspace import Stage

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from edgeexport.compression.candidates import Candidates
    from edgeexport.compression.price import Price
    from edgeexport.validation.measure import Subject

    Feeds = dict[str, np.ndarray]

GRADIENT_BATCHES = 8


@dataclass(frozen=True)
class Round:
    """One round of a pruning step: its number from 1, and where the network is to be fast."""

    step: Prune
    number: int
    place: Place

    @property
    def name(self) -> str:
        """What its rung is called."""
        return "pruned" if self.step.rounds == 1 else f"pruned {self.number}/{self.step.rounds}"


def pruned(road: Road, at: Round, *, last: TorchRung, source: TorchRung, begin: TorchRung) -> TorchRung | Rung:
    """Make the rung of a round from the last one that stands; just its row where it is not worth retraining.

    begin: what stood when the step began. Raises ModelError when the first round cannot reach its goal.
    """
    kept, before = torch_rungs.record_of(last), torch_rungs.record_of(begin)
    try:
        planned = _planned(road, at, last=last, done=kept.plans[len(before.plans) :])
    except ModelError as error:
        if at.number == 1:
            raise
        return _row(last, at, reason=str(error))
    plan, step = planned.record.plan, at.step
    notes = _told(planned.record)
    if planned.record.slower:
        return _row(last, at, reason=planned.record.slower, notes=notes)

    def make(folder: Path) -> TorchWeights:
        from edgeexport.compression.prune import apply_pruning, retrain

        road.progress(at.name.replace("pruned", "prune and retrain"), 0.0)
        module = apply_pruning(load_rung(road, last), plan, example=_feeds(road)[0])
        if step.training.epochs > 0:
            state, data = road.workspace.unfinished("prune", key=key), training_data(road)
            retrain(module, load_rung(road, source), data=data, step=step, progress=road.detail, state=state)
        parent = kept.artifact.digest
        return torch_rungs.keep(
            module, kept.model, folder=folder, maker="prune", parent=parent, plans=(*kept.plans, plan)
        )

    key = {
        "training": msgspec.to_builtins(step.training),
        "distil": step.distil,
        "plan": digest(plan),
        "from": torch_rungs.stage_key(last),
        "source": torch_rungs.stage_key(source),
        **training_key(step.training, road.recipe, workspace=road.workspace),
        **road.data_key("train"),
    }
    weights = road.workspace.stage("prune", key=key, make=make, kind=TorchWeights, together=True)
    return replace(torch_rungs.rung_of(road, at.name, weights=weights, source=source), notes=notes)


def _feeds(road: Road) -> list[Feeds]:
    return list(road.parity_feeds(declared_signature(road.recipe.model.inputs)))


def _planned(road: Road, at: Round, *, last: TorchRung, done: Sequence[PruningPlan]) -> Stage[PlannedRound]:
    def make(_: Path) -> PlannedRound:
        road.progress(f"plan {at.name}", None)
        with tempfile.TemporaryDirectory(prefix="edgeexport-plan-") as folder:
            return _Planning(road, at, last, Path(folder)).run(done)

    timed = at.step.speedup is not None or at.step.max_size_mb is not None
    key = {
        "step": msgspec.to_builtins(at.step),
        "number": at.number,
        "done": [digest(plan) for plan in done],
        "from": torch_rungs.stage_key(last),
        "spine": last.spine.record.artifact.digest,
        "place": at.place.key() if timed else None,
        **training_key(at.step.training, road.recipe, workspace=road.workspace),
        **road.data_key("calibration"),
        "gradients": road.data_key("train") if at.step.criterion == "taylor" else None,
    }
    return road.workspace.stage("plan pruning", key=key, make=make, kind=PlannedRound)


@dataclass(frozen=True)
class _Planning:
    """The work behind a plan, with a folder for the files that are timed."""

    road: Road
    at: Round
    last: TorchRung
    folder: Path

    def run(self, done: Sequence[PruningPlan]) -> PlannedRound:
        from edgeexport.compression.candidates import find_candidates
        from edgeexport.compression.macs import positions
        from edgeexport.compression.price import Ledger
        from edgeexport.compression.prune import Means, plan_pruning
        from edgeexport.compression.rounds import round_asked

        step, road, feeds = self.at.step, self.road, _feeds(self.road)
        module = load_rung(road, self.last)
        candidates = find_candidates(module, feeds[0], step=step, progress=road.detail)
        before = self._present()
        prices = self._prices(module, feeds[0], candidates=candidates, before=before)
        totals = Ledger(module, positions(module, feeds[0]), prices=prices).totals
        now: dict[str, float] = {price.goal: total for price, total in zip(prices, totals, strict=True)}
        asked = round_asked(now, step, done=done)
        means = Means(prices, asked, samples=feeds, evidence=self._evidence(module))
        plan = plan_pruning(module, feeds[0], step=step, means=means, candidates=candidates, progress=road.detail)
        if before is None:
            return PlannedRound(plan, Timed(reason="no goal of this step is measured"))
        after = self._after(module, plan, feeds=feeds)
        sizes = (before.path.stat().st_size, after.path.stat().st_size)
        return PlannedRound(plan, self._timed(before, after), *sizes, faster=step.speedup is not None)

    def _present(self) -> Subject | None:
        """The network before this round in the form that ships; None where no goal is about files."""
        if self.at.step.speedup is None and self.at.step.max_size_mb is None:
            return None
        spine = self.last.spine
        example = next(self.road.parity_feeds(spine.record.signature))
        folder = self.folder / "before"
        folder.mkdir()
        return shipped(spine.folder / spine.record.artifact.path, example, place=self.at.place, folder=folder)

    def _prices(
        self, module: nn.Module, example: Feeds, *, candidates: Candidates, before: Subject | None
    ) -> list[Price]:
        from edgeexport.compression.greedy import FINE
        from edgeexport.compression.latency import grids, latency_price
        from edgeexport.compression.price import macs_price, size_price

        step, place = self.at.step, self.at.place
        prices: list[Price] = []
        if step.speedup is not None and before is not None:
            wanted = grids(module, example, groups=candidates.groups, step=min(FINE, step.round_to))
            table = layer_table(self.road, place, wanted=wanted)
            total = whole(before, place=place, folder=self.folder / "whole")
            prices.append(latency_price(module, example, table=table, total=total))
        if step.max_size_mb is not None and before is not None:
            total_mb = before.path.stat().st_size / 1e6
            prices.append(size_price(module, example, int8=place.form == "int8", total_mb=total_mb))
        return prices + ([macs_price(module, example)] if step.macs is not None else [])

    def _evidence(self, module: nn.Module) -> dict[str, Any]:
        if self.at.step.criterion != "taylor":
            return {}
        from edgeexport.compression.criteria import gradient_batches, taylor_scores
        from edgeexport.training import resolve_loss

        settings, data = self.at.step.training, training_data(self.road)
        batches = gradient_batches(data, settings, count=GRADIENT_BATCHES)
        return taylor_scores(module, batches, loss=resolve_loss(settings.loss, data.folder))

    def _after(self, module: nn.Module, plan: PruningPlan, *, feeds: Sequence[Feeds]) -> Subject:
        """The network as planned, not retrained, in the form that ships."""
        from edgeexport.compression.prune import apply_pruning

        smaller = apply_pruning(copy.deepcopy(module), plan, example=feeds[0])
        folder = self.folder / "after"
        folder.mkdir()
        path = folder / "after.onnx"
        onnx_export.export_module(
            smaller, self.road.recipe.model, path=path, samples=feeds, tolerance=Tolerance().float_error
        )
        cleaned, _ = onnx_export.clean(graph.load(path))
        graph.save(cleaned, path)
        example = next(self.road.parity_feeds(graph.signature(cleaned)))
        return shipped(path, example, place=self.at.place, folder=folder)

    def _timed(self, before: Subject, after: Subject) -> Timed:
        from edgeexport.validation.measure import measure

        machine, reason = self.at.place.machine()
        if machine is None or self.at.step.speedup is None:
            return Timed(reason=reason or "no goal of this step is time")
        self.road.progress(f"measure {self.at.name} before retraining", None)
        subjects = [replace(before, label="before"), replace(after, label="after")]
        measured, compared = measure(subjects, device=machine, mode=MODE, progress=self.road.detail)
        return Timed(measured[0], measured[1], compared[0] if compared else None)


def _row(last: TorchRung, at: Round, *, reason: str, notes: tuple[str, ...] = ()) -> Rung:
    """The row of a round that was not retrained: it shows the spine that it would have been made from."""
    artifact = last.spine.record.artifact
    return Rung(at.name, "fp32", None, artifact, "rolled back", f"not retrained: {reason}", notes=notes)


def _told(planned: PlannedRound) -> tuple[str, ...]:
    """What a report says of a plan: each goal with how it is known, and what was measured."""
    notes = [_goal(goal) for goal in planned.plan.goals]
    notes += [f"skipped: {', '.join(planned.plan.blocks)}"] if planned.plan.blocks else []
    if planned.timed.comparison is not None:
        ratio = planned.timed.comparison.ratio
        notes.append(f"before retraining {1 / ratio.value:.2f} times faster than the rung below, measured")
    elif planned.faster:
        invalid = [why for part in (planned.timed.source, planned.timed.candidate) if part for why in part.reasons]
        notes.append(f"not measured: {planned.timed.reason or '; '.join(dict.fromkeys(invalid))}")
    return tuple(notes)


def _goal(goal: PlannedGoal) -> str:
    names = {"speedup": "latency", "max_size_mb": "size", "macs": "multiply-accumulates"}
    figures = f"{goal.before:.4g} → {goal.after:.4g} {goal.unit}"
    table = f", table {goal.table.removeprefix('sha256:')[:12]}" if goal.table else ""
    return f"{names[goal.goal]} {figures} ({goal.ratio:.2f} times less, {goal.basis}{table})"
