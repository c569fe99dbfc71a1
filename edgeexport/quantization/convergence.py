"""Convergence: would fewer samples have given the same ranges, and would more give others.

The rule: one pass over the samples; the ranges of every prefix are those that calibrating on it alone would give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from pathlib import Path

from edgeexport import graph
from edgeexport.errors import DataError
from edgeexport.progress import Progress, silent
from edgeexport.quantization.calibrate import Collection, Samples, calibration_points
from edgeexport.quantization.room import Room
from edgeexport.quantization.seen import Seen
from edgeexport.quantization.unfinished import Unfinished
from edgeexport.records.data_check import Convergence, Prefix
from edgeexport.records.ranges import Range

# Ranges this close to the final ones, in parts of their width, count as the same: on average, and the furthest.
TOLERANCE, WORST = 0.02, 0.2
_LEAST = 2


def convergence(
    model_path: Path, samples: Samples, *, method: str = "minmax", progress: Progress = silent
) -> Convergence:
    """Compare the ranges after half of the samples, a quarter, and so on, with those after all of them.

    Raises DataError for fewer than four samples, or a number that is not known beforehand.
    """
    if not isinstance(samples.feeds, Sized) or len(samples.feeds) < 2 * _LEAST:
        raise DataError(f"convergence needs a list of at least {2 * _LEAST} samples")
    total = len(samples.feeds)
    counts = [count for count in (total >> shift for shift in range(1, 7)) if count >= _LEAST]
    at: dict[int, dict[str, Range]] = {count: {} for count in counts}

    def told(count: int, group: Mapping[str, Seen]) -> None:
        if count in at:
            at[count] |= {name: item.range(method) for name, item in group.items() if item.low <= item.high}

    model = graph.load(model_path)
    room = Room(model, calibration_points(model), None)
    nothing = Unfinished(None, "", method != "minmax")
    seen = Collection(room, samples, nothing, progress, told).run()
    final = {name: item.range(method) for name, item in seen.items() if item.low <= item.high}
    prefixes = tuple(_prefix(count, at[count], final=final) for count in counts)
    settled = [prefix.count for index, prefix in enumerate(prefixes) if _hold(prefixes[: index + 1])]
    return Convergence(method, total, TOLERANCE, prefixes, min(settled, default=None))


def _hold(prefixes: tuple[Prefix, ...]) -> bool:
    return all(prefix.change <= TOLERANCE and prefix.worst_change <= WORST for prefix in prefixes)


def _prefix(count: int, ranges: Mapping[str, Range], *, final: Mapping[str, Range]) -> Prefix:
    """Say how far ranges are from the final ones; a tensor without one yet is all of its width away."""
    changes = {name: _change(ranges.get(name), item) for name, item in final.items()}
    worst = max(changes, key=lambda name: changes[name])
    return Prefix(count, sum(changes.values()) / len(changes), worst, changes[worst])


def _change(early: Range | None, final: Range) -> float:
    width = final.high - final.low
    if early is None or not width:
        return 0.0 if early == final else 1.0
    return max(abs(early.low - final.low), abs(early.high - final.high)) / width
