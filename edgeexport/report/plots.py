"""The ladder as inline SVG: one line per rung, one panel per figure. No library, no script; colours are the page's.

The rule: every text goes through `html.escape`, numbers are rounded, so the same rows always give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from edgeexport.report.figures import Row, Span, latency_text, memory_text, number, ratio_text

LABEL, PANEL, GAP, LINE, HEAD, FOOT = 208, 168, 26, 30, 34, 24
LONGEST_LABEL = 27


@dataclass(frozen=True)
class Panel:
    """One figure of every rung. dots: drawn as a point on a cut axis (a score) and not as a bar from zero."""

    title: str
    value: Callable[[Row], Span | None]
    text: Callable[[Row], str]
    dots: bool = False


def panels(metric: str) -> tuple[Panel, ...]:
    """Return the four panels of a ladder."""
    return (
        Panel(metric, lambda row: row.score, _score, dots=True),
        Panel("size, MB", lambda row: _flat(row.size_mb), lambda row: number(row.size_mb) + ratio_text(row.size_ratio)),
        Panel("latency, ms", lambda row: row.latency, latency_text),
        Panel("peak memory, MB", lambda row: _flat(row.memory_mb), memory_text),
    )


def ladder_plot(rows: Sequence[Row], *, metric: str) -> str:
    """Return the SVG of a ladder: rungs from top (source) to bottom, panels from left to right."""
    shown = panels(metric)
    width = LABEL + len(shown) * (PANEL + GAP)
    height = HEAD + len(rows) * LINE + FOOT
    label = f"{escape(metric)}, size, latency and memory of each rung"
    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{label}">']
    parts += [_label(row, index) for index, row in enumerate(rows)]
    for place, panel in enumerate(shown):
        parts += _panel(panel, rows, left=LABEL + place * (PANEL + GAP))
    return "".join([*parts, "</svg>"])


def _flat(value: float | None) -> Span | None:
    return None if value is None else Span(value, value, value)


def _score(row: Row) -> str:
    return "–" if row.score is None else number(row.score.value, 4)


def _middle(index: int) -> float:
    return HEAD + index * LINE + LINE / 2


def _css(row: Row) -> str:
    return row.rung.status.replace(" ", "-")


def _label(row: Row, index: int) -> str:
    name = row.rung.name
    short = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
    y = _middle(index)
    stripe = f'<rect class="stripe" x="0" y="{y - LINE / 2:g}" width="100%" height="{LINE}"/>' if index % 2 else ""
    title = f"<title>{escape(name)}: {escape(row.rung.status)}</title>"
    mark = f'<circle class="mark" cx="9" cy="{y:g}" r="4.5"/>'
    text = f'<text class="name" x="22" y="{y + 4:g}">{escape(short)}</text>'
    return f'{stripe}<g class="{_css(row)}">{title}{mark}{text}</g>'


def _panel(panel: Panel, rows: Sequence[Row], *, left: int) -> list[str]:
    spans = [panel.value(row) for row in rows]
    known = [span for span in spans if span is not None]
    low, high = _axis(known, cut=panel.dots)
    room = PANEL - 72  # the figure's text stands right of the longest bar
    bottom = HEAD + len(rows) * LINE

    def x(value: float) -> float:
        share = (value - low) / (high - low)
        return round(left + room * min(1.0, max(0.0, share)), 1)

    parts = [
        f'<text class="title" x="{left}" y="18">{escape(panel.title)}</text>',
        f'<line class="axis" x1="{left}" y1="{HEAD - 6}" x2="{left}" y2="{bottom}"/>',
    ]
    for index, (row, span) in enumerate(zip(rows, spans, strict=True)):
        parts.append(_figure(panel, row, span=span, x=x, place=(left, _middle(index))))
    if known and panel.dots:
        parts.append(f'<text class="tick" x="{left}" y="{bottom + 15}">{escape(number(low))}</text>')
        parts.append(f'<text class="tick end" x="{left + room}" y="{bottom + 15}">{escape(number(high))}</text>')
    elif known:
        parts.append(f'<text class="tick" x="{left}" y="{bottom + 15}">0</text>')
        parts.append(f'<text class="tick end" x="{left + room}" y="{bottom + 15}">{escape(number(high, 2))}</text>')
    return parts


PERCENT = 100.0  # scores in points end here; an axis that goes beyond would promise more


def _axis(known: Sequence[Span], *, cut: bool) -> tuple[float, float]:
    """Return the ends of an axis: from zero for bars, round the values for dots."""
    finite = [value for span in known for value in (span.low, span.value, span.high) if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    if not cut:
        return 0.0, max(*finite, 1e-12)
    low, high = min(finite), max(finite)
    room = 0.1 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room if high + room <= PERCENT or high > PERCENT else PERCENT


def _figure(panel: Panel, row: Row, *, span: Span | None, x: Callable[[float], float], place: tuple[int, float]) -> str:
    """One rung in one panel: bar or dot, its interval, and the figure as text."""
    left, y = place
    if span is None:
        return f'<text class="none" x="{left + 6}" y="{y + 4:g}">{escape(panel.text(row))}</text>'
    end = x(span.value)
    if panel.dots:
        shape = f'<circle class="dot" cx="{end:g}" cy="{y:g}" r="4.5"/>'
    else:
        shape = f'<rect class="bar" x="{left}" y="{y - 7:g}" width="{max(end - left, 1):g}" height="14" rx="2"/>'
    low, high = x(span.low), x(span.high)
    interval = f'<line class="interval" x1="{low:g}" y1="{y:g}" x2="{high:g}" y2="{y:g}"/>' if high > low else ""
    text = f'<text class="figure" x="{max(end, high) + 7:g}" y="{y + 4:g}">{escape(panel.text(row))}</text>'
    inner = interval + shape if panel.dots else shape + interval
    return f'<g class="{_css(row)}">{inner}{text}</g>'
