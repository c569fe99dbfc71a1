"""Which weights a training ends with: its last ones, their moving average, or the best ones on samples held out.

The rule: what is held out comes from the training samples themselves, by their content, so that no copy of a sample is
on both sides. The selection and evaluation splits are never seen here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgeexport.errors import DataError
from edgeexport.records.training import Training
from edgeexport.training.samples import TrainingData

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

# How often, over a whole training, the samples held out are looked at.
LOOKS = 20


def hold_out(data: TrainingData, settings: Training) -> tuple[TrainingData, TrainingData | None]:
    """Return the samples to train on, and those held out if `settings.keep` is "best".

    About `settings.held_out` of them go, those whose digest with the seed is smallest; equal samples stay together.
    Raises DataError if nothing would be left on one of the sides.
    """
    import numpy as np

    if settings.keep == "last":
        return data, None
    salt = str(settings.seed).encode()
    marks = np.array([_mark(salt, [array[index] for array in data.arrays]) for index in range(len(data))])
    chosen = marks < settings.held_out * 2.0**64
    if not chosen.any():
        chosen = marks == marks.min()
    if chosen.all():
        raise DataError(
            f'`training.keep` is "best": {len(data)} training samples are too few to hold some of them out',
            next_step='say keep = "last", or give more samples',
        )
    return part_of(data, ~chosen), part_of(data, chosen)


def _mark(salt: bytes, arrays: list[Any]) -> int:
    taken = hashlib.sha256(salt)
    for array in arrays:
        taken.update(array.tobytes())
    return int.from_bytes(taken.digest()[:8], "big")


def part_of(data: TrainingData, chosen: Any) -> TrainingData:
    """Return some of the samples. chosen: a mask or a slice."""
    inputs = tuple(array[chosen] for array in data.arrays)
    labels = None if data.labels is None else data.labels[chosen]
    return replace(data, inputs=inputs, labels=labels)


def tensors_of(module: torch.nn.Module) -> Tensors:
    """Return every parameter and buffer by name, those that are not saved too; they share memory with the module."""
    return {name: each.detach() for name, each in [*module.named_parameters(), *module.named_buffers()]}


def copied(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return copies in memory of their own."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def put(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Overwrite the module's parameters and buffers."""
    for name, tensor in tensors_of(module).items():
        tensor.copy_(tensors[name])


class Average:
    """The moving average of a module's weights and statistics (Polyak and Juditsky 1992); young, it forgets faster."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.tensors = copied(tensors_of(module))

    def take(self, step: int) -> None:
        """Take in the module as it is after `step` (from 0)."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, tensor in tensors_of(self.module).items():
            kept = self.tensors[name]
            if kept.is_floating_point():
                kept.lerp_(tensor, share)
            else:
                kept.copy_(tensor)


@dataclass
class Best:
    """The best weights seen on the samples held out. looks_since: how often they were looked at since without gain."""

    loss: float = math.inf
    step: int = 0
    looks_since: int = 0
    tensors: Tensors = field(default_factory=dict)

    def look(self, loss: float, step: int, *, tensors: Mapping[str, torch.Tensor]) -> None:
        """Compare the weights after `step` steps with the best ones."""
        self.looks_since += 1
        if loss < self.loss:
            self.loss, self.step, self.looks_since, self.tensors = loss, step, 0, copied(tensors)

    def exhausted(self, patience: int | None) -> bool:
        """Whether `patience` looks in a row brought nothing."""
        return patience is not None and self.looks_since >= patience


def is_look(step: int, steps: int) -> bool:
    """Whether the samples held out are looked at after `step` of `steps` steps."""
    return step * LOOKS // steps != (step - 1) * LOOKS // steps
