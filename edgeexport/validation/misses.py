"""Misses: of candidates that all fail, which comes nearest, and by how much it misses what."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgeexport.records.verdict import LimitVerdict, Verdict


def nearest_miss(verdicts: Mapping[str, Verdict]) -> str:
    """Return one sentence: which candidate (name -> verdict) misses by least, on which limits, and by how much."""
    missed = {name: verdict for name, verdict in verdicts.items() if verdict.state == "fails"}
    if not missed:
        return "no candidate was built" if not verdicts else "no candidate fails a limit"

    def distance(name: str) -> tuple[int, float]:
        failing = [limit for limit in missed[name].limits if limit.state == "fails"]
        return len(failing), max(_excess(limit) for limit in failing)

    name = min(missed, key=distance)
    failing = [limit for limit in missed[name].limits if limit.state == "fails"]
    return f"nearest is {name}: " + "; ".join(_miss_text(limit) for limit in failing)


def _excess(limit: LimitVerdict) -> float:
    """By what share of the bar a failing limit misses it."""
    if limit.bar is None or limit.value is None:
        return math.inf
    return abs(limit.value - limit.bar) / abs(limit.bar) if limit.bar else limit.value


def _miss_text(limit: LimitVerdict) -> str:
    return f"{limit.called} fails, {limit.reason}"
