"""The one trainer, used wherever weights are learnt: training, distilling, retraining after pruning.

The rule: the same module, data, settings, machine and thread count give bit-identical weights. Everything random
comes from `settings.seed`, no global state is left changed, and wall time decides at most the number of steps, once.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.errors import DataError, ModelError, RecipeError
from edgeexport.progress import Progress, silent
from edgeexport.records.recipe import Training
from edgeexport.records.training import TrainingRecord

if TYPE_CHECKING:
    import numpy as np
    import torch

    Loss = Callable[[Any, "Batch"], torch.Tensor]
    Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]

WARM_UP_SHARE = 0.2
MOMENTUM = 0.9
TIMING_STEPS = 8


@dataclass(frozen=True)
class TrainingData:
    """Samples held in memory, ready to feed.

    inputs: one array, or one array per model input in order; samples on the first axis. labels: int64 classes, float
    targets, or None. augment: (batch of the first input, generator) -> batch; it stands before `settings.augment`.
    folder: where "module:function" references of the settings are looked up.
    """

    inputs: np.ndarray | tuple[np.ndarray, ...]
    labels: np.ndarray | None = None
    augment: Augment | None = None
    folder: str = "."

    def __post_init__(self) -> None:
        lengths = [len(array) for array in self.arrays]
        lengths += [] if self.labels is None else [len(self.labels)]
        if len(set(lengths)) != 1:
            raise DataError(f"training arrays have different lengths: {lengths}")
        if lengths[0] == 0:
            raise DataError("there are no training samples")

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The inputs, in the model's order."""
        return self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)

    def __len__(self) -> int:
        return len(self.arrays[0])


@dataclass(frozen=True)
class Batch:
    """What a loss sees besides the outputs: the inputs as they were fed (augmented), and the labels if any."""

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor | None


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
    no weight decay on biases and norms. Raises ModelError naming the step at which the loss is not finite.
    """
    import torch

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
    trial = copy.deepcopy(module)
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
    value = loss(module(*_fed(batch.inputs, layout)), batch)
    number = float(value.detach())
    if math.isfinite(number):
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
            module.eval()(*_fed([torch.from_numpy(array[:2]) for array in data.arrays], fast))
    except RuntimeError:
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
    for _ in range(steps):
        if len(queue) < size:
            queue = np.concatenate([queue, order.permutation(len(data))])
        index, queue = queue[:size], queue[size:]
        arrays = [array[index] for array in data.arrays]
        if augment is not None:
            arrays[0] = np.ascontiguousarray(augment(arrays[0], noise))
        labels = None if data.labels is None else torch.from_numpy(data.labels[index])
        yield Batch(tuple(torch.from_numpy(array) for array in arrays), labels)


def resolve_loss(name: str, folder: str = ".") -> Loss:
    """Return the loss called `name`: "cross_entropy", "mse", "bce" (on logits), or "module:function" in `folder`."""
    if name in _LOSSES:
        return _LOSSES[name]
    if ":" not in name:
        raise RecipeError(f"unknown loss {name!r}", next_step=f"choose one of {', '.join(_LOSSES)} or module:function")
    found: Loss = _user_function(name, folder)
    return found


def resolve_augment(name: str | None, folder: str = ".") -> Augment | None:
    """Return the augmentation called `name`: "crop-flip", or "module:function" in `folder`; None for None."""
    if name is None:
        return None
    if name == "crop-flip":
        return crop_flip
    if ":" not in name:
        raise RecipeError(f"unknown augmentation {name!r}", next_step='choose "crop-flip" or module:function')
    found: Augment = _user_function(name, folder)
    return found


def _user_function(reference: str, folder: str) -> Any:
    from edgeexport.data import resolve_reference

    return resolve_reference(reference, Path(folder))


def crop_flip(pictures: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Shift each picture of (n, channels, height, width) by up to 4 pixels, zeros outside, and mirror every second one.

    The CIFAR augmentation of He et al. 2015 (arXiv:1512.03385); pictures under 32 pixels shift by an eighth at most.
    """
    import numpy as np

    if pictures.ndim != 4:
        raise DataError(f"crop-flip needs pictures (n, channels, height, width), not shape {pictures.shape}")
    count, channels, height, width = pictures.shape
    pad = min(4, height // 8, width // 8)
    padded = np.pad(pictures, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows = generator.integers(0, 2 * pad + 1, (count, 1)) + np.arange(height)
    columns = generator.integers(0, 2 * pad + 1, (count, 1)) + np.arange(width)
    mirrored = generator.random(count) < 0.5
    columns[mirrored] = columns[mirrored, ::-1]
    sample, channel = np.arange(count)[:, None, None, None], np.arange(channels)[None, :, None, None]
    shifted: np.ndarray = padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return shifted


def first_output(outputs: Any) -> torch.Tensor:
    """Return the first output of a model that returns a tensor, a sequence or a mapping of tensors."""
    if isinstance(outputs, dict):
        outputs = next(iter(outputs.values()))
    elif isinstance(outputs, list | tuple):
        outputs = outputs[0]
    tensor: torch.Tensor = outputs
    return tensor


def _labels(batch: Batch, name: str) -> torch.Tensor:
    if batch.labels is None:
        raise DataError(f"the loss {name!r} needs labels, and the training samples have none")
    return batch.labels


def _cross_entropy(outputs: Any, batch: Batch) -> torch.Tensor:
    import torch

    return torch.nn.functional.cross_entropy(first_output(outputs), _labels(batch, "cross_entropy"))


def _mse(outputs: Any, batch: Batch) -> torch.Tensor:
    import torch

    values = first_output(outputs)
    return torch.nn.functional.mse_loss(values, _labels(batch, "mse").reshape(values.shape).to(values.dtype))


def _bce(outputs: Any, batch: Batch) -> torch.Tensor:
    import torch

    values = first_output(outputs)
    targets = _labels(batch, "bce").reshape(values.shape).to(values.dtype)
    return torch.nn.functional.binary_cross_entropy_with_logits(values, targets)


_LOSSES: dict[str, Loss] = {"cross_entropy": _cross_entropy, "mse": _mse, "bce": _bce}


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
