"""Lessons: students are trained by halving, each round from the start, and scored on the selection split.

The rule: every training is a stage of the road, under the key that `run` gives it: a search that was killed goes on,
and the recipe that comes out of it trains nothing again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from edgeexport.errors import ModelError
from edgeexport.pipeline.road import model_key, training_key
from edgeexport.pipeline.torch_rungs import distilled, load_rung, stage_key, teacher_of, training_data
from edgeexport.progress import Progress
from edgeexport.records.base import digest, to_json
from edgeexport.records.recipe import Distill
from edgeexport.records.shrink import Effort, HalvingRound, Trial
from edgeexport.records.stages import Scored
from edgeexport.search.budget import TRAINING_SHARE, rounds, steps_in_all
from edgeexport.search.entrants import Entrant, Field, Ground
from edgeexport.search.halving import Halving
from edgeexport.workspace import publish


@dataclass(frozen=True)
class Lesson:
    """What one student's longest training gave: its steps, and its scores, or why it has none."""

    steps: int
    scored: Scored | None
    reason: str = ""

    @property
    def lost(self) -> float:
        """What it loses, in the metric's unit; infinite where training failed."""
        drop = self.scored.drop if self.scored is not None else None
        return math.inf if drop is None else drop.value


@dataclass(frozen=True)
class Taught:
    """What the rounds gave. lessons: by entrant's index. best: the index of the one that lost least at the end."""

    rounds: tuple[HalvingRound, ...]
    lessons: Mapping[int, Lesson]
    best: int


def taught(ground: Ground, entrants: Sequence[Entrant], *, budget_minutes: float) -> Taught:
    """Train the entrants by successive halving, in as many steps as the budget allows."""
    minutes = budget_minutes * TRAINING_SHARE
    total = _effort(ground, entrants[0], students=len(entrants), minutes=minutes).steps
    plan = rounds(len(entrants), total)
    halving = Halving([f"{index} {each.name}" for index, each in enumerate(entrants[: plan[0].students])])
    alive, lessons, done = list(range(plan[0].students)), dict[int, Lesson](), 0
    for number, each in enumerate(plan, 1):
        lost = {}
        for place, index in enumerate(alive, 1):
            left = minutes * (1 - done / max(total, 1))
            label = f"round {number} of {len(plan)}, student {place} of {len(alive)}, {entrants[index].name}"
            lessons[index] = lesson(ground, entrants[index], steps=each.steps, label=f"{label}, {left:.0f} min left")
            lost[index] = lessons[index].lost
            done += each.steps
        alive = halving.tell(lost, steps=each.steps)
    return Taught(plan, lessons, alive[0])


def lesson(ground: Ground, entrant: Entrant, *, steps: int, label: str) -> Lesson:
    """Distil into one student for `steps` steps and score it on the selection split; a training that fails says why."""
    road = replace(ground.road, progress=_labelled(ground.road.progress, label))
    place = (ground.place.target, ground.place.device)
    try:
        rung = distilled(
            road, step_of(ground, entrant, steps=steps), last=ground.last, source=ground.source, place=place
        )
    except ModelError as error:
        return Lesson(steps, None, str(error))
    return Lesson(steps, rung.scored)


def step_of(ground: Ground, entrant: Entrant, *, steps: int) -> Distill:
    """Return the recipe's step that trains a student: its plan lies in the workspace."""
    plan = entrant.student.plan
    assert plan is not None
    path = ground.road.workspace.path / "plans" / f"{digest(plan).removeprefix('sha256:')[:20]}.json"
    publish(path, to_json(plan))
    training = msgspec.structs.replace(ground.lesson.training, steps=steps, budget_minutes=None)
    return msgspec.structs.replace(
        ground.lesson, student=str(path), training=training, speedup=None, max_size_mb=None, macs=None
    )


def _effort(ground: Ground, entrant: Entrant, *, students: int, minutes: float) -> Effort:
    """How many steps of all trainings together fit into the minutes, by those of the student that keeps most."""
    road, step = ground.road, step_of(ground, entrant, steps=1)

    def make(_: Path) -> Effort:
        from edgeexport.compression.distill import time_distil_steps
        from edgeexport.compression.prune import apply_pruning
        from edgeexport.pipeline.workbench import feeds_of

        road.progress("time a training step", None)
        assert entrant.student.plan is not None
        student = apply_pruning(load_rung(road, ground.last), entrant.student.plan, example=feeds_of(road)[0])
        teacher = teacher_of(road, step, source=ground.source)
        times = time_distil_steps(student, teacher, data=training_data(road), step=step)
        return Effort(steps_in_all(students, seconds=60 * minutes, one=times.seconds))

    key: dict[str, Any] = {
        "minutes": minutes,
        "students": students,
        "step": msgspec.to_builtins(msgspec.structs.replace(step, student=None, teacher=None)),
        "plan": digest(entrant.student.plan),
        "answers": road.answers,
        "from": [stage_key(ground.last), stage_key(ground.source)],
        "teacher": step.teacher and model_key(step.teacher, road.recipe, workspace=road.workspace),
        **training_key(step.training, road.recipe, workspace=road.workspace),
        **road.data_key("train"),
    }
    return road.workspace.stage("search effort", key=key, make=make, kind=Effort).record


def _labelled(progress: Progress, label: str) -> Progress:
    def tell(text: str, fraction: float | None = None) -> None:
        progress(text if text.startswith(":") else f"{text} ({label})", fraction)

    return tell


def trials(found: Field, outcome: Taught | None, *, slower: Sequence[tuple[Entrant, Lesson]] = ()) -> tuple[Trial, ...]:
    """Return every student that was built as the report shows it, the front of the trained ones marked."""
    rows = []
    for index, each in enumerate(found.entrants):
        known = outcome.lessons.get(index) if outcome is not None else None
        rows.append(_trial(each, known, last=outcome.rounds[-1].steps if outcome is not None else 0))
    rows += [_trial(each, None) for each in found.others]
    rows += [_trial(each, known) for each, known in slower]
    return tuple(msgspec.structs.replace(row, front=_on_front(row, rows)) for row in rows)


def _trial(entrant: Entrant, known: Lesson | None, *, last: int = 0) -> Trial:
    student = entrant.student
    row = Trial(entrant.name, "not trained", "", entrant.times, student.cost, student.bytes, student.kept)
    if known is None:
        return row
    scored = known.scored
    status = "trained" if known.steps >= last and scored is not None else "dropped"
    return msgspec.structs.replace(
        row,
        status=status,
        reason=known.reason,
        steps=known.steps,
        score=None if scored is None else scored.score,
        drop=None if scored is None else scored.drop,
    )


def _on_front(row: Trial, rows: Sequence[Trial]) -> bool:
    """Whether no other trained student loses no more, is as fast and as small, and better in one of the three."""
    if row.drop is None:
        return False
    own = _figures(row)
    others = (_figures(other) for other in rows if other.drop is not None and other is not row)
    return not any(all(a <= b for a, b in zip(other, own, strict=True)) and other != own for other in others)


def _figures(row: Trial) -> tuple[float, float, float]:
    return (math.inf if row.drop is None else row.drop.value, -(row.times or 0.0), float(row.bytes))
