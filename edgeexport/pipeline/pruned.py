"""A pruning round on the road: plan for the target, see whether it is faster there, retrain.

The rule: whether a round is faster shows before it is retrained. One that is not, by a measurement beside the network
before it, costs no training and leaves a row with the reason; the last good one goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeexport.errors import ModelError
from edgeexport.pipeline import torch_rungs
from edgeexport.pipeline.layer_times import Place
from edgeexport.pipeline.road import Road, training_key
from edgeexport.pipeline.timing import MODE
from edgeexport.pipeline.torch_rungs import TorchRung, load_rung, training_data
from edgeexport.pipeline.workbench import Workbench, feeds_of, goal_text
from edgeexport.records.artifact import TorchWeights
from edgeexport.records.base import digest
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import Prune
from edgeexport.records.run import Rung
from edgeexport.records.stages import PlannedRound, Timed
from edgeexport.workspace import Stage

if TYPE_CHECKING:
    from edgeexport.validation.measure import Subject


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
        module = apply_pruning(load_rung(road, last), plan, example=feeds_of(road)[0])
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


def _planned(road: Road, at: Round, *, last: TorchRung, done: Sequence[PruningPlan]) -> Stage[PlannedRound]:
    def make(_: Path) -> PlannedRound:
        road.progress(f"plan {at.name}", None)
        with tempfile.TemporaryDirectory(prefix="edgeexport-plan-") as folder:
            return _made(Workbench(road, at.step, at.place, last, Path(folder)), at, done=done)

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


def _made(bench: Workbench, at: Round, *, done: Sequence[PruningPlan]) -> PlannedRound:
    """The work behind a plan."""
    from edgeexport.compression.candidates import find_candidates
    from edgeexport.compression.macs import positions
    from edgeexport.compression.price import Ledger
    from edgeexport.compression.prune import Means, plan_pruning
    from edgeexport.compression.rounds import round_asked

    step, road, feeds = at.step, bench.road, feeds_of(bench.road)
    module = load_rung(road, bench.last)
    candidates = find_candidates(module, feeds[0], step=step, progress=road.detail)
    files = step.speedup is not None or step.max_size_mb is not None
    before = bench.present() if files else None
    prices = bench.prices(module, feeds[0], candidates=candidates, before=before)
    totals = Ledger(module, positions(module, feeds[0]), prices=prices).totals
    now: dict[str, float] = {price.goal: total for price, total in zip(prices, totals, strict=True)}
    asked = round_asked(now, step, done=done)
    means = Means(prices, asked, samples=feeds, evidence=bench.evidence(module))
    plan = plan_pruning(module, feeds[0], step=step, means=means, candidates=candidates, progress=road.detail)
    if before is None:
        return PlannedRound(plan, Timed(reason="no goal of this step is measured"))
    after = bench.built(module, plan, feeds=feeds)
    sizes = (before.path.stat().st_size, after.path.stat().st_size)
    return PlannedRound(plan, _timed(bench, at, files=(before, after)), *sizes, faster=step.speedup is not None)


def _timed(bench: Workbench, at: Round, *, files: tuple[Subject, Subject]) -> Timed:
    from edgeexport.validation.measure import measure

    machine, reason = at.place.machine()
    if machine is None or at.step.speedup is None:
        return Timed(reason=reason or "no goal of this step is time")
    bench.road.progress(f"measure {at.name} before retraining", None)
    subjects = [replace(files[0], label="before"), replace(files[1], label="after")]
    measured, compared = measure(subjects, device=machine, mode=MODE, progress=bench.road.detail)
    return Timed(measured[0], measured[1], compared[0] if compared else None)


def _row(last: TorchRung, at: Round, *, reason: str, notes: tuple[str, ...] = ()) -> Rung:
    """The row of a round that was not retrained: it shows the spine that it would have been made from."""
    artifact = last.spine.record.artifact
    return Rung(at.name, "fp32", None, artifact, "rolled back", f"not retrained: {reason}", notes=notes)


def _told(planned: PlannedRound) -> tuple[str, ...]:
    """What a report says of a plan: each goal with how it is known, and what was measured."""
    notes = [goal_text(goal) for goal in planned.plan.goals]
    notes += [f"skipped: {', '.join(planned.plan.blocks)}"] if planned.plan.blocks else []
    if planned.timed.comparison is not None:
        ratio = planned.timed.comparison.ratio
        notes.append(f"before retraining {1 / ratio.value:.2f} times faster than the rung below, measured")
    elif planned.faster:
        invalid = [why for part in (planned.timed.source, planned.timed.candidate) if part for why in part.reasons]
        notes.append(f"not measured: {planned.timed.reason or '; '.join(dict.fromkeys(invalid))}")
    return tuple(notes)
