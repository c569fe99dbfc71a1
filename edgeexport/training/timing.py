"""What the steps of a training take, timed once, and how many of them fit into a budget.

The rule: timing runs a few steps and undoes them; the module, its statistics and the random state stay as they are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from edgeexport import ranks
from edgeexport.training.batches import Batches
from edgeexport.training.keeping import LOOKS, copied, part_of, put, tensors_of
from edgeexport.training.samples import TrainingData
from edgeexport.training.stepping import Stepper

TIMING_STEPS = 8
# Looks take of a budget what they take, but leave this share of it to steps.
LEAST_LEFT = 0.1


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a training's parts.

    new: a step on a batch that was not there before. later: a step on one that comes again, see `Training.views`.
    different: how many batches come before the first one comes again. looks: all that are taken of held-out samples.
    """

    new: float
    later: float
    different: float
    looks: float = 0.0

    def seconds(self, steps: int) -> float:
        """Return how long a training of so many steps takes."""
        new = min(steps, self.different)
        return self.looks * min(steps, LOOKS) / LOOKS + new * self.new + (steps - new) * self.later

    def steps_in(self, seconds: float) -> int:
        """Return how many steps fit into a training of so many seconds: one at least."""
        left = max(seconds - self.looks, LEAST_LEFT * seconds)
        new = min(left / self.new, self.different)
        return max(1, int(new + max(0.0, left - new * self.new) / self.later))


def step_times(stepper: Stepper, batches: Batches, *, held_out: TrainingData | None) -> StepTimes:
    """Return what steps take here; under `torchrun`, what they take process 0, so that all agree."""
    before = [copied(tensors_of(module)) for module in stepper.trained]
    trial = stepper.anew(folder=batches.data.folder)
    try:
        first = _middle_seconds(trial, batches)
        again = first if batches.views is None else _middle_seconds(trial, batches)
    finally:
        for module, tensors in zip(stepper.trained, before, strict=True):
            put(module, tensors)
    remembered = getattr(stepper.loss, "remembered", None)
    share = 1.0 if remembered is None else remembered(batches.different)
    looks = 0.0 if held_out is None else LOOKS * _look_seconds(stepper, held_out)
    return ranks.agreed(StepTimes(first, share * again + (1 - share) * first, batches.different, looks))


def _middle_seconds(trial: Stepper, batches: Batches) -> float:
    """Return the median time of a few steps after the first one. Batches seen before may be cheaper: see `views`."""
    seconds: list[float] = []
    for number in range(TIMING_STEPS):
        start = time.monotonic()
        trial.step(batches, number, rate=0.0)
        seconds.append(time.monotonic() - start)
    return max(sorted(seconds[1:])[len(seconds[1:]) // 2], 1e-6)


def _look_seconds(stepper: Stepper, held_out: TrainingData) -> float:
    """Return how long it takes to look at the samples held out, by the time of a first batch of them."""
    few = part_of(held_out, slice(stepper.settings.batch_size))
    stepper.evaluate(few)
    start = time.monotonic()
    stepper.evaluate(few)
    return (time.monotonic() - start) * len(held_out) / len(few)
