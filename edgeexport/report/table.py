"""A run for the terminal: the ladder as a table, what was rolled back and every verdict as lines, the record as JSON.

The rule: the table holds figures only, and as many columns as fit; whatever is a sentence stands below it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgeexport.records import base
from edgeexport.records.run import Rung, RunRecord, TargetResult
from edgeexport.records.verdict import LimitVerdict
from edgeexport.report.figures import (
    LIMIT_NAMES,
    Ladder,
    Row,
    drop_parts,
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
    from rich.console import Group
    from rich.table import Table

WIDTH = 120
NARROWEST_NAME = 16
_STYLES = {"shipped": "bold green", "rolled back": "yellow", "not chosen": "dim", "kept": ""}
_HEADS = {"holds": "every limit holds", "unproven": "no limit fails, some are unproven", "fails": "a limit fails"}


@dataclass(frozen=True)
class _Column:
    """One column: its title, the text of a row in it, and on which side it is aligned."""

    title: str
    text: Callable[[Row], str]
    justify: Literal["left", "right"] = "right"


_DROP = _Column("drop", lambda row: drop_parts(row.rung.drop)[0] if row.rung.drop else "–")
_DROP_INTERVAL = _Column("drop [95 %]", lambda row: drop_text(row.rung.drop))
_MEMORY = _Column("memory MB", memory_text)


def ladder_table(run: RunRecord, width: int = WIDTH) -> Group:
    """Return the rungs that all targets share, then a section for each target, at most `width` characters wide.

    Where that is too narrow, the interval of the drop is left out first, then the memory; then names are folded.
    """
    from rich.console import Group
    from rich.text import Text

    found = ladders(run)
    sections = [("", [row for row in found[0].rows if row.shared])]
    sections += [(_title(ladder), [row for row in ladder.rows if not row.shared]) for ladder in found if ladder.result]
    rows = [row for _, part in sections for row in part]
    columns, widths = _fitting(run.metric, rows, width=width)
    parts: list[Table | Text] = []
    for title, part in sections:
        if title:
            parts.append(Text(f"\n{title}", style="bold"))
        if part or not title:
            parts.append(_section(part, columns, widths=widths, header=not title))
    return Group(*parts, Text(_which_samples(run), style="dim"))


def _which_samples(run: RunRecord) -> str:
    """Say on which samples the table's scores are, and on which the verdicts."""
    selection, evaluation = (run.splits.get(name) for name in ("selection", "evaluation"))
    if selection is None or evaluation is None:
        return ""
    return f"\nscores above: {selection} selection samples; verdicts below: {evaluation} others, kept for them"


def _title(ladder: Ladder) -> str:
    return f"{ladder.result.target} ({ladder.result.runtime})" if ladder.result else ""


def _fitting(metric: str, rows: Sequence[Row], *, width: int) -> tuple[list[_Column], list[int]]:
    """Return the widest choice of columns that fits, and their widths; the narrowest one when none does."""
    columns, widths = [], [0]
    for drop, more in ((_DROP_INTERVAL, [_MEMORY]), (_DROP, [_MEMORY]), (_DROP, [])):
        columns = _columns(metric, drop, more=more)
        widths = [max(map(_length, [column.title, *map(column.text, rows)])) for column in columns]
        if sum(widths) + _gaps(widths) <= width:
            return columns, widths
    others = sum(widths[1:]) + _gaps(widths)
    return columns, [max(NARROWEST_NAME, width - others), *widths[1:]]


def _columns(metric: str, drop: _Column, *, more: list[_Column]) -> list[_Column]:
    return [
        _Column("rung", _name, "left"),
        _Column(metric, lambda row: score_text(row.rung.score)),
        drop,
        _Column("size MB", lambda row: number(row.size_mb) + ratio_text(row.size_ratio)),
        _Column("latency ms", latency_text),
        *more,
        _Column("status", lambda row: row.rung.status, "left"),
    ]


