"""Plots of a bench as inline SVG: launches side by side, latency over time with the machine's state, bars.

The rule: every text goes through `html.escape`, numbers are rounded, so the same record always gives the same bytes. No
sample is left out of a box; points are thinned evenly, and the outliers of every stretch are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from edgeexport.report.figures import number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgeexport.validation.launches import Launch

WIDTH, LEFT, RIGHT, LINE, HEAD = 940, 150, 90, 24, 26
TIME_HEIGHT, STRIP_HEIGHT = 190, 56
MOST_POINTS = 900
# An axis ends at so many times the upper quartile: a launch that was interrupted would press the others into a line.
FAR = 3.0


@dataclass(frozen=True)
class Scale:
    """From values to places between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a value, kept within the ends."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + (self.end - self.start) * min(1.0, max(0.0, share)), 1)


def launches_plot(launches: Sequence[Launch]) -> str:
    """Return one line for each launch: its box (quartiles), median, 1st to 99th percentile, and how many go beyond."""
    import numpy as np

    quantiles = [np.quantile(launch.times_ms, [0.01, 0.25, 0.5, 0.75, 0.99]) for launch in launches]
    low, far = min(row[0] for row in quantiles), max(row[4] for row in quantiles)
    x = Scale(low, min(far, FAR * max(row[3] for row in quantiles)), LEFT, WIDTH - RIGHT)
    height = HEAD + len(launches) * LINE + 22
    parts = [_svg(height, "distribution of every launch"), _text("ms of one inference", x=LEFT, y=14, css="title")]
    for index, (launch, row) in enumerate(zip(launches, quantiles, strict=True)):
        y = HEAD + index * LINE + LINE / 2
        places = [x(value) for value in row]
        beyond = int((launch.times_ms > row[4]).sum())
        aside = " set aside" if launch.set_aside else ""
        width = max(1.0, round(places[3] - places[1], 1))
        parts += [
            f'<g class="launch{" aside" if launch.set_aside else ""}">',
            _text(f"launch {index + 1}{aside}", x=0, y=y + 4),
            f'<line class="axis" x1="{places[0]}" y1="{y}" x2="{places[4]}" y2="{y}"/>',
            f'<rect class="box" x="{places[1]}" y="{y - 7}" width="{width}" height="14"/>',
            f'<line class="median" x1="{places[2]}" y1="{y - 8}" x2="{places[2]}" y2="{y + 8}"/>',
            _text(f"{number(float(row[2]), 4)}  +{beyond}", x=WIDTH - RIGHT + 8, y=y + 4, css="tick"),
            "</g>",
        ]
    return "".join([*parts, *_ticks(x, height - 6, cut=far > x.high), "</svg>"])


