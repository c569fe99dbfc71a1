"""The one trainer, used wherever weights are learnt: training, distilling, retraining after pruning.

The rule: the same module, data, settings, machine and thread count give bit-identical weights, whether or not the
training was killed in between. Everything random comes from `settings.seed`, no global state is left changed, and wall
time decides at most the number of steps, once.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import ranks
from edgeexport.data import UserCode
from edgeexport.errors import RecipeError, StepFailed
from edgeexport.progress import Progress, silent
from edgeexport.records.training import HOW_LONG, Training, TrainingRecord
from edgeexport.training.batches import Batches, batches_of
from edgeexport.training.keeping import Average, Best, copied, hold_out, is_look, put, tensors_of
from edgeexport.training.losses import Loss, guarded
from edgeexport.training.optimizers import one_cycle
from edgeexport.training.samples import TrainingData
from edgeexport.training.stepping import Stepper, stepping
from edgeexport.training.timing import StepTimes, step_times
from edgeexport.training.unfinished import Unfinished, training_key

if TYPE_CHECKING:
    import torch


def train(
    module: torch.nn.Module,
    data: TrainingData,
    *,
    loss: Loss,
    settings: Training,
    progress: Progress = silent,
    state: Path | None = None,
) -> TrainingRecord:
    """Train `module` in place and leave it in eval mode.

    loss: (outputs, batch) -> scalar tensor; see `resolve_loss` for those with a name. A module in its attribute
    `learned` is trained beside the network. state: a folder of this very training; what is found there of a killed one
    is gone on with, of one that is over is taken, and the caller removes it when its own work is safe. The number of
    steps is `settings.steps`, else what `settings.budget_minutes` allow (timed once, and kept in `state`), else
    `settings.epochs`.
    SGD, AdamW or the user's optimizer under one cycle of the learning rate; no weight decay on biases and norms.
    Under `torchrun` each process takes its part of every batch: losses must be means over the batch.
    Raises StepFailed naming the step at which the loss is not finite, DataError for labels that the loss cannot work
    on, RequestError where the network, the loss, the optimizer or the augmentation fails, or where what the optimizer
    holds could not be kept in `state`: before the first step, or after it.
    """
    with _course(module, data, loss=guarded(loss), settings=settings) as course:
        if state is not None:
            key = training_key(module, data, settings=settings, precision=course.stepper.precision)
            course.unfinished = Unfinished(state, key)
            course.check_optimizer()
        if not course.restore():
            course.begin(progress)
        course.run(progress)
        # What follows a training, its export say, may be killed too.
        course.unfinished.save(course._state())
        course.settle()
    module.eval()
    return _record(course, samples=len(data))


def _record(course: _Course, *, samples: int) -> TrainingRecord:
    import torch

    settings, size = course.stepper.settings, course.batches.size
    tail = course.losses[-max(1, len(course.losses) // 10) :]
    best = None if course.held_out is None else course.best
    return TrainingRecord(
        steps=course.steps,
        epochs=round(course.done * size / len(course.batches.data), 6),
        samples=samples,
        batch_size=size,
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        final_loss=sum(tail) / len(tail),
        threads=torch.get_num_threads(),
        seed=settings.seed,
        from_budget=settings.steps is None and settings.budget_minutes is not None,
        precision=course.stepper.precision,
        processes=ranks.count(),
        held_out=0 if course.held_out is None else len(course.held_out),
        best_step=None if best is None else best.step,
        best_loss=None if best is None else best.loss,
        stopped_at=course.done if course.done < course.steps else None,
    )


def time_steps(module: torch.nn.Module, data: TrainingData, *, loss: Loss, settings: Training) -> StepTimes:
    """Return what the steps of a training with `settings` take here: a few are run and undone."""
    was_training = module.training
    with _course(module, data, loss=guarded(loss), settings=settings) as course:
        times = step_times(course.stepper, course.batches, held_out=course.held_out)
    module.train(was_training)
    return times


@dataclass
class _Course:
    """A training under way: how far it is, and everything it takes to go on from there."""

    stepper: Stepper
    batches: Batches
    average: Average | None
    unfinished: Unfinished = field(default_factory=lambda: Unfinished(None, ""))
    held_out: TrainingData | None = None
    best: Best = field(default_factory=Best)
    losses: list[float] = field(default_factory=list)
    steps: int = 0
    done: int = 0

    def begin(self, progress: Progress) -> None:
        """Decide how many steps there are; a number that wall time decided is kept at once."""
        settings = self.stepper.settings
        if not settings.asked:
            raise RecipeError("a training of `epochs` = 0 was asked for", next_step=HOW_LONG)
        if settings.steps is not None or settings.budget_minutes is None:
            epochs = settings.epochs * len(self.batches.data) / self.batches.size
            self.steps = settings.steps or max(1, round(epochs))
        else:
            progress("timing a training step", None)
            times = step_times(self.stepper, self.batches, held_out=self.held_out)
            self.steps = times.steps_in(settings.budget_minutes * 60)
        if settings.budget_minutes is not None:
            self.unfinished.save(self._state())

    def run(self, progress: Progress) -> None:
        """Take the steps that are left, saving the state every so often."""
        settings, begun = self.stepper.settings, self.done
        clock = _Clock(begun, self.steps, progress=progress)
        while self.done < self.steps and not self.best.exhausted(settings.patience):
            rate = one_cycle(self.done, steps=self.steps, peak=settings.learning_rate)
            value = self.stepper.step(self.batches, self.done, rate=rate)
            if not math.isfinite(value):
                raise _diverged(f"{value} at step {self.done + 1} of {self.steps}", settings)
            self.losses.append(value)
            if self.average is not None:
                self.average.take(self.done)
            self.done += 1
            if self.done == begun + 1:  # optimizers make their state in the first step
                self.check_optimizer()
            self._look()
            if self.unfinished.due():
                self.unfinished.save(self._state())
            clock.tick(self.done, value)

    def settle(self) -> None:
        """Give the module the weights that are to be kept."""
        if self.best.tensors:
            put(self.stepper.module, self.best.tensors)
        elif self.average is not None:
            put(self.stepper.module, self.average.tensors)

    def restore(self) -> bool:
        """Go back to the state that was saved, if there is one."""
        state = ranks.agreed(self.unfinished.restore() if ranks.first() else None)
        if state is None:
            return False
        for module, tensors in zip(self.stepper.trained, state["modules"], strict=True):
            put(module, tensors)
        with UserCode(f"the optimizer {self.stepper.settings.optimizer!r}, given back its state"):
            self.stepper.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.tensors = state["average"]
        self.best = Best(**state["best"])
        self.losses, self.steps, self.done = state["losses"], state["steps"], state["done"]
        return True

    def check_optimizer(self) -> None:
        """Raise RequestError now for an optimizer whose state could not be saved later."""
        name = f"the optimizer {self.stepper.settings.optimizer!r}: state_dict()"
        self.unfinished.check(self.stepper.optimizer.state_dict(), what=name)

    def _look(self) -> None:
        """Look at the samples held out, if it is time: with the averaged weights where there are some."""
        if self.held_out is None or not is_look(self.done, self.steps):
            return
        module = self.stepper.module
        own = tensors_of(module)
        kept = None if self.average is None else copied(own)
        if self.average is not None:
            put(module, self.average.tensors)
        value = ranks.agreed(self.stepper.evaluate(self.held_out) if ranks.first() else 0.0)
        self.best.look(value, self.done, tensors=own)
        if kept is not None:
            put(module, kept)

    def _state(self) -> dict[str, Any]:
        return {
            "modules": [tensors_of(module) for module in self.stepper.trained],
            "optimizer": self.stepper.optimizer.state_dict(),
            "average": None if self.average is None else self.average.tensors,
            "best": vars(self.best),
            "losses": self.losses,
            "steps": self.steps,
            "done": self.done,
        }


@contextlib.contextmanager
def _course(module: torch.nn.Module, data: TrainingData, *, loss: Loss, settings: Training) -> Iterator[_Course]:
    forget = getattr(loss, "forget", None)  # what a teacher said in another training
    if forget is not None:
        forget()
    data, held_out = hold_out(data, settings)
    batches = batches_of(data, settings)
    with stepping(module, data, loss=loss, settings=settings) as stepper:
        yield _Course(stepper, batches, Average(module, settings.ema) if settings.ema else None, held_out=held_out)


def _diverged(what: str, settings: Training) -> StepFailed:
    return StepFailed(
        f"the training loss is {what} (learning rate {settings.learning_rate:g})",
        next_step="lower `learning_rate`, and look for extreme values in inputs and targets",
    )


class _Clock:
    """Says how far a training is, at once and then every two seconds, with the time that is left."""

    def __init__(self, begun: int, steps: int, *, progress: Progress) -> None:
        self._begun, self._steps, self._progress = begun, steps, progress
        self._start = time.monotonic()
        self._said = -math.inf

    def tick(self, done: int, loss: float) -> None:
        now = time.monotonic()
        if now - self._said < 2.0 and done < self._steps:
            return
        self._said = now
        left = (now - self._start) / (done - self._begun) * (self._steps - done)
        text = f"step {done}/{self._steps}, loss {loss:.3f}, {int(left) // 60}:{int(left) % 60:02d} left"
        self._progress(text, done / self._steps)