def _name(row: Row) -> str:
    return row.rung.name if row.shared else f"  {row.rung.name}"


def _length(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _gaps(widths: Sequence[int]) -> int:
    return 2 * (len(widths) - 1)


def _section(rows: Sequence[Row], columns: Sequence[_Column], *, widths: Sequence[int], header: bool) -> Table:
    """Return one table with fixed widths, so that all sections line up. Cells are Text: brackets are no markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=header)
    for column, width in zip(columns, widths, strict=True):
        table.add_column(Text(column.title), justify=column.justify, width=width, overflow="fold")
    for row in rows:
        name, *figures = (column.text(row) for column in columns)
        cells = [textwrap.fill(name, widths[0], subsequent_indent=" " * 4), *figures]
        table.add_row(*(Text(cell, style=_STYLES[row.rung.status]) for cell in cells))
    return table


def verdict_lines(run: RunRecord) -> list[str]:
    """Return as plain text what was rolled back and why, what ships for each target with every limit, and warnings."""
    lines = _rolled_back(run.rungs, None)
    for result in run.targets:
        lines += _target_lines(run, result)
    return lines + [f"warning: {warning}" for warning in run.warnings]


def _rolled_back(rungs: Sequence[Rung], target: str | None) -> list[str]:
    """One line for each rung of a target (None: those that all share) that did not hold."""
    return [
        f"  rolled back  {rung.name}: {rung.reason}"
        for rung in rungs
        if rung.target == target and rung.status == "rolled back"
    ]


def _target_lines(run: RunRecord, result: TargetResult) -> list[str]:
    tried = _rolled_back(run.rungs, result.target)
    if result.shipped is None:
        why = result.nearest_miss or "no rung holds every limit"
        return [f"{result.target}: infeasible, nothing is packed; {why}", *tried]
    head = f"{result.target}: ships {result.shipped}{_scores(result)}; {_HEADS[outcome(result)]}"
    limits = result.verdict.limits if result.verdict is not None else ()
    return [head, *tried, *map(_limit_line, limits), *_emulated_lines(run, result)]


def _emulated_lines(run: RunRecord, result: TargetResult) -> list[str]:
    """What emulated CPUs made of the file that ships, or why none ran it; nothing where a device did."""
    name = result.shipped
    found = [rung.emulation for rung in run.rungs if (rung.target, rung.name) == (result.target, name)]
    lines = []
    for record in filter(None, found):
        lines += [f"  emulated  {each.device}: " + (each.reason or "agrees with this machine") for each in record.runs]
        lines += [f"  emulated  {note}" for note in ([] if record.runs else record.notes)]
    return lines


def _scores(result: TargetResult) -> str:
    """The score on the evaluation set beside the source's, which the table does not show."""
    if result.score is None or result.source_score is None:
        return ""
    return f", {result.score.metric} {score_text(result.score)} (source {score_text(result.source_score)})"


def _limit_line(limit: LimitVerdict) -> str:
    """Return e.g. "  holds     accuracy lost: 0.40 (bound 0.92, allowed 1)"; an unknown figure is left out."""
    value, bound, bar = limit_figures(limit)
    if limit.value is None:
        figures = ""
    elif limit.limit == "never_larger":
        figures = f"{value} of {bar}"
    elif limit.limit == "never_slower":
        figures = f"{value} its time (bound {bound})"
    elif limit.limit == "speedup":
        figures = f"{value} (bound {bound}, asked for {bar})"
    else:
        figures = f"{value} (bound {bound}, allowed {bar})"
    said = "; ".join(filter(None, (figures, limit.reason))) or f"not known (allowed {bar})"
    return f"  {limit.state:<9} {LIMIT_NAMES.get(limit.limit, limit.limit)}: {said}"


def to_json(run: RunRecord) -> str:
    """Return the machine twin of table and page: the record itself, canonical JSON."""
    return base.to_json(run).decode()
