"""What ships for one target: measure, judge on the selection split, open the evaluation set once, pack.

The rule: the evaluation set is opened once. The first candidate, in an order fixed before, that holds every limit on
the selection split is judged there; if it fails, only the untouched fp32 source may ship, chosen by no figure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from edgeexport.errors import ModelError
from edgeexport.pipeline.emulating import emulated, told
from edgeexport.pipeline.gates import max_drop, scored
from edgeexport.pipeline.ladder import candidates
from edgeexport.pipeline.lower import Candidate, Lane, baseline, for_target
from edgeexport.pipeline.road import Road
from edgeexport.pipeline.timing import timed
from edgeexport.pipeline.torch_rungs import TorchRung
from edgeexport.records.measurement import Comparison, Interval
from edgeexport.records.run import Rung, TargetResult
from edgeexport.records.stages import Scored, Timed
from edgeexport.records.target import Target
from edgeexport.records.verdict import Drop, Verdict
from edgeexport.validation.judge import Evidence, limits, shipping
from edgeexport.validation.misses import nearest_miss


@dataclass(frozen=True)
class Choice:
    """What was decided for a target: the ladder's rows, and what ships with its figures, or why nothing does."""

    rows: tuple[Rung, ...]
    shipped: Candidate | None
    base: Candidate
    verdict: Verdict | None
    scores: Scored | None
    source_scores: Scored | None
    times: Timed
    nearest_miss: str = ""


def choose(
    road: Road, *, target: Target, standing: tuple[TorchRung, ...], device: str | None, require_proof: bool
) -> Choice:
    """Walk the candidates, best first, and return the first that holds every limit, or the nearest miss.

    Raises ModelError when the source itself does not survive its conversion.
    """
    lane = Lane(road, target, standing[0], max_drop(road, target), device)
    walk = _Walk(lane, baseline(lane), require_proof)
    if not walk.base.stands:
        raise ModelError(f"the fp32 source cannot be served: {walk.base.row.reason}")
    for candidate in candidates(lane, standing):
        choice = walk.take(candidate)
        if choice is not None:
            return choice
        if walk.opened:
            break
    # After the evaluation set has said no, only the source may still ship: it is chosen by no figure.
    refused = walk.opened and list(lane.refused.values())[-1].state == "fails"
    return (walk.take(for_target(lane, walk.base)) if refused else None) or walk.infeasible()


@dataclass
class _Walk:
    """The candidates of one target, taken one by one: what was tried, and whether the evaluation set is open."""

    lane: Lane
    base: Candidate
    require_proof: bool
    opened: bool = False
    rows: list[Rung] = field(default_factory=list)

    def take(self, candidate: Candidate | Rung) -> Choice | None:
        """Measure and judge one candidate; return what ships, or None with the reason in its row."""
        if isinstance(candidate, Rung) or not candidate.stands:
            self.rows.append(candidate if isinstance(candidate, Rung) else candidate.row)
            return None
        times = timed(self.lane.road, self.lane.target, base=self.base, candidate=candidate, device=self.lane.device)
        row = msgspec.structs.replace(candidate.row, measurement=times.candidate, comparison=times.comparison)
        verdict, scores = _judged_on("selection", self.lane, candidate=candidate, base=self.base, times=times)
        if verdict.state != "fails":
            checked = emulated(
                self.lane.road, self.lane.target, candidate=candidate, times=times, device=self.lane.device
            )
            row = msgspec.structs.replace(row, emulation=checked, notes=(*row.notes, *told(checked)))
            if checked is not None and not checked.holds:
                # With no limit that fails, the ladder learns that better numbers or speed would not help.
                self.lane.refused[row.name] = verdict
                self.rows.append(msgspec.structs.replace(row, status="rolled back", reason=checked.reason))
                return None
            self.opened = True
            verdict, scores = _judged_on("evaluation", self.lane, candidate=candidate, base=self.base, times=times)
            if shipping(verdict, require_proof=self.require_proof):
                return self._shipped(candidate, row, verdict=verdict, scores=scores, times=times)
        self.lane.refused[row.name] = verdict
        self.rows.append(msgspec.structs.replace(row, status="rolled back", reason=_objections(verdict)))
        return None

    def infeasible(self) -> Choice:
        """Return that nothing ships, and what came nearest."""
        failing = any(verdict.state == "fails" for verdict in self.lane.refused.values())
        told = "; ".join(f"{row.name}: {row.reason}" for row in self.rows if row.status == "rolled back")
        miss = nearest_miss(self.lane.refused) if failing else told
        return Choice(tuple(self.rows), None, self.base, None, None, None, Timed(), miss)

    def _shipped(self, candidate: Candidate, row: Rung, *, verdict: Verdict, scores: Scored, times: Timed) -> Choice:
        row = msgspec.structs.replace(row, status="shipped", reason=_why(self.rows))
        rows = _with_baseline(self.base, candidate, rows=[*self.rows, row], times=times)
        model = self.base.runnable(self.lane.target)
        own = scored(self.lane.road, model, source=model, split="evaluation")
        return Choice(rows, candidate, self.base, verdict, scores, own, times)


