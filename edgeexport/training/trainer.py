"""The one trainer, used wherever weights are learnt: training, distilling, retraining after pruning.

The rule: the same module, data, settings, machine and thread count give bit-identical weights. Everything random
comes from `settings.seed`, no global state is left changed, and wall time decides at most the number of steps, once.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgeexport.data import UserCode
from edgeexport.errors import ModelError, RecipeError, RequestError
from edgeexport.progress import Progress, silent
from edgeexport.records.recipe import Training
from edgeexport.records.training import TrainingRecord
from edgeexport.training.augment import Augment, augmented, resolve_augment
from edgeexport.training.losses import Loss, forward, guarded
from edgeexport.training.samples import Batch, TrainingData

if TYPE_CHECKING:
    import torch

WARM_UP_SHARE = 0.2
MOMENTUM = 0.9
TIMING_STEPS = 8


def train(
    module: torch.nn.Module,
    data: TrainingData,
    *,
    loss: Loss,
    settings: Training,
    progress: Progress = silent,
    steps: int | None = None,
) -> TrainingRecord:
    """Train `module` in place and leave it in eval mode.

    loss: (outputs, batch) -> scalar tensor; see `resolve_loss` for those with a name. steps: replay that many steps
    instead of working them out from `settings.epochs` or, if set, `settings.budget_minutes`.
    SGD (Nesterov momentum) or AdamW under one cycle of the learning rate (Smith and Topin 2018, arXiv:1708.07120);
    no weight decay on biases and norms. Raises ModelError naming the step at which the loss is not finite, DataError
    for labels that the loss cannot work on, RequestError where the network, the loss or the augmentation fails.
    """
    import torch

    loss = guarded(loss)
    augment = data.augment or resolve_augment(settings.augment, data.folder)
    budgeted = steps is None and settings.budget_minutes is not None
    if steps is None:
        steps = count_steps(module, data, loss=loss, settings=settings, progress=progress)
    losses: list[float] = []
    clock = _Clock(steps, progress)
    with _repeatable(settings.seed), _fast_layout(module, data) as layout:
        optimizer = _optimizer(module, settings)
        module.train()
        for step, batch in enumerate(_batches(data, settings, augment=augment, steps=steps)):
            rate = one_cycle(step, steps=steps, peak=settings.learning_rate)
            value = _one_step(module, optimizer, batch=batch, loss=loss, rate=rate, layout=layout)
            if not math.isfinite(value):
                raise _diverged(f"{value} at step {step + 1} of {steps}", settings)
            losses.append(value)
            clock.tick(step + 1, value)
    module.eval()
    tail = losses[-max(1, steps // 10) :]
    batch_size = min(settings.batch_size, len(data))
    return TrainingRecord(
        steps=steps,
        epochs=round(steps * batch_size / len(data), 6),
        samples=len(data),
        batch_size=batch_size,
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        final_loss=sum(tail) / len(tail),
        threads=torch.get_num_threads(),
        seed=settings.seed,
        from_budget=budgeted,
    )


def count_steps(
    module: torch.nn.Module, data: TrainingData, *, loss: Loss, settings: Training, progress: Progress = silent
) -> int:
    """Return how many steps `settings` asks for: `epochs` exactly, or what fits into `budget_minutes` on this machine.

    The timing runs a few steps on a copy; the module, its statistics and the random state stay as they are.
    """
    if settings.budget_minutes is None:
        return max(1, round(settings.epochs * len(data) / min(settings.batch_size, len(data))))
    progress("timing a training step", None)
    trial, loss = copy.deepcopy(module), guarded(loss)
    augment = data.augment or resolve_augment(settings.augment, data.folder)
    seconds: list[float] = []
    with _repeatable(settings.seed), _fast_layout(trial, data) as layout:
        optimizer = _optimizer(trial.train(), settings)
        start = time.monotonic()
        for batch in _batches(data, settings, augment=augment, steps=TIMING_STEPS):
            _one_step(trial, optimizer, batch=batch, loss=loss, rate=0.0, layout=layout)
            seconds.append(time.monotonic() - start)
            start = time.monotonic()
    middle = sorted(seconds[1:])[len(seconds[1:]) // 2]
    return max(1, int(settings.budget_minutes * 60 / max(middle, 1e-6)))


def one_cycle(step: int, *, steps: int, peak: float) -> float:
    """Return the learning rate of `step` (from 0): a linear rise from a tenth of `peak`, then a cosine to near zero."""
    rise = WARM_UP_SHARE * steps
    if step < rise:
        return peak * (0.1 + 0.9 * step / rise)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def _one_step(
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    batch: Batch,
    loss: Loss,
    rate: float,
    layout: torch.memory_format,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    value = loss(forward(module, _fed(batch.inputs, layout)), batch)
    number = float(value.detach())
    if math.isfinite(number):
        with UserCode("the way back from the loss through the network"):
            value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return number


def _fed(arrays: Sequence[torch.Tensor], layout: torch.memory_format) -> list[torch.Tensor]:
    return [array.contiguous(memory_format=layout) if array.ndim == 4 else array for array in arrays]


@contextlib.contextmanager
def _fast_layout(module: torch.nn.Module, data: TrainingData) -> Iterator[torch.memory_format]:
    """Lay the module out for its training: channels last where it is convolutional and its code allows it.

    That took 16 to 29 % off a training step of ResNet-56 on one core. Code that says `view` where channels last needs
    `reshape` stays as it is. Afterwards the module has torch's plain layout again.
    """
    import torch

    plain, fast = torch.contiguous_format, torch.channels_last
    dimensions = {parameter.ndim for parameter in module.parameters()}
    if 4 not in dimensions or 5 in dimensions:
        yield plain
        return
    module.to(memory_format=fast)  # type: ignore[call-overload]
    try:
        with torch.no_grad():
            forward(module.eval(), _fed([torch.from_numpy(array[:2]) for array in data.arrays], fast))
    except RequestError:
        module.to(memory_format=plain)  # type: ignore[call-overload]
        fast = plain
    try:
        yield fast
    finally:
        module.to(memory_format=plain)  # type: ignore[call-overload]


def _diverged(what: str, settings: Training) -> ModelError:
    return ModelError(
        f"the training loss is {what} (learning rate {settings.learning_rate:g})",
        next_step="lower `learning_rate`, and look for extreme values in inputs and targets",
    )


def _optimizer(module: torch.nn.Module, settings: Training) -> torch.optim.Optimizer:
    import torch

    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ModelError("the module has no parameter that may be trained (requires_grad is off everywhere)")
    # Norm scales and biases are vectors: decaying them costs accuracy and regularizes nothing.
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=MOMENTUM, nesterov=True)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    raise RecipeError(f"unknown optimizer {settings.optimizer!r}", next_step='choose "sgd" or "adamw"')


def _batches(data: TrainingData, settings: Training, *, augment: Augment | None, steps: int) -> Iterator[Batch]:
    """Yield `steps` full batches from an endless seeded shuffle; none is short, so batch norm never sees one sample."""
    import numpy as np
    import torch

    order = np.random.default_rng([settings.seed, 0])
    noise = np.random.default_rng([settings.seed, 1])
    size = min(settings.batch_size, len(data))
    queue = np.empty(0, np.int64)
    for step in range(steps):
        if len(queue) < size:
            queue = np.concatenate([queue, order.permutation(len(data))])
        index, queue = queue[:size], queue[size:]
        arrays = [array[index] for array in data.arrays]
        if augment is not None:
            arrays[0] = augmented(augment, arrays[0], generator=noise)
        labels = None if data.labels is None else torch.from_numpy(data.labels[index])
        yield Batch(tuple(map(torch.from_numpy, arrays)), labels, data.labels if step == 0 else None)


@contextlib.contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Seed torch and ask for deterministic kernels, for the time of a training; put everything back after it."""
    import torch

    # The module's attribute is a property that torch does not declare to type checkers.
    deterministic: Any = torch.utils.deterministic
    was_on = torch.are_deterministic_algorithms_enabled()
    was_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    was_fill = deterministic.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_on, warn_only=was_warn)
            deterministic.fill_uninitialized_memory = was_fill


class _Clock:
    """Says how far a training is, at once and then every two seconds, with the time that is left."""

    def __init__(self, steps: int, progress: Progress) -> None:
        self._steps, self._progress = steps, progress
        self._start = time.monotonic()
        self._said = -math.inf

    def tick(self, done: int, loss: float) -> None:
        now = time.monotonic()
        if now - self._said < 2.0 and done < self._steps:
            return
        self._said = now
        left = (now - self._start) / done * (self._steps - done)
        text = f"step {done}/{self._steps}, loss {loss:.3f}, {int(left) // 60}:{int(left) % 60:02d} left"
        self._progress(text, done / self._steps)
