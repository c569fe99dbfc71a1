"""A search for the terminal: every student as a row, and in sentences what was found or why nothing was.

The rule: what table and page show of a student is worded here, once.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeexport.records.recipe import Limits
from edgeexport.records.shrink import ShrinkRecord, Trial
from edgeexport.report.figures import MB, drop_text, number, score_text

HEADER = ("student", "faster", "cost", "size MB", "MACs kept", "steps", "score", "drop [95 %]", "front", "status")


def trial_rows(record: ShrinkRecord) -> list[Sequence[str]]:
    """Return the rows of the table, those that were trained longest first."""
    ranked = sorted(record.trials, key=lambda row: (-row.steps, row.drop.value if row.drop else 0.0))
    return [_row(row, record.unit, front="○" if stopped_early(row, record) else "●") for row in ranked]


def stopped_early(row: Trial, record: ShrinkRecord) -> bool:
    """Say whether a student was trained for fewer steps than others: with as many it might lose less."""
    return row.drop is not None and row.steps < max(each.steps for each in record.trials)


def _row(row: Trial, unit: str, *, front: str) -> Sequence[str]:
    cost = "–" if row.cost is None else f"{number(row.cost)} {unit}"
    faster = "–" if row.times is None else f"{number(row.times)}×"
    figures = (number(row.bytes / MB), f"{row.kept[0]:.0%}", str(row.steps) if row.steps else "–")
    scores = (score_text(row.score), drop_text(row.drop), front if row.front else "")
    status = f"{row.status}: {row.reason}" if row.reason else row.status
    return (row.name, faster, cost, *figures, *scores, status)


def limits_text(limits: Limits) -> str:
    """Return e.g. "at least 5× faster than fp32, at most 0.5 MB, at most 1 lost"."""
    told = {
        "speedup": f"at least {limits.speedup:g}× faster than fp32" if limits.speedup is not None else "",
        "max_size_mb": f"at most {limits.max_size_mb:g} MB" if limits.max_size_mb is not None else "",
        "max_drop": f"at most {limits.max_drop:g} lost" if limits.max_drop is not None else "",
    }
    return ", ".join(filter(None, told.values()))


def shrink_lines(record: ShrinkRecord) -> list[str]:
    """Return what was asked for, how it was searched, and what came of it."""
    start = record.head_start
    own = f"uncut, the form that ships is {number(start.times)}× ({start.known}), {number(start.bytes / MB)} MB"
    rounds = ", ".join(f"{each.students} for {each.steps} steps" for each in record.rounds)
    lines = [f"asked for {limits_text(record.limits)} on {record.target}; {own}"]
    lines += [f"students: {rounds}" if rounds else ""]
    lines += [f"figures are {record.basis}, not measured: {start.reason}" if record.basis != "measured" else ""]
    lines += [f"note: {each}" for each in record.notes]
    lines += [f"{record.outcome}: {each}" for each in record.explanation]
    return [line for line in lines if line]
