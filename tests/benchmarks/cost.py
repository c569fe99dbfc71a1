"""What a training step costs in CPU seconds, so that two trainings can be given the same time on any machine.

The rule: costs are taken in turn, on the same samples, and kept in a file: a benchmark that goes on after a kill plans
the very same trainings.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeexport.training import TrainingData
from edgeexport.workspace import publish
from tests.benchmarks.kept import kept_file

ROUNDS, STEPS = 4, 4

Trainings = Mapping[str, Callable[[TrainingData], object]]


def step_costs(
    folder: Path, trainings: Trainings, *, data: TrainingData, batch_size: int, key: Any
) -> dict[str, float]:
    """Return the CPU seconds of one step of each training: the least of ROUNDS of STEPS steps each, taken in turn.

    trainings: name -> a function that trains on what it is given for one epoch. folder: where they are
    remembered. key: what the trainings depend on.
    """
    kept = kept_file(folder, "costs", key=[sorted(trainings), batch_size, key])
    if kept.is_file():
        known: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
        return known
    sys.stderr.write(f"timing the steps of {', '.join(trainings)}\n")
    spent: dict[str, list[float]] = {name: [] for name in trainings}
    for number in range(ROUNDS + 1):
        few = _first(data, batch_size * (STEPS if number else 1))
        for name, training in trainings.items():
            began = time.process_time()
            training(few)
            spent[name].append(time.process_time() - began)
    costs = {name: min(seconds[1:]) / STEPS for name, seconds in spent.items()}
    publish(kept, json.dumps(costs).encode())
    return costs


def _first(data: TrainingData, count: int) -> TrainingData:
    labels = None if data.labels is None else data.labels[:count]
    return TrainingData(tuple(array[:count] for array in data.arrays), labels, data.augment, data.folder)
