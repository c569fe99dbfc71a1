"""A run for the terminal: the ladder as a table, the verdicts as lines, the record as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeexport.records import base
from edgeexport.records.run import RunRecord, TargetResult
from edgeexport.report.figures import (
    LIMIT_NAMES,
    Row,
    drop_text,
    ladders,
    latency_text,
    limit_figures,
    memory_text,
    number,
    outcome,
    ratio_text,
    score_text,
)

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_STYLES = {"shipped": "bold green", "rolled back": "yellow", "not chosen": "dim", "kept": ""}


def ladder_table(run: RunRecord) -> Table:
    """Return one table: the rungs that all targets share, then a section for each target."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rung", overflow="fold")
    for title in (run.metric, "drop [95 %]", "size MB", "latency ms", "memory MB"):
        table.add_column(Text(title), justify="right", no_wrap=True)
    table.add_column("status", overflow="fold", min_width=16)
    found = ladders(run)
    for row in found[0].rows:
        if row.shared:
            table.add_row(*_cells(row))
    for ladder in found:
        if ladder.result is None:
            continue
        table.add_section()
        table.add_row(Text(f"{ladder.result.target} ({ladder.result.runtime})", style="bold"))
        for row in ladder.rows:
            if not row.shared:
                table.add_row(*_cells(row, indent="  "))
    return table


def _cells(row: Row, indent: str = "") -> list[Text]:
    """The cells as Text, so that brackets in names are not read as markup."""
    from rich.text import Text

    rung, style = row.rung, _STYLES[row.rung.status]
    status = f"{rung.status}: {rung.reason}" if rung.reason else rung.status
    cells = [
        indent + rung.name,
        score_text(rung.score),
        drop_text(rung.drop),
        number(row.size_mb) + ratio_text(row.size_ratio),
        latency_text(row),
        memory_text(row),
        status,
    ]
    return [Text(cell, style=style) for cell in cells]


def verdict_lines(run: RunRecord) -> list[str]:
    """Return what ships for each target with every limit, or the nearest miss; then the warnings. Plain text."""
    lines: list[str] = []
    for result in run.targets:
        lines += _target_lines(result)
    return lines + [f"warning: {warning}" for warning in run.warnings]


def _target_lines(result: TargetResult) -> list[str]:
    state = outcome(result)
    if result.shipped is None:
        return [f"{result.target}: infeasible, nothing is packed; {result.nearest_miss or 'no rung holds every limit'}"]
    head = {"holds": "every limit holds", "unproven": "no limit fails, some are unproven", "fails": "a limit fails"}
    lines = [f"{result.target}: ships {result.shipped}; {head[state]}"]
    for limit in result.verdict.limits if result.verdict is not None else ():
        value, bound, bar = limit_figures(limit)
        name = LIMIT_NAMES.get(limit.limit, limit.limit)
        text = f"  {limit.state:<9} {name}: {value} (bound {bound}, allowed {bar})"
        lines.append(text + (f"; {limit.reason}" if limit.reason else ""))
    return lines


def to_json(run: RunRecord) -> str:
    """Return the machine twin of table and page: the record itself, canonical JSON."""
    return base.to_json(run).decode()
