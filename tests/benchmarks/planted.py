"""Planted slow-downs of 5 % and 10 %: a busy loop in the model's session, and how often `measure` says "slower"."""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from edgeexport.validation.measure import measure
from tests.benchmarks.bar import Bar
from tests.benchmarks.load import favoured
from tests.benchmarks.part import part_of
from tests.benchmarks.planting import Forking, Model, short_launches

TRIALS = 40
SHARES = {"5": 0.05, "10": 0.10}
# The loop's own time is counted in each launch. It costs more than that, since the next inference finds colder caches:
# the median ratios tell how much. What they measure must not be less than what was planted.
NEAR, LESS = 0.005, 0.01
# On two quiet cores it takes some minutes; a machine with busy neighbours gets more, and no fewer trials.
SECONDS = 2400.0


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Measure a model beside itself with 0, 5 and 10 % planted, many times."""
    short_launches()
    niceness = favoured()
    found: dict[str, list[str]] = {name: [] for name in SHARES}
    ratios: dict[str, list[float]] = {name: [] for name in SHARES}
    invalid, began = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as name, closing(Forking(Path(name))) as device:
        model = Model.write(Path(name))
        trials = part_of(range(TRIALS))
        for trial in trials:
            if time.monotonic() - began > SECONDS:
                break
            subjects = [
                model.subject("base"),
                *(model.subject(key, planted_share=part) for key, part in SHARES.items()),
            ]
            measured, compared = measure(subjects, device=device, seed=trial)
            invalid += sum(not each.valid for each in measured)
            claims = {measured[1 + index].label: each for index, each in enumerate(compared)}
            for key in SHARES:
                found[key].append(claims[key].claim if key in claims else "invalid")
                ratios[key] += [claims[key].ratio.value] if key in claims else []
            why = sorted({reason for each in measured for reason in each.reasons})
            sys.stderr.write(f"trial {trial + 1}: {[values[-1] for values in found.values()]} {why or ''}\n")
    shares = {key: values.count("slower") / len(values) for key, values in found.items()}
    figures: dict[str, Any] = {"invalid_measurements": invalid, "niceness": niceness}
    figures |= {f"found_{key}": shares[key] for key in SHARES}
    figures |= {f"median_ratio_{key}": statistics.median(values or [math.nan]) for key, values in ratios.items()}
    figures |= {
        f"planted_{key}": statistics.median(device.planted.get(part, [math.nan])) for key, part in SHARES.items()
    }
    figures |= {"trials": len(found["5"]), "seconds": time.monotonic() - began}
    return figures, {
        "found_5": Bar(shares["5"], 0.90, "a slow-down of 5 % is found 9 times in 10", "min"),
        "found_10": Bar(shares["10"], 0.99, "one of 10 % 99 times in 100", "min"),
        "planted_5": Bar(abs(figures["planted_5"] - 0.05), NEAR, "what was planted was 5 %"),
        "planted_10": Bar(abs(figures["planted_10"] - 0.10), NEAR, "and 10 %"),
        "told_5": Bar(figures["median_ratio_5"], 1.05 - LESS, "no less is measured than was planted", "min"),
        "told_10": Bar(figures["median_ratio_10"], 1.10 - LESS, "no less is measured than was planted", "min"),
        "trials": Bar(len(found["5"]), len(trials), "every trial was made", "min"),
    }
