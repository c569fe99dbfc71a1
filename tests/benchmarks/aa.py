"""A/A: a model beside itself 200 times while other programs come and go; how often a difference is claimed."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgeexport.validation.measure import measure
from tests.benchmarks.bar import Bar
from tests.benchmarks.load import changing_load
from tests.benchmarks.planting import Model, Planting, short_launches

COMPARISONS, TOGETHER = 200, 5
SECONDS = 470.0


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Compare copies of one subject, five to a measurement, until there are 200 comparisons."""
    short_launches(most=8)
    claims: list[str] = []
    began, invalid, seed = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as name, changing_load(0, most=3):
        device, model = Planting(Path(name)), Model.write(Path(name))
        while len(claims) < COMPARISONS and time.monotonic() - began < SECONDS:
            subjects = [model.subject(f"copy {index}") for index in range(TOGETHER)]
            measured, compared = measure(subjects, device=device, seed=seed)
            seed += 1
            invalid += TOGETHER - 1 - len(compared)
            claims += [each.claim for each in compared] + ["invalid"] * (TOGETHER - 1 - len(compared))
            sys.stderr.write(f"{len(claims)} comparisons: {claims[-(TOGETHER - 1) :]}\n")
            del measured
    wrong = sum(claim in {"faster", "slower"} for claim in claims)
    figures = {"claimed": wrong, "comparisons": len(claims), "invalid": invalid, "seconds": time.monotonic() - began}
    figures["share_of_valid"] = wrong / max(1, len(claims) - invalid)
    return figures, {
        "claimed": Bar(figures["share_of_valid"], 0.05, "a model against itself is seldom faster or slower"),
        "comparisons": Bar(len(claims), COMPARISONS, "of so many comparisons, within 8 minutes", "min"),
    }
