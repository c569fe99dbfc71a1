"""Reasons: why nothing holds the limits, in figures: what would be needed, what was reached, and what to ask for.

The rule: every sentence holds both values, the one that was asked for and the one that was reached.
"""

from __future__ import annotations

from dataclasses import replace

from edgeexport.errors import ConverterFailed, DeviceError, OutOfReach, RequestError
from edgeexport.records.recipe import Limits
from edgeexport.records.run import TargetResult
from edgeexport.records.shrink import HeadStart
from edgeexport.records.students import MB
from edgeexport.search.budget import TRAINING_SHARE
from edgeexport.search.entrants import Entrant, Field, Ground, begin, field, suffices
from edgeexport.search.lessons import Lesson, Taught, lesson

# What is tried to tell how much would be possible: students for so much of the goal, for so much of the budget.
LESS, RESERVE = 0.75, 0.15


def asked_text(limits: Limits) -> str:
    """Return e.g. "5× and 0.5 MB"."""
    speed = f"{limits.speedup:g}×" if limits.speedup is not None else ""
    size = f"{limits.max_size_mb:g} MB" if limits.max_size_mb is not None else ""
    return " and ".join(filter(None, (speed, size)))


def none_reaches(ground: Ground, found: Field, *, start: HeadStart) -> tuple[str, ...]:
    """Say why no student was worth a training: by the limit that all miss, or both where each student misses one."""
    fastest = max(found.others, key=lambda each: each.times or 0.0, default=None)
    smallest = min(found.others, key=lambda each: each.student.bytes, default=None)
    slow, large = _slow(fastest, ground.limits, start=start, basis=found.basis), _large(smallest, ground.limits)
    missed = [told for told, holds in (slow, large) if told and not holds]
    return (*(missed or filter(None, (slow[0], large[0]))), *found.notes)


def _slow(fastest: Entrant | None, limits: Limits, *, start: HeadStart, basis: str) -> tuple[str, bool]:
    """Return what the fastest student has of the speed that was asked for, and whether that suffices."""
    if limits.speedup is None or fastest is None or fastest.times is None:
        return "", True
    own = f"the uncut network in the form that ships {start.times:.2f}× ({start.known})"
    told = f"the fastest student that could be cut, {fastest.student.mix}, is {fastest.times:.2f}× ({basis}), {own}"
    holds = fastest.student.reaches(limits.speedup / start.times, max_size_mb=None)
    return f"{limits.speedup:g}× was asked for; {told}", holds


def _large(smallest: Entrant | None, limits: Limits) -> tuple[str, bool]:
    """Return what the smallest student has of the size that was asked for, and whether that suffices."""
    if limits.max_size_mb is None or smallest is None:
        return "", True
    size = f"the smallest student, {smallest.name}, is {smallest.student.bytes / MB:.3g} MB"
    holds = smallest.student.reaches(None, max_size_mb=limits.max_size_mb)
    return f"{limits.max_size_mb:g} MB was asked for; {size}", holds


def loses_too_much(ground: Ground, outcome: Taught, *, best: Entrant, bar: float) -> tuple[str, ...]:
    """Say how much the best student loses at what was asked for."""
    known = outcome.lessons[outcome.best]
    if known.scored is None:
        return (f"no student could be trained: {known.reason}",)
    unit, lost = known.scored.score.unit, known.lost
    reached = f"{asked_text(ground.limits)}: the best of {len(outcome.lessons)} students, {best.name}"
    return (f"{reached}, loses {lost:.2f} {unit} after {known.steps} steps, {bar:g} allowed",)


def slower(
    ground: Ground, outcome: Taught, *, start: HeadStart, bar: float
) -> tuple[tuple[str, ...], list[tuple[Entrant, Lesson]]]:
    """Train one student for less than was asked for; say what that reaches, or why it cannot be told.

    What goes wrong here costs one sentence, not the report of all that was trained before.
    """
    looser = _looser(ground.limits)
    if suffices(start, looser):
        return (f"{start.times:.2f}× and {start.bytes / MB:.3g} MB are reached without any cut",), []
    try:
        return _reached(ground, outcome, looser=looser, start=start, bar=bar)
    except OutOfReach as error:
        return (str(error),), []
    except (RequestError, DeviceError, ConverterFailed) as error:
        next_step = f"; {error.next_step}" if error.next_step else ""
        return (f"what {asked_text(looser)} would cost could not be told: {error}{next_step}",), []


def _reached(
    ground: Ground, outcome: Taught, *, looser: Limits, start: HeadStart, bar: float
) -> tuple[tuple[str, ...], list[tuple[Entrant, Lesson]]]:
    easier = replace(ground, limits=looser)
    found = field(easier, start, factors=(1.0,))
    if not found.entrants:
        return none_reaches(easier, found, start=start), []
    entrants = found.entrants
    total = sum(each.students * each.steps for each in outcome.rounds)
    begin(easier, lambda: start)
    known = lesson(ground, entrants[0], steps=max(1, int(total * RESERVE / TRAINING_SHARE)), label="for less")
    if known.scored is None:
        return (f"for less, {asked_text(looser)}: no student could be trained: {known.reason}",), []
    unit = known.scored.score.unit
    state = "which would hold" if known.lost <= bar else f"{bar:g} allowed"
    told = f"for less, {asked_text(looser)}: {entrants[0].name} loses {known.lost:.2f} {unit} after {known.steps} steps"
    return (f"{told}, {state}",), [(entrants[0], known)]


def _looser(limits: Limits) -> Limits:
    speedup = None if limits.speedup is None else max(limits.speedup * LESS, 1.01)
    size = None if limits.max_size_mb is None else limits.max_size_mb / LESS
    return Limits(speedup=speedup, max_size_mb=size)


def not_shipped(result: TargetResult, *, student: str | None) -> tuple[str, ...]:
    """Say why `run` does not ship the model that the search found; nothing where it does.

    student: the name of its rung; None where the uncut network was found to do.

    Where nothing can be measured, an uncut network might ship with its speed unproven: that is not what was asked for.
    """
    if result.shipped is None:
        return (f"the model that was found does not ship: {result.nearest_miss}",)
    if student and not result.shipped.startswith(f"{student} "):
        return (f"the student does not ship, only {result.shipped} would: see what is rolled back in report.html",)
    return ()
