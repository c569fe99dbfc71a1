"""Leftovers: what lies in the folder of a search that ships nothing.

The rule: no file there is, or names as shipped, a model that this search did not find.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgeexport.errors import RequestError
from edgeexport.pipeline import RECORD, REPORT
from edgeexport.pipeline.packing import bundle_name
from edgeexport.records.base import to_json
from edgeexport.records.recipe import Distill, Recipe
from edgeexport.records.run import RunRecord
from edgeexport.workspace import publish

RECIPE, PLAN = "shrunk.toml", "shrunk.plan.json"
ELSEWHERE = "give another folder with --out"


def cleared(target: str, *, out: Path) -> None:
    """Remove what an earlier search or run left in `out` for this target: its bundle, its recipe, and its record."""
    for name in (bundle_name(target), REPORT, RECORD, RECIPE, PLAN):
        (out / name).unlink(missing_ok=True)


def apart(recipe: Recipe, *, out: Path) -> None:
    """Raise RequestError where a search would overwrite a plan that it starts from: that of an earlier one."""
    plans = [str(step.student) for step in recipe.step if isinstance(step, Distill) and isinstance(step.student, str)]
    if (out / PLAN).resolve() in map(recipe.resolve, plans):
        raise RequestError(f"the search starts from {out / PLAN}, which it would overwrite", next_step=ELSEWHERE)


def withdrawn(done: RunRecord, told: Sequence[str], *, out: Path) -> RunRecord:
    """Take back the bundle of a run, and say so, and why, in its record and report."""
    (result,) = done.targets
    if result.bundle is None:
        return done
    why = "; ".join(told)
    taken = msgspec.structs.replace(
        result, shipped=None, verdict=None, bundle=None, bundle_bytes=None, nearest_miss=why
    )
    rungs = tuple(
        msgspec.structs.replace(rung, status="not chosen", reason=why) if rung.status == "shipped" else rung
        for rung in done.rungs
    )
    record = msgspec.structs.replace(done, rungs=rungs, targets=(taken,))
    from edgeexport.report import html

    (out / result.bundle).unlink(missing_ok=True)
    publish(out / REPORT, html(record).encode())
    publish(out / RECORD, to_json(record))
    return record
