"""A pruning round on the road: plan for the target, see whether it is faster there, retrain.

The rule: whether a round is faster shows before it is retrained. One that is not, by a measurement beside the network
before it or by instructions counted on an emulated CPU, costs no training and leaves a row with the reason, as one does
that fails; the last good one goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeexport.errors import ModelError, OutOfReach, StepFailed
from edgeexport.pipeline import torch_rungs
from edgeexport.pipeline.attempts import attempted, given_up, why
from edgeexport.pipeline.layer_times import Place
from edgeexport.pipeline.road import Road, training_key
from edgeexport.pipeline.shipped import fitted
from edgeexport.pipeline.timing import MODE, device_for
from edgeexport.pipeline.torch_rungs import TorchRung, load_rung, training_data
from edgeexport.pipeline.weights import Origin, keep
from edgeexport.pipeline.workbench import Workbench, feeds_of
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

    @property
    def files(self) -> bool:
        """Whether a goal of the step needs the file that ships: others are only counted."""
        return self.step.speedup is not None or self.step.max_size_mb is not None


def pruned(road: Road, at: Round, *, last: TorchRung, source: TorchRung, begin: TorchRung) -> TorchRung | Rung:
    """Make the rung of a round from the last one that stands; just its row where it is not worth retraining.

    begin: what stood when the step began. Raises ModelError when the first round cannot reach its goal, or nothing can
    be planned.
    """
    kept, before = torch_rungs.record_of(last), torch_rungs.record_of(begin)
    try:
        with attempted():
            at = replace(at, place=fitted(road, at.place, rung=begin)) if at.files else at
        planned = _planned(road, at, last=last, source=source, done=kept.plans[len(before.plans) :])
    except ModelError as error:
        if at.number == 1 and not isinstance(error, StepFailed):
            raise
        # What it advises is counted from this round, not from the step's begin.
        told = str(error) if isinstance(error, OutOfReach) else why(error)
        return given_up(at.name, last, reason=f"not retrained: {told}")
    notes = _told(planned.record)
    if planned.record.slower:
        return given_up(at.name, last, reason=f"not retrained: {planned.record.slower}", notes=notes)
    try:
        made = _retrained(road, at, plan=planned.record.plan, last=last, source=source)
    except StepFailed as error:
        return given_up(at.name, last, reason=why(error), notes=notes)
    alone = road.taught_alone if at.step.distil and at.step.training.asked else ()
    return replace(made, notes=(*notes, *alone))


def _retrained(road: Road, at: Round, *, plan: PruningPlan, last: TorchRung, source: TorchRung) -> TorchRung:
    """The rung of a round that is worth it. Raises StepFailed where it cannot be trained, exported or run."""
    kept, step = torch_rungs.record_of(last), at.step

    def make(folder: Path) -> TorchWeights:
        from edgeexport.compression.prune import apply_pruning, retrain

        road.progress(at.name.replace("pruned", "prune and retrain"), 0.0)
        module = load_rung(road, last)
        with attempted():
            apply_pruning(module, plan, example=feeds_of(road)[0])
        if step.training.asked:
            state, data = road.workspace.unfinished("prune", key=key), training_data(road)
            retrain(module, load_rung(road, source), data=data, step=step, progress=road.detail, state=state)
        parent, origin = kept.artifact.digest, Origin(kept.model, kept.seed, (*kept.plans, plan))
        with attempted():
            return keep(module, origin, folder=folder, maker="prune", parent=parent)

    key = _retraining_key(road, at, plan=plan, last=last, source=source)
    weights = road.workspace.stage("prune", key=key, make=make, kind=TorchWeights, together=True)
    with attempted():
        return torch_rungs.rung_of(road, at.name, weights=weights, source=source)


def _retraining_key(road: Road, at: Round, *, plan: PruningPlan, last: TorchRung, source: TorchRung) -> dict[str, Any]:
    """What a round that is carried out and retrained by this plan is known by."""
    return {
        "training": msgspec.to_builtins(at.step.training),
        "distil": at.step.distil,
        "answers": road.answers,
        "plan": digest(plan),
        "from": torch_rungs.stage_key(last),
        "source": torch_rungs.stage_key(source),
        **training_key(at.step.training, road.recipe, workspace=road.workspace),
        **road.data_key("train"),
    }


def _planned(
    road: Road, at: Round, *, last: TorchRung, source: TorchRung, done: Sequence[PruningPlan]
) -> Stage[PlannedRound]:
    """The plan of a round and what was measured of it.

    An invalid measurement is made again the next time, unless a retraining by the plan has begun: that is gone on with.
    """

    def make(_: Path) -> PlannedRound:
        road.progress(f"plan {at.name}", None)
        with tempfile.TemporaryDirectory(prefix="edgeexport-plan-") as folder:
            return _made(Workbench(road, at.step, at.place, last, Path(folder)), at, done=done)

    key = {
        "step": msgspec.to_builtins(at.step),
        "number": at.number,
        "done": [digest(plan) for plan in done],
        "from": torch_rungs.stage_key(last),
        "spine": last.spine.record.artifact.digest,
        "place": at.place.key() if at.files else None,
        "judge": at.place.judge() if at.step.speedup is not None else None,
        **training_key(at.step.training, road.recipe, workspace=road.workspace),
        **road.data_key("calibration"),
        "gradients": [road.data_key("train"), road.answers] if at.step.criterion == "taylor" else None,
    }

    def stale(known: PlannedRound) -> bool:
        if not _invalid(known.timed):
            return False
        retraining = _retraining_key(road, at, plan=known.plan, last=last, source=source)
        return not (at.step.training.asked and road.workspace.begun("prune", key=retraining))

    return road.workspace.stage("plan pruning", key=key, make=make, kind=PlannedRound, stale=stale)


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
    with attempted():
        before = bench.present() if at.files else None
    prices = bench.prices(module, feeds[0], candidates=candidates, before=before)
    totals = Ledger(module, positions(module, feeds[0]), prices=prices).totals
    now: dict[str, float] = {price.goal: total for price, total in zip(prices, totals, strict=True)}
    asked = round_asked(now, step, done=done)
    means = Means(prices, asked, samples=feeds, evidence=bench.evidence(module))
    plan = plan_pruning(module, feeds[0], step=step, means=means, candidates=candidates, progress=road.detail)
    if before is None:
        return PlannedRound(plan, Timed(reason="no goal of this step is measured"))
    with attempted():
        after = bench.built(module, plan, feeds=feeds)
    sizes = (before.path.stat().st_size, after.path.stat().st_size)
    if step.speedup is None:
        return PlannedRound(plan, Timed(reason="no goal of this step is time"), *sizes)
    timed, counts = _timed(bench, at, files=(before, after))
    return PlannedRound(plan, timed, *sizes, faster=True, instructions=counts)


def _timed(bench: Workbench, at: Round, *, files: tuple[Subject, Subject]) -> tuple[Timed, tuple[float, float] | None]:
    """Measure both files on any device that may judge the target; else count their instructions (M), if that can be."""
    from edgeexport.validation.measure import measure

    before, after = (replace(file, label=label) for file, label in zip(files, ("before", "after"), strict=True))
    machine, reason = device_for(at.place.target, at.place.device)
    if machine is not None:
        bench.road.progress(f"measure {at.name} before retraining", None)
        measured, compared = measure([before, after], device=machine, mode=MODE, progress=bench.road.detail)
        return Timed(measured[0], measured[1], compared[0] if compared else None), None
    if at.place.counter() is None:
        return Timed(reason=reason), None
    bench.road.progress(f"count instructions of {at.name} before retraining", None)
    costs = [cost for cost in (bench.cost(before), bench.cost(after)) if cost is not None]
    return Timed(reason=reason), (costs[0], costs[1])


def _invalid(timed: Timed) -> list[str]:
    """Why what was measured must not be used; empty where it may, or nothing was."""
    parts = [part for part in (timed.source, timed.candidate) if part is not None and not part.valid]
    return list(dict.fromkeys(reason for part in parts for reason in part.reasons))


def _told(planned: PlannedRound) -> tuple[str, ...]:
    """What a report says of a plan: each goal with how it is known, what stays, and what was measured or counted."""
    plan, timed = planned.plan, planned.timed
    notes = [goal.told for goal in plan.goals]
    notes += [f"skipped: {', '.join(plan.blocks)}"] if plan.blocks else []
    notes += [plan.left_alone] if plan.left_alone else []
    if timed.comparison is not None:
        ratio = timed.comparison.ratio
        notes.append(f"before retraining {1 / ratio.value:.2f} times faster than the rung below, measured")
    elif planned.instructions is not None:
        before, after = planned.instructions
        figures = f"{before:.4g} → {after:.4g} M instructions"
        notes.append(f"before retraining {figures}, {before / after:.2f} times fewer than the rung below, counted")
    if planned.faster and timed.comparison is None:
        notes.append(f"not measured: {timed.reason or '; '.join(_invalid(timed))}")
    return tuple(notes)