def _judged_on(
    split: Literal["selection", "evaluation"], lane: Lane, *, candidate: Candidate, base: Candidate, times: Timed
) -> tuple[Verdict, Scored]:
    road, target = lane.road, lane.target
    road.progress(f"judge {candidate.row.name} for {target.name} by the {split} split", None)
    scores = scored(road, candidate.runnable(target), source=base.runnable(target), split=split)
    ours, theirs = candidate.row.artifact, base.row.artifact
    same = ours.digest == theirs.digest
    evidence = Evidence(
        candidate=ours.digest,
        split=split,
        model_bytes=ours.bytes,
        source_bytes=theirs.bytes,
        drop=Drop(0.0, 0.0, 0.0, 0.0, "identical", scores.score.samples) if same else scores.drop,
        measurement=times.candidate,
        comparison=_itself(ours.digest) if same else times.comparison,
        unmeasured=times.reason or "it was not measured",
        uncompared=_uncompared(times),
    )
    return limits(evidence, target, recipe=road.recipe.limits, unit=scores.score.unit), scores


def _uncompared(times: Timed) -> str:
    """Say why the candidate's latency stands beside none."""
    if times.source is None or times.source.valid:
        return times.reason or "it was not compared with the fp32 source"
    return "the fp32 source's measurement is invalid: " + "; ".join(times.source.reasons)


def _itself(digest: str) -> Comparison:
    """The source beside itself: as fast as itself, whether measured or not."""
    return Comparison(digest, digest, Interval(1.0, 1.0, 1.0), "no difference shown")


def _objections(verdict: Verdict) -> str:
    """Say which limits fail, or else which are unproven, on which split."""
    worst = verdict.state
    limits_told = [f"{limit.called}: {limit.reason}" for limit in verdict.limits if limit.state == worst]
    unproven = "unproven, and proof is required: " if worst == "unproven" else ""
    return f"{unproven}{'; '.join(limits_told)} ({verdict.split} split)"


def _why(before: list[Rung]) -> str:
    """Say in one sentence why this rung ships: the first that holds, or what the better ones lacked."""
    if not before:
        return "the best rung, and it holds every limit"
    last = before[-1]
    others = f", as {len(before) - 1} before it were" if len(before) > 1 else ""
    return f"the best rung that holds: {last.name} was refused{others} ({last.reason})"


def _with_baseline(base: Candidate, shipped: Candidate, *, rows: list[Rung], times: Timed) -> tuple[Rung, ...]:
    """Put the fp32 source first on the target's ladder, unless it is what ships."""
    if base.row.artifact.digest == shipped.row.artifact.digest:
        return tuple(rows)
    first = msgspec.structs.replace(
        base.row, status="not chosen", reason="the source itself, for comparison", measurement=times.source
    )
    return (first, *rows)


def result(choice: Choice, target: Target, *, bundle: str | None, bundle_bytes: int | None) -> TargetResult:
    """Summarize a choice as the record that report and manifest show."""
    shipped = choice.shipped
    ratio = shipped.row.artifact.bytes / choice.base.row.artifact.bytes if shipped else None
    return TargetResult(
        target=target.name,
        title=target.title,
        runtime=target.runtime,
        shipped=shipped.row.name if shipped else None,
        verdict=choice.verdict,
        bundle=bundle,
        bundle_bytes=bundle_bytes,
        score=choice.scores.score if choice.scores else None,
        source_score=choice.source_scores.score if choice.source_scores else None,
        drop=choice.scores.drop if choice.scores else None,
        measurement=choice.times.candidate if shipped else None,
        source_measurement=choice.times.source if shipped else None,
        comparison=choice.times.comparison if shipped else None,
        size_ratio=ratio,
        nearest_miss=choice.nearest_miss,
    )