def time_plot(launches: Sequence[Launch]) -> str:
    """Return latency over the time of the whole measurement, and below it temperature and frequency where known."""
    import numpy as np

    series = _timeline(launches)
    every = np.concatenate([times for _, times in series])
    end = max(float(seconds[-1]) for seconds, _ in series) or 1.0
    x = Scale(0.0, end, LEFT, WIDTH - RIGHT)
    quarter, far = (float(value) for value in np.quantile(every, [0.75, 0.995]))
    y = Scale(float(every.min()), min(far, FAR * quarter), HEAD + TIME_HEIGHT - 10, HEAD)
    strips = [strip for strip in (_temperature(launches), _frequency(launches)) if strip is not None]
    height = HEAD + TIME_HEIGHT + len(strips) * STRIP_HEIGHT + 22
    parts = [_svg(height, "latency over time"), _text("ms of one inference, by seconds", x=LEFT, y=14, css="title")]
    for launch, (seconds, times) in zip(launches, series, strict=True):
        css = "dot aside" if launch.set_aside else "dot"
        chosen = _thinned(times, MOST_POINTS // len(launches))
        parts += [f'<circle class="{css}" cx="{x(seconds[i])}" cy="{y(times[i])}" r="1.6"/>' for i in chosen]
    parts += [_text(number(y.low), x=LEFT - 8, y=y.start + 4, css="tick end")]
    parts += [_text(f"≥ {number(y.high)}", x=LEFT - 8, y=y.end + 4, css="tick end")]
    starts = [float(seconds[0]) for seconds, _ in series]
    for place, (title, values) in enumerate(strips):
        parts += _strip(title, values, x=x, starts=starts, top=HEAD + TIME_HEIGHT + place * STRIP_HEIGHT)
    return "".join([*parts, *_ticks(x, height - 6), "</svg>"])


def bars_plot(rows: Sequence[tuple[str, float, str]], *, title: str) -> str:
    """Return bars from zero: (name, value, text at its end)."""
    x = Scale(0.0, max((value for _, value, _ in rows), default=1.0), LEFT + 120, WIDTH - RIGHT - 90)
    parts = [_svg(HEAD + len(rows) * LINE + 6, title), _text(title, x=0, y=14, css="title")]
    for index, (name, value, text) in enumerate(rows):
        y = HEAD + index * LINE + LINE / 2
        short = name if len(name) <= 38 else name[:37] + "…"
        width = max(1.0, round(x(value) - x.start, 1))
        parts += [
            f"<g><title>{escape(name)}</title>{_text(short, x=0, y=y + 4)}</g>",
            f'<rect class="box" x="{x.start}" y="{y - 7}" width="{width}" height="14"/>',
            _text(text, x=x(value) + 8, y=y + 4, css="tick"),
        ]
    return "".join([*parts, "</svg>"])


def _svg(height: float, label: str) -> str:
    about = f'role="img" aria-label="{escape(label)}"'
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" {about}>'


def _text(text: str, *, x: float, y: float, css: str = "name") -> str:
    return f'<text class="{css}" x="{x:g}" y="{y:g}">{escape(text)}</text>'


def _ticks(x: Scale, y: float, *, cut: bool = False) -> list[str]:
    """Values along an axis; `cut`: what is beyond its end is drawn there."""
    values = [x.low + (x.high - x.low) * share for share in (0.0, 0.5, 1.0)]
    texts = [number(value) for value in values]
    texts[-1] = f"≥ {texts[-1]}" if cut else texts[-1]
    return [_text(text, x=x(value), y=y, css="tick middle") for text, value in zip(texts, values, strict=True)]


def _timeline(launches: Sequence[Launch]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """(seconds, milliseconds) of every iteration of each launch; launches of older programs follow each other."""
    import numpy as np

    found, after = [], 0.0
    first = launches[0].timed.began_ns or 0
    for launch in launches:
        start = after if launch.timed.began_ns is None else (launch.timed.began_ns - first) / 1e9
        seconds = start + np.cumsum(launch.times_ms) / 1e3
        after = float(seconds[-1])
        found.append((seconds, launch.times_ms))
    return found


def _thinned(times: NDArray[Any], most: int) -> list[int]:
    """Indices of the slowest of every stretch and of one in its middle, so that no outlier vanishes."""
    import numpy as np

    if len(times) <= most:
        return list(range(len(times)))
    stretches = np.array_split(np.arange(len(times)), max(1, most // 2))
    picked = {int(part[np.argmax(times[part])]) for part in stretches} | {
        int(part[len(part) // 2]) for part in stretches
    }
    return sorted(picked)


Strip = tuple[str, list[float]]


def _temperature(launches: Sequence[Launch]) -> Strip | None:
    """The hottest sensor after each launch."""
    values = [max(launch.environment.after.temperatures_c.values(), default=None) for launch in launches]
    known = [value for value in values if value is not None]
    return ("hottest sensor, °C", known) if len(known) == len(launches) else None


def _frequency(launches: Sequence[Launch]) -> Strip | None:
    """The fastest processor's clock after each launch."""
    values = [max(launch.environment.after.frequencies_khz, default=None) for launch in launches]
    known = [value / 1e6 for value in values if value is not None]
    return ("fastest core, GHz", known) if len(known) == len(launches) else None


def _strip(
    title: str, values: Sequence[float], *, x: Callable[[float], float], starts: Sequence[float], top: float
) -> list[str]:
    """A line of one figure at the launches."""
    y = Scale(min(values), max(values), top + STRIP_HEIGHT - 12, top + 8)
    points = " ".join(f"{x(start)},{y(value)}" for start, value in zip(starts, values, strict=True))
    ends = [_text(number(value), x=LEFT - 8, y=y(value) + 4, css="tick end") for value in sorted({y.low, y.high})]
    return [_text(title, x=0, y=top + 12, css="tick"), f'<polyline class="strip" points="{points}"/>', *ends]
