"""A/A: a model beside itself 200 times while other programs come and go; how often a difference is claimed."""

from __future__ import annotations

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from edgeexport.validation.measure import measure
from tests.benchmarks.bar import Bar
from tests.benchmarks.load import changing_load
from tests.benchmarks.part import part_of
from tests.benchmarks.planting import Forking, Model, short_launches

COMPARISONS, TOGETHER, AT_ONCE = 200, 5, 2
# Two measurements run at once and are each other's load.
SECONDS = 1800.0


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Compare copies of one subject, five to a measurement, until there are 200 comparisons."""
    short_launches(most=24)
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as name,
        closing(Forking(Path(name), favour=False)) as device,
        changing_load(0, most=2),
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        model = Model.write(Path(name))

        def claims_of(seed: int) -> list[str]:
            if time.monotonic() - began > SECONDS:
                return []
            subjects = [model.subject(f"copy {index}") for index in range(TOGETHER)]
            measured, compared = measure(subjects, device=device, seed=seed)
            why = sorted({reason for each in measured for reason in each.reasons})
            sys.stderr.write(f"measurement {seed + 1}: {[each.claim for each in compared]} {why or ''}\n")
            return [each.claim for each in compared] + ["invalid"] * (TOGETHER - 1 - len(compared))

        seeds = part_of(range(COMPARISONS // (TOGETHER - 1)))
        claims = [claim for found in pool.map(claims_of, seeds) for claim in found]
    invalid = claims.count("invalid")
    wrong = sum(claim in {"faster", "slower"} for claim in claims)
    figures = {"claimed": wrong, "comparisons": len(claims), "invalid": invalid, "seconds": time.monotonic() - began}
    figures["share_of_valid"] = wrong / max(1, len(claims) - invalid)
    return figures, {
        "claimed": Bar(figures["share_of_valid"], 0.05, "a model against itself is seldom faster or slower"),
        "comparisons": Bar(len(claims), len(seeds) * (TOGETHER - 1), "of so many comparisons", "min"),
        "valid": Bar(len(claims) - invalid, 0.25 * len(claims), "a quarter of them valid: else it shows little", "min"),
    }
