"""Shrink: limits in, the best model out. Students are cut, timed before any training, and trained by halving.

The rule: a search looks at the selection split only. What it finds is written as a recipe and goes down the whole road
like any other, where the evaluation set is opened once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edgeexport import ranks
from edgeexport.errors import OutOfReach, RecipeError, RequestError
from edgeexport.pipeline import admitted, run
from edgeexport.pipeline.gates import check_bars, max_drop
from edgeexport.pipeline.plans import check_apart
from edgeexport.pipeline.road import open_road
from edgeexport.pipeline.torch_rungs import climb, place_of
from edgeexport.progress import Progress, silent
from edgeexport.records.base import to_json
from edgeexport.records.recipe import AUTO, Distill, Limits, Prune, Quantize, Recipe, Step, Train
from edgeexport.records.recipe_text import recipe_toml
from edgeexport.records.shrink import HeadStart, ShrinkRecord
from edgeexport.records.students import MB
from edgeexport.records.target import Target
from edgeexport.records.training import Training
from edgeexport.search.budget import check_budget, minutes
from edgeexport.search.entrants import Ground, begin, field, head_start, suffices
from edgeexport.search.halving import load_optuna
from edgeexport.search.leftovers import PLAN, RECIPE, apart, cleared, withdrawn
from edgeexport.search.lessons import step_of, taught, trials
from edgeexport.search.reasons import loses_too_much, none_reaches, not_shipped, slower
from edgeexport.workspace import Workspace, publish, usable

__all__ = ["minutes", "shrink"]

PAGE, RECORD = "shrink.html", "shrink.json"


def shrink(  # noqa: PLR0913 # a front door: each is a choice of its own that a user may want to make
    recipe: Recipe,
    target: str | Target,
    *,
    limits: Limits,
    budget_minutes: float = 30.0,
    device: str | None = None,
    out: Path | str = "edgeexport-out",
    workspace: Path | str = ".edgeexport",
    progress: Progress = silent,
) -> ShrinkRecord:
    """Search for the model that loses least within `limits`, and take it down the whole road into a bundle in `out`.

    recipe: its steps are where the search starts; a distil step with student = "auto" says how students learn. limits:
    those given stand in place of the recipe's; `speedup` and `max_size_mb`, one or both, say how small.
    budget_minutes: for training students; cutting and measuring them, and the final run, come on top. Writes
    shrunk.toml with its plan (not for live objects), shrink.html and shrink.json beside what `run` writes. The record
    says what was tried, and in `explanation` why nothing holds the limits: then nothing that an earlier search shipped
    stays in `out`. Raises RecipeError or RequestError for a request that cannot be searched, MissingExtra without
    Optuna, all before any work, and the errors of `run`.
    """
    recipe, out = _limited(recipe, limits), Path(out)
    apart(_plans(recipe), out=out)
    check_apart(recipe, out=out)
    check_budget(budget_minutes)
    (place,) = admitted([target], device=device)
    load_optuna()
    usable(out)
    with Workspace(Path(workspace)) as work:
        check_bars(recipe, work, targets=[place])
        found, step = _searched(_full(recipe), work, place=(place, device, budget_minutes), progress=progress)
    if found.explanation:
        cleared(place.name, out=out)
    else:
        found = _shipped(recipe, found, step=step, way=_Way(place, device, out, Path(workspace), progress))
    from edgeexport.report.shrink_page import shrink_html

    publish(out / PAGE, shrink_html(found).encode())
    publish(out / RECORD, to_json(found))
    return found


def _limited(recipe: Recipe, limits: Limits) -> Recipe:
    """The recipe with the limits that are given in place of its own. Raises RecipeError for what cannot be searched."""
    if ranks.count() > 1:
        raise RequestError("a search cannot be shared by the processes of torchrun", next_step="start it without")
    if recipe.model.onnx is not None:
        raise RecipeError(
            "an .onnx source can be quantized, not shrunk: there is no network to train",
            next_step="give the PyTorch factory, or use `edgeexport run`",
        )
    given = {name: value for name in Limits.__struct_fields__ if (value := getattr(limits, name)) is not None}
    whole = msgspec.structs.replace(recipe.limits, **given)
    if whole.speedup is None and whole.max_size_mb is None:
        raise RecipeError("nothing says how small the model must become", next_step="give --speedup or --max-size-mb")
    if whole.max_size_mb == 0:
        raise RecipeError("no model is 0 MB", next_step="give a --max-size-mb above 0")
    return msgspec.structs.replace(recipe, limits=whole)


def _plans(recipe: Recipe) -> list[Path]:
    """The files of the pruning plans that cut the students of a recipe."""
    students = [step.student for step in recipe.step if isinstance(step, Distill)]
    return [recipe.resolve(each) for each in students if isinstance(each, str) and each != AUTO]


def _full(recipe: Recipe) -> Recipe:
    """The recipe with a student to come: what it trains before, a distil step, and quantize."""
    start = _start(recipe)
    lesson = msgspec.structs.replace(_lesson(recipe), student=AUTO, speedup=2.0, max_size_mb=None, macs=None)
    return msgspec.structs.replace(recipe, step=(*start, lesson, recipe.quantize or Quantize()))


def _start(recipe: Recipe) -> tuple[Step, ...]:
    return tuple(
        step
        for step in recipe.step
        if not isinstance(step, Quantize) and not (isinstance(step, Distill) and step.student == AUTO)
    )


def _lesson(recipe: Recipe) -> Distill:
    """How students learn: as the recipe's automatic student does, else with the settings of its first training."""
    own = next((step for step in recipe.step if isinstance(step, Distill) and step.student == AUTO), None)
    if own is not None:
        return own
    training = next((step.training for step in recipe.step if isinstance(step, Train | Distill | Prune)), Training())
    return Distill(training=training)


