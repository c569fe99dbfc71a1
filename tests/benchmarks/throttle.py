"""Throttling: 1,000 simulated steady and 1,000 drifting traces, and two spinning processes for real."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgeexport.records.measurement import Measurement
from edgeexport.validation import statistics
from edgeexport.validation.launches import DRIFT_LIMIT
from edgeexport.validation.measure import PLANS, Plan, measure
from edgeexport.validation.rounds import quiet_ns
from tests.benchmarks.bar import Bar
from tests.benchmarks.load import spinning
from tests.benchmarks.planting import Model, Planting

TRACES = 1000
LAUNCHES, PIECES, IDLE_TRIES = 12, 12, 8
# Launch to launch, and of the pieces within one; every tenth piece is interrupted.
BETWEEN, WITHIN, INTERRUPTED = 0.015, 0.02, 0.1
SIGNS = ("throttled", "drifted", "other programs", "cores busy", "lie", "went one way")


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Simulate sentinels, then measure with and without spinning processes."""
    rng = np.random.default_rng(0)
    alarms = sum(_flagged(np.ones(2 * LAUNCHES), rng) for _ in range(TRACES))
    found = sum(_flagged(_drifting(kind % 3, rng), rng) for kind in range(TRACES))
    busy, tries = _measured(2), [_measured(0)]
    # Guests of a virtual machine's host are noticed too, and rightly: an idle machine is waited for.
    while _signs(tries[-1]) and len(tries) < IDLE_TRIES:
        tries.append(_measured(0))
    idle, flags, idle_flags = tries[-1], _signs(busy), _signs(tries[-1])
    figures = {
        "false_alarms": alarms / TRACES,
        "found": found / TRACES,
        "spinning": flags,
        "idle": [*idle.reasons, *idle.warnings],
        "idle_tries": len(tries),
    }
    return figures, {
        "false_alarms": Bar(alarms / TRACES, 0.01, "1,000 steady traces"),
        "found": Bar(
            found / TRACES, 0.99, "1,000 traces that climb, step, or heat up in each launch by 10 to 20 %", "min"
        ),
        "spinning": Bar(len(flags), 1, "two spinning processes are noticed", "min"),
        "idle": Bar(len(idle_flags), 0, "nothing is noticed on an idle machine"),
    }


def _signs(found: Measurement) -> list[str]:
    """What a measurement says that only a busy or hot machine gives cause to.

    The load average is left out: it tells of the minute before.
    """
    told = (text for text in (*found.reasons, *found.warnings) if "load average" not in text)
    return [text for text in told if any(sign in text for sign in SIGNS)]


def _drifting(kind: int, rng: np.random.Generator) -> Any:
    """A machine that slows down by 10 to 20 %: climbing, at one step, or within each launch and cooling between."""
    size, moments = rng.uniform(0.10, 0.20), np.arange(2 * LAUNCHES)
    if kind == 0:
        return 1 + 1.25 * size * moments / moments[-1]
    return 1 + size * (moments >= rng.integers(6, 18)) if kind == 1 else 1 + size * (moments % 2)


def _flagged(shape: Any, rng: np.random.Generator) -> bool:
    """Whether the rule calls a simulated sentinel throttled."""
    levels = shape * (1 + BETWEEN * rng.standard_normal(shape.shape))
    pieces = levels[:, None] * (1 + np.abs(WITHIN * rng.standard_normal((len(levels), PIECES))))
    pieces *= np.where(rng.random(pieces.shape) < INTERRUPTED, rng.uniform(1.5, 4.0, pieces.shape), 1.0)
    series = [quiet_ns(row) for row in pieces]
    drift = statistics.sentinel_drift(series[::2], series[1::2])
    return drift.shown and drift.share > DRIFT_LIMIT


def _measured(spinners: int) -> Measurement:
    PLANS["brief"] = Plan(6, 10, 0.05, 64, 0.2, cap_seconds=30, most=6, memory_launches=1)
    with tempfile.TemporaryDirectory() as name, spinning(spinners, favour=True):
        model = Model.write(Path(name))
        return measure([model.subject("m")], device=Planting(Path(name)))[0][0]
