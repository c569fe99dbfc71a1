"""How long files take beside the first of them, where a measurement that is not valid is made again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import edgeexport
from edgeexport.records.measurement import Interval, Mode

TRIES = 3


def ratios(
    baseline: Path, others: Sequence[Path], *, samples: Sequence[Any], mode: Mode = "brief"
) -> list[Interval | None]:
    """Return each file's time as a share of the baseline's: one thread, interleaved; None if never valid.

    What was not valid is measured again, beside the baseline, TRIES times at most: whatever the figures were.
    """
    found: list[Interval | None] = [None] * len(others)
    for _ in range(TRIES):
        missing = [index for index, ratio in enumerate(found) if ratio is None]
        if not missing:
            break
        files = [baseline, *(others[index] for index in missing)]
        measured, compared = edgeexport.measure(files, samples=samples, threads=1, mode=mode, progress=_say)
        for file, one in zip(files, measured, strict=True):
            if not one.valid:
                _say(f"{file.name} is not measured validly: {'; '.join(one.reasons)}", None)
        if not measured[0].valid:
            continue
        left = iter(compared)
        for index, one in zip(missing, measured[1:], strict=True):
            found[index] = next(left).ratio if one.valid else None
    return found


def speed_up(slow: Path, fast: Path, *, samples: Sequence[Any]) -> float:
    """Return how many times faster one file runs than another; not a number if that could not be measured."""
    (ratio,) = ratios(slow, [fast], samples=samples, mode="quick")
    return 1 / ratio.value if ratio else float("nan")


def _say(text: str, _: float | None) -> None:
    sys.stderr.write(f"{text}\n")