def _searched(
    recipe: Recipe, work: Workspace, *, place: tuple[Target, str | None, float], progress: Progress
) -> tuple[ShrinkRecord, Distill | None]:
    """Climb to where the search starts, cut, train; return the record and the step that was found, if it is needed."""
    target, device, budget = place
    road = open_road(recipe, work, progress=progress)
    bar = max_drop(road, target)
    own = road.recipe  # live networks have names in it
    start = replace(road, recipe=msgspec.structs.replace(own, step=(*_start(own), own.step[-1])))
    climbed = climb(start, bar, target=target, device=device)
    where = place_of(road, (target, device))
    lesson = _lesson(own)
    ground = Ground(road, climbed.standing[0], climbed.standing[-1], where, recipe.limits, lesson)
    return _found(ground, head_start(ground), bar=bar, budget=budget)


def _found(
    ground: Ground, start: HeadStart, *, bar: float | None, budget: float
) -> tuple[ShrinkRecord, Distill | None]:
    record = _blank(ground, start, budget=budget)
    if suffices(start, ground.limits):
        note = f"nothing needs to be cut: the shipped form is {start.times:.2f}× and {start.bytes / MB:.3g} MB"
        return msgspec.structs.replace(record, notes=(note,)), None
    try:
        found = field(ground, start)
    except OutOfReach as error:
        return msgspec.structs.replace(record, explanation=(str(error),)), None
    record = msgspec.structs.replace(record, basis=found.basis, unit=found.unit, notes=found.notes)
    if not found.entrants:
        told = none_reaches(ground, found, start=start)
        return msgspec.structs.replace(record, explanation=told, trials=trials(found, None)), None
    begin(ground, lambda: start)
    outcome = taught(ground, found.entrants, budget_minutes=budget)
    best, known = found.entrants[outcome.best], outcome.lessons[outcome.best]
    if known.scored is None or (bar is not None and known.lost > bar):
        told = loses_too_much(ground, outcome, best=best, bar=bar or 0.0)
        more, others = slower(ground, outcome, start=start, bar=bar or 0.0)
        rows = trials(found, outcome, slower=others)
        return msgspec.structs.replace(record, rounds=outcome.rounds, trials=rows, explanation=(*told, *more)), None
    rows = trials(found, outcome)
    chosen = tuple(
        msgspec.structs.replace(row, status="chosen") if index == outcome.best else row
        for index, row in enumerate(rows)
    )
    return (
        msgspec.structs.replace(record, rounds=outcome.rounds, trials=chosen),
        step_of(ground, best, steps=outcome.rounds[-1].steps),
    )


def _blank(ground: Ground, start: HeadStart, *, budget: float) -> ShrinkRecord:
    score = ground.source.scored.score
    return ShrinkRecord(
        recipe=ground.road.recipe.name,
        target=ground.place.target.name,
        limits=ground.limits,
        metric=score.metric,
        basis=start.basis,
        unit="–",
        head_start=start,
        budget_minutes=budget,
        rounds=(),
        trials=(),
    )


@dataclass(frozen=True)
class _Way:
    """How the road is taken."""

    target: Target
    device: str | None
    out: Path
    workspace: Path
    progress: Progress


def _shipped(recipe: Recipe, found: ShrinkRecord, *, step: Distill | None, way: _Way) -> ShrinkRecord:
    """Write what was found as a recipe, and run it; where the search had names of live networks, the run has these."""
    if step is not None:
        step = msgspec.structs.replace(step, teacher=_lesson(recipe).teacher)
    steps = (*_start(recipe), *((step,) if step is not None else ()), recipe.quantize or Quantize())
    whole = msgspec.structs.replace(recipe, step=steps)
    file = _written(whole, step, out=way.out)
    notes = (*found.notes, *(() if file else ("no recipe is written: this one has live objects",)))
    done = run(whole, way.target, device=way.device, out=way.out, workspace=way.workspace, progress=way.progress)
    (result,) = done.targets
    # The student is the last step before quantization, so its rung is the last one that all targets share.
    names = [rung.name for rung in done.rungs if rung.target is None]
    told = not_shipped(result, student=names[-1] if step is not None else None)
    if told:
        done = withdrawn(done, told, out=way.out)
    return msgspec.structs.replace(found, recipe_file=file, run=done, notes=notes, explanation=told)


def _written(recipe: Recipe, step: Distill | None, *, out: Path) -> str:
    """Write shrunk.toml, and the plan beside it; nothing where the recipe lives in Python. Return its path.

    What an earlier search wrote goes first: no recipe stays beside a model that it does not make.
    """
    for name in (RECIPE, PLAN):
        (out / name).unlink(missing_ok=True)
    folder = os.path.relpath(Path(recipe.folder).resolve(), out.resolve())
    steps: list[Step] = list(recipe.step)
    if step is not None:
        named = os.path.relpath((out / PLAN).resolve(), Path(recipe.folder).resolve())
        steps[steps.index(step)] = msgspec.structs.replace(step, student=named)
    try:
        text = recipe_toml(msgspec.structs.replace(recipe, folder=folder, step=tuple(steps)))
    except RecipeError:
        return ""
    if step is not None:
        publish(out / PLAN, Path(str(step.student)).read_bytes())
    publish(out / RECIPE, text.encode())
    return RECIPE
