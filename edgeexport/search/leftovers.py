"""Leftovers: what lies in the folder of a search that ships nothing.

The rule: no file there is, or names as shipped, a model that this search did not find.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from edgeexport.errors import RequestError
from edgeexport.pipeline import RECORD, REPORT
from edgeexport.pipeline.packing import bundle_name
from edgeexport.pipeline.plans import OWN
from edgeexport.records.base import to_json
from edgeexport.records.run import RunRecord
from edgeexport.workspace import publish

RECIPE, PLAN = "shrunk.toml", "shrunk.plan.json"
ELSEWHERE = "give another folder with --out"


def cleared(target: str, *, out: Path) -> None:
    """Remove what an earlier search or run left in `out` for this target: its bundle, recipe, plans, and record."""
    plans = [path.name for path in out.iterdir() if OWN.fullmatch(path.name)]
    for name in (bundle_name(target), REPORT, RECORD, RECIPE, PLAN, *plans):
        (out / name).unlink(missing_ok=True)


def apart(started_from: Iterable[Path], *, out: Path) -> None:
    """Raise RequestError where a search would overwrite what it starts from: an earlier one's recipe or plan."""
    own = {(out / name).resolve() for name in (RECIPE, PLAN)}
    for path in started_from:
        if path.resolve() in own:
            raise RequestError(f"the search starts from {path}, which it would overwrite", next_step=ELSEWHERE)


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
