"""Which architectures can be pruned by 30 %: all of tests/compression/architectures.py through the whole check."""

from __future__ import annotations

import sys
from typing import Any

from tests.benchmarks.bar import Bar
from tests.compression.architectures import ARCHITECTURES
from tests.compression.coverage import cover

LEAST = 25


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Prune, compare with the zero-masked network, export, run; one outcome for each architecture."""
    outcomes = {}
    for name in ARCHITECTURES:
        outcomes[name] = cover(name).outcome
        sys.stderr.write(f"{name}: {outcomes[name]}\n")
    pruned = sum(outcome == "pruned" for outcome in outcomes.values())
    wrong = sum(outcome not in {"pruned", "refused"} for outcome in outcomes.values())
    bars = {
        "pruned": Bar(pruned, LEAST, "architectures pruned by 30 %", "min"),
        "wrong": Bar(wrong, 0, "neither pruned nor refused with a reason"),
    }
    return {"outcomes": outcomes}, bars
