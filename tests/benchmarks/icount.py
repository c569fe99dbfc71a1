"""How well an instruction count repeats: five counted inferences in each of two processes, on every kind of file."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeexport.devices import emulated
from edgeexport.devices.emulated.counts import WARM_UPS
from edgeexport.records.emulation import InstructionCounts
from edgeexport.validation.measure import Subject, run_on_device
from tests.benchmarks.bar import Bar
from tests.benchmarks.emulated import cases

TIMES, PROCESSES = 5, 2
PRESET = "armv8.2"
LARGEST = 0.003


def counted(subject: Subject, folder: Path) -> InstructionCounts:
    """Count one sample's inference TIMES times in a fresh process."""
    machine = emulated.counting(PRESET)
    run_on_device(replace(subject, inputs=[subject.samples()[0]] * (WARM_UPS + TIMES)), device=machine, folder=folder)
    assert machine.counts is not None
    return machine.counts


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Return every file's count, and the largest deviation of any of the counts from the least of both processes."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in list(cases(Path(folder))):
            found = [counted(case.subject, Path(folder) / f"{case.name} {turn}") for turn in range(PROCESSES)]
            least = min(each.total for each in found)
            most = max(each.total * (1 + each.deviation) for each in found)
            exact = {(each.multiply_accumulate, each.dot_product) for each in found}
            figures[case.name] = {
                "instructions": [each.total for each in found],
                "deviation": most / least - 1,
                "between_processes": max(each.total for each in found) / least - 1,
                "multiply_accumulates_and_dot_products_repeat": len(exact) == 1,
            }
    worst = max(each["deviation"] for each in figures.values())
    least_of = max(each["between_processes"] for each in figures.values())
    return figures, {
        "deviation": Bar(worst, LARGEST, "5 counts, two processes each: every single count"),
        "deviation of the least": Bar(least_of, LARGEST, "the figure that is reported, between two processes"),
    }
