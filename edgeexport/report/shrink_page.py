"""The page of a search: its front drawn, every student listed, one HTML file without anything from outside.

The rule: everything from a record is escaped by the template engine; only our own SVG goes in as markup.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Callable, Sequence
from html import escape

from edgeexport.records.shrink import ShrinkRecord, Trial
from edgeexport.report.figures import MB, number
from edgeexport.report.shrink import HEADER, shrink_lines, stopped_early, trial_rows

TEMPLATE = "shrink.html.j2"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 420, 64, 40, 24, 48
SMALLEST, LARGEST = 5.0, 22.0


def shrink_html(record: ShrinkRecord) -> str:
    """Return the whole page. The same record always gives the same text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = (importlib.resources.files(__package__) / TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        record=record,
        # Markup is right here: front_plot escapes every text it draws
        plot=Markup(front_plot(record)),  # noqa: S704
        header=HEADER,
        rows=trial_rows(record),
        lines=shrink_lines(record),
    )


def front_plot(record: ShrinkRecord) -> str:
    """Return the trained students as SVG: how much faster, how much is lost, the area of a dot its size in MB.

    Dots of the front are joined, those with a dashed edge were trained for fewer steps; dashed lines are the limits.
    Empty where nothing was trained.
    """
    shown = [row for row in record.trials if row.drop is not None]
    if not shown:
        return ""
    timed = all(row.times is not None for row in shown)
    across = [_across(row, timed) for row in shown]
    lost = [row.drop.value for row in shown if row.drop is not None]
    limits = record.limits
    goal = limits.speedup if timed else limits.max_size_mb
    x = _scale([*across, *_given(goal)], low=LEFT, high=WIDTH - RIGHT)
    y = _scale([0.0, *lost, *_given(limits.max_drop)], low=HEIGHT - BOTTOM, high=TOP)
    dots = [(x(one), y(other), row) for one, other, row in zip(across, lost, shown, strict=True)]
    parts = [_frame(x, y, ends=(across, lost)), _titles(record, timed)]
    parts += [_bar(x(each), vertical=True) for each in _given(goal)]
    parts += [_bar(y(each), vertical=False) for each in _given(limits.max_drop)]
    front = sorted((a, b) for a, b, row in dots if row.front)
    parts.append(f'<polyline class="front" points="{" ".join(f"{a:g},{b:g}" for a, b in front)}"/>')
    biggest = max(row.bytes for _, _, row in dots) or 1
    parts += [_dot(a, b, row=row, biggest=biggest, early=stopped_early(row, record)) for a, b, row in dots]
    label = "students by how much faster they are and how much they lose"
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{label}">'
    return "".join([head, *parts, "</svg>"])


def _across(row: Trial, timed: bool) -> float:
    return row.times if timed and row.times is not None else row.bytes / MB


def _given(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _scale(values: Sequence[float], *, low: float, high: float) -> Callable[[float], float]:
    """From a figure to a place between two ends of the drawing, with a tenth of room on both sides."""
    least, most = min(values), max(values)
    room = 0.1 * (most - least) or 0.5
    least, most = least - room, most + room
    return lambda value: round(low + (high - low) * (value - least) / (most - least), 1)


def _frame(x: Callable[[float], float], y: Callable[[float], float], *, ends: tuple[list[float], list[float]]) -> str:
    """Both axes, and the least and largest figure on each."""
    bottom = HEIGHT - BOTTOM
    below = [
        f'<text class="tick middle" x="{x(value):g}" y="{bottom + 16}">{escape(number(value))}</text>'
        for value in sorted({min(ends[0]), max(ends[0])})
    ]
    beside = [
        f'<text class="tick end" x="{LEFT - 8}" y="{y(value) + 4:g}">{escape(f"{value:.2f}")}</text>'
        for value in sorted({min(ends[1]), max(ends[1])})
    ]
    return "".join([f'<path class="axis" d="M{LEFT},{TOP} V{bottom} H{WIDTH - RIGHT}"/>', *below, *beside])


def _titles(record: ShrinkRecord, timed: bool) -> str:
    unit = next((row.score.unit for row in record.trials if row.score is not None), "")
    across = f"times faster than fp32 ({record.basis})" if timed else "MB"
    bottom = f'<text class="title end" x="{WIDTH - RIGHT}" y="{HEIGHT - 8}">{escape(across)}</text>'
    return f'{bottom}<text class="title" x="{LEFT + 8}" y="16">{escape(f"{record.metric} lost, {unit}")}</text>'


def _bar(place: float, *, vertical: bool) -> str:
    ends = f"M{place:g},{TOP} V{HEIGHT - BOTTOM}" if vertical else f"M{LEFT},{place:g} H{WIDTH - RIGHT}"
    return f'<path class="limit" d="{ends}"/>'


def _dot(across: float, down: float, *, row: Trial, biggest: int, early: bool) -> str:
    size = max(SMALLEST, LARGEST * math.sqrt(row.bytes / biggest))
    kind = "chosen" if row.status == "chosen" else "front" if row.front else "other"
    kind += " early" * early
    told = escape(f"{row.name}, {number(row.bytes / MB)} MB, {row.status} after {row.steps} steps")
    circle = f'<circle class="dot {kind}" cx="{across:g}" cy="{down:g}" r="{size:.1f}"><title>{told}</title></circle>'
    return f'{circle}<text class="name" x="{across + size + 4:g}" y="{down + 4:g}">{escape(row.name)}</text>'
