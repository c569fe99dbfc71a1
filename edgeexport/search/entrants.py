"""Entrants: the students that are worth a training, by what they cost before any.

The rule: what does not reach the limits on time and size is never trained; of what does, each mix of depth and width
enters with the student that keeps most.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from edgeexport.errors import ModelError
from edgeexport.pipeline.layer_times import Place
from edgeexport.pipeline.road import Road
from edgeexport.pipeline.shipped import fitted, shipped
from edgeexport.pipeline.students import students
from edgeexport.pipeline.timing import MODE, device_for
from edgeexport.pipeline.torch_rungs import TorchRung
from edgeexport.pipeline.workbench import Workbench
from edgeexport.records.latency import Basis
from edgeexport.records.recipe import Distill, Limits, Prune
from edgeexport.records.shrink import HeadStart
from edgeexport.records.students import MB, SLACK, Student
from edgeexport.workspace import versions

# So many students are trained at most.
MOST = 6
# How much more than the goal is asked of students: plans promise more than kernels give, and blocks are coarse.
FACTORS = (1.0, 1.1, 1.3)
# Two measurements of the same file differ by this share at times; `reaches` forgives as much.
MARGIN = (1 + SLACK) / (1 - SLACK)
# A goal that the form that ships has by itself, or nearly so, needs no cut.
NO_CUT = 1.02
WEIGHT: dict[Basis, int] = {"measured": 0, "counted": 1, "predicted": 2}


@dataclass(frozen=True)
class Ground:
    """Where a search stands: its road, source and starting point, the target, the limits, and how students learn."""

    road: Road
    source: TorchRung
    last: TorchRung
    place: Place
    limits: Limits
    lesson: Distill


@dataclass(frozen=True)
class Entrant:
    """A student with the name it has in the report. times: against the fp32 source."""

    name: str
    student: Student
    times: float | None


@dataclass(frozen=True)
class Field:
    """All that was cut for a search: entrants, best first; those that are not worth a training; why mixes failed."""

    entrants: tuple[Entrant, ...]
    others: tuple[Entrant, ...]
    basis: Basis
    unit: str
    notes: tuple[str, ...]


def head_start(ground: Ground) -> HeadStart:
    """Measure how much faster than the fp32 source the uncut network is, in the form that ships.

    An invalid measurement is not kept, unless the search has begun: it goes on from where it started.
    """
    if not begun(ground):
        return _measured_start(ground)
    return begin(ground, lambda: _measured_start(ground))


def begin(ground: Ground, start: Callable[[], HeadStart]) -> HeadStart:
    """Keep where a search starts, before its first training: from now on nothing that it was cut by changes."""
    stage = ground.road.workspace.stage("search", key=_search_key(ground), make=lambda _: start(), kind=HeadStart)
    return stage.record


def begun(ground: Ground) -> bool:
    """Whether students for these goals, taught in this way, were trained, or began to be."""
    return ground.road.workspace.begun("search", key=_search_key(ground))


def _search_key(ground: Ground) -> dict[str, Any]:
    goals = (ground.limits.speedup, ground.limits.max_size_mb)
    lesson = msgspec.structs.replace(
        ground.lesson, student=None, teacher=None, speedup=None, max_size_mb=None, macs=None
    )
    place = fitted(ground.road, ground.place, rung=ground.last)
    return {"goals": goals, "lesson": msgspec.to_builtins(lesson), **_start_key(ground, place)}


def _start_key(ground: Ground, place: Place) -> dict[str, Any]:
    return {
        "source": ground.source.spine.record.artifact.digest,
        "last": ground.last.spine.record.artifact.digest,
        "place": place.key(),
        "judge": place.judge(),
        "versions": versions("onnxruntime"),
        **ground.road.data_key("calibration"),
    }


def _measured_start(ground: Ground) -> HeadStart:
    road, place = ground.road, fitted(ground.road, ground.place, rung=ground.last)

    def make(_: Path) -> HeadStart:
        road.progress("time the source and its shipped form", None)
        with tempfile.TemporaryDirectory(prefix="edgeexport-start-") as folder:
            return _started(replace(ground, place=place), Path(folder))

    stage = road.workspace.stage("head start", key=_start_key(ground, place), make=make, kind=HeadStart)
    if stage.record.basis != "measured" and device_for(place.target, place.device)[0] is not None:
        road.workspace.forget(stage)
    return stage.record


def _started(ground: Ground, folder: Path) -> HeadStart:
    from edgeexport.validation.measure import measure

    place, spine = ground.place, ground.source.spine
    bench = Workbench(ground.road, Prune(speedup=2.0), place, ground.last, folder)
    small = replace(bench.present(), label="shipped form")
    size = small.path.stat().st_size
    example = next(ground.road.parity_feeds(spine.record.signature))
    own = folder / "fp32"
    own.mkdir()
    path = spine.folder / spine.record.artifact.path
    source = replace(shipped(path, [example], place=replace(place, form="fp32"), folder=own), label="source fp32")
    if source.digest == small.digest:
        return HeadStart(1.0, "measured", size)
    machine, reason = device_for(place.target, place.device)
    if machine is not None:
        measured, compared = measure([source, small], device=machine, mode=MODE, progress=ground.road.detail)
        if compared:
            return HeadStart(1 / compared[0].ratio.value, "measured", size)
        reason = "; ".join(dict.fromkeys(why for each in measured for why in each.reasons))
    before, after = (bench.cost(each) for each in (source, small)) if place.counter() else (None, None)
    if before is not None and after is not None:
        return HeadStart(before / max(after, 1e-12), "counted", size, reason)
    return HeadStart(1.0, "predicted", size, f"{reason}: what the shipped form gains by itself is not counted")


def suffices(start: HeadStart, limits: Limits) -> bool:
    """Whether the form that ships holds the limits on time and size uncut."""
    slow = limits.speedup is not None and start.times < limits.speedup
    return not slow and (limits.max_size_mb is None or start.bytes <= limits.max_size_mb * MB)


def field(ground: Ground, start: HeadStart, *, factors: Sequence[float] = ()) -> Field:
    """Cut students for the limits, times each factor (FACTORS), and part them into entrants and others.

    Of a search that has begun they stay as they are, though not validly measured. Raises OutOfReach where not even the
    first factor can be planned by any mix.
    """
    limits = ground.limits
    speedup = None if limits.speedup is None else limits.speedup / start.times
    tried: list[Entrant] = []
    notes: list[str] = []
    basis, unit = start.basis, "–"
    factors = factors or FACTORS
    for factor in factors:
        try:
            step = _asked(ground, speedup, factor=factor)
            found = students(
                ground.road, step, last=ground.last, place=ground.place, begun=lambda _: begun(ground)
            ).record
        except ModelError as error:
            if factor == factors[0]:
                raise
            notes.append(f"at {factor:g} times the goal: {error}")
            continue
        basis, unit = max(basis, found.basis, key=WEIGHT.__getitem__), found.unit
        for each in found.tried:
            times = None if each.times is None else each.times * start.times
            tried.append(Entrant(_name(each, times), each, times))
            notes += [f"{each.mix}: {each.reason}"] if each.reason else []
    built = [each for each in tried if each.student.plan is not None and not each.student.reason]
    margin = MARGIN if basis == "measured" else 1.0
    entrants = _drawn(_able(built, speedup, margin=margin, max_size_mb=limits.max_size_mb))
    others = tuple(each for each in built if each not in entrants)
    return Field(entrants, others, basis, unit, tuple(dict.fromkeys(notes)))


def _able(
    built: Sequence[Entrant], speedup: float | None, *, margin: float, max_size_mb: float | None
) -> list[Entrant]:
    """Those that reach the limits, by a margin if any does: what is shipped is measured once more."""
    sure = None if speedup is None else speedup * margin
    able = [each for each in built if each.student.reaches(sure, max_size_mb=max_size_mb)]
    return able or [each for each in built if each.student.reaches(speedup, max_size_mb=max_size_mb)]


def _asked(ground: Ground, speedup: float | None, *, factor: float) -> Distill:
    """The step that cuts students for the goals, `factor` times as much of what is asked for first."""
    limits = ground.limits
    faster = None if speedup is None else speedup * factor
    size = limits.max_size_mb
    if size is not None and (faster is None or faster < NO_CUT):
        faster, size = None, size / factor
    faster = None if faster is None else max(faster, NO_CUT)
    return msgspec.structs.replace(ground.lesson, student="auto", speedup=faster, max_size_mb=size, macs=None)


def _drawn(able: Sequence[Entrant]) -> tuple[Entrant, ...]:
    """Of each mix the student that keeps most, then whoever keeps most, without twins; MOST at most, in this order."""
    ranked = sorted(able, key=lambda each: -each.student.capacity)
    first: dict[str, Entrant] = {}
    for each in ranked:
        first.setdefault(each.student.mix, each)
    chosen: list[Entrant] = []
    for each in [*first.values(), *ranked]:
        if all(_cut(each) != _cut(other) for other in chosen):
            chosen.append(each)
    return tuple(chosen[:MOST])


def _cut(entrant: Entrant) -> object:
    """What goes, whatever it was asked for: plans for two goals may take the same away."""
    plan = entrant.student.plan
    return None if plan is None else (plan.groups, plan.blocks)


def _name(student: Student, times: float | None) -> str:
    figure = f"{times:.2f}×" if times is not None else f"{student.bytes / MB:.3g} MB"
    return f"{student.mix} at {figure}"
