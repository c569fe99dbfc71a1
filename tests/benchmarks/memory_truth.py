"""Memory: known allocations of 10 to 500 MB, measured by a child of a fat parent."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgeexport.validation.measure import measure
from tests.benchmarks.bar import Bar
from tests.benchmarks.planting import Model, Planting, short_launches

SIZES_MB = (10, 20, 50, 100, 200, 500)
BALLAST_MB, REPEATS = 700, 3
# What all hold: more than the half megabyte that loading a model needs for a moment, which is a peak of its own.
HELD_MB = 5


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Compare the peak with an allocation to the peak without it, both above the same small one."""
    short_launches(launches=1, most=1, memory_launches=3)
    ballast = np.ones(BALLAST_MB * 1_000_000, np.uint8)
    with tempfile.TemporaryDirectory() as name:
        device, model = Planting(Path(name)), Model.write(Path(name))
        subjects = [model.subject(str(size), planted_bytes=(HELD_MB + size) * 1_000_000) for size in (0, *SIZES_MB)]
        peaks: dict[str, list[int]] = {subject.label: [] for subject in subjects}
        for repeat in range(REPEATS):
            sys.stderr.write(f"repeat {repeat + 1} of {REPEATS}\n")
            for each in measure(subjects, device=device, seed=repeat)[0]:
                peaks[each.label] += [each.memory.peak_bytes] if each.memory else []
    base = statistics.median(peaks["0"])
    seen = {size: (statistics.median(peaks[str(size)]) - base) / 1e6 for size in SIZES_MB}
    errors = {size: abs(seen[size] / size - 1) for size in SIZES_MB}
    figures = {"parent_mb": int(ballast.nbytes / 1e6), "without_mb": base / 1e6}
    figures |= {f"seen_of_{size}_mb": seen[size] for size in SIZES_MB}
    return figures, {"worst_error": Bar(max(errors.values()), 0.02, "known allocations are seen within 2 %")}
