"""What ships for one target: measure, judge on the selection split, open the evaluation set once, pack.

The rule: the order of the candidates is fixed before the evaluation set is opened. The first that holds every limit on
the selection split is judged there, and only if that fails the next; nothing is chosen by evaluation figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from edgeexport.pipeline.gates import max_drop, scored
from edgeexport.pipeline.lower import Candidate, Lane, baseline, candidates
from edgeexport.pipeline.road import Road
from edgeexport.pipeline.timing import timed
from edgeexport.pipeline.torch_rungs import TorchRung
from edgeexport.records.measurement import Comparison, Interval
from edgeexport.records.run import Rung, TargetResult
from edgeexport.records.stages import Scored, Timed
from edgeexport.records.target import Target
from edgeexport.records.verdict import Drop, Verdict
from edgeexport.validation.judge import Evidence, limits, nearest_miss


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


def choose(road: Road, target: Target, *, standing: tuple[TorchRung, ...], device: str | None) -> Choice:
    """Walk the candidates, best first, and return the first that holds every limit, or the nearest miss."""
    lane = Lane(road, target, standing[0], max_drop(road, target))
    base = baseline(lane)
    rows: list[Rung] = []
    verdicts: dict[str, Verdict] = {}
    times = Timed(reason="nothing was measured")
    for candidate in candidates(lane, standing):
        if isinstance(candidate, Rung) or not candidate.stands:
            rows.append(candidate if isinstance(candidate, Rung) else candidate.row)
            continue
        times = timed(road, target, base=base, candidate=candidate, device=device)
        verdict, scores = _judged(lane, candidate, base=base, times=times)
        row = msgspec.structs.replace(candidate.row, measurement=times.candidate, comparison=times.comparison)
        if verdict.state == "fails":
            verdicts[row.name] = verdict
            rows.append(msgspec.structs.replace(row, status="rolled back", reason=_failures(verdict)))
            continue
        rows.append(msgspec.structs.replace(row, status="shipped", reason=_why(rows)))
        own = scored(road, base.runnable(target), source=base.runnable(target), split="evaluation")
        return Choice(
            _with_baseline(base, candidate, rows=rows, times=times), candidate, base, verdict, scores, own, times
        )
    miss = nearest_miss(verdicts) if verdicts else "; ".join(f"{row.name}: {row.reason}" for row in rows)
    return Choice(tuple(rows), None, base, None, None, None, times, miss)


def _judged(lane: Lane, candidate: Candidate, *, base: Candidate, times: Timed) -> tuple[Verdict, Scored]:
    """Judge on the selection split; only what does not fail there is judged on the evaluation set."""
    verdict, scores = _judged_on("selection", lane, candidate=candidate, base=base, times=times)
    if verdict.state == "fails":
        return verdict, scores
    return _judged_on("evaluation", lane, candidate=candidate, base=base, times=times)


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
    return limits(evidence, target, recipe=road.recipe.limits), scores


def _uncompared(times: Timed) -> str:
    """Say why the candidate's latency stands beside none."""
    if times.source is None or times.source.valid:
        return times.reason or "it was not compared with the fp32 source"
    return "the fp32 source's measurement is invalid: " + "; ".join(times.source.reasons)


def _itself(digest: str) -> Comparison:
    """The source beside itself: as fast as itself, whether measured or not."""
    return Comparison(digest, digest, Interval(1.0, 1.0, 1.0), "no difference shown")


def _failures(verdict: Verdict) -> str:
    """Say which limits fail, on which split."""
    failing = [f"{limit.limit}: {limit.reason}" for limit in verdict.limits if limit.state == "fails"]
    return f"{'; '.join(failing)} ({verdict.split} split)"


def _why(before: list[Rung]) -> str:
    """Say why this rung ships: the first that holds, or what the better ones lacked."""
    if not before:
        return "the best rung, and it holds every limit"
    return f"the best rung that holds; {len(before)} before it did not"


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
        measurement=choice.times.candidate,
        source_measurement=choice.times.source,
        comparison=choice.times.comparison,
        size_ratio=ratio,
        nearest_miss=choice.nearest_miss,
    )
