"""What a training is fed: samples in memory, and batches of them.

The rule: what cannot become a tensor is refused here, before any step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeexport.errors import DataError
from edgeexport.records.labels import Answers

if TYPE_CHECKING:
    import numpy as np
    import torch

    from edgeexport.training.augment import Augment


@dataclass(frozen=True)
class TrainingData:
    """Samples held in memory, ready to feed.

    inputs: one array, or one array per model input in order; samples on the first axis. labels: classes, float
    targets, or None. augment: (batch of the first input, generator) -> batch; it stands before `settings.augment`.
    folder: where "module:function" references of the settings are looked up. answers: what the network's outputs are,
    which decides how they are compared with a teacher's where nothing else does; None: the loss tells.
    """

    inputs: np.ndarray | tuple[np.ndarray, ...]
    labels: np.ndarray | None = None
    augment: Augment | None = None
    folder: str = "."
    answers: Answers | None = None

    def __post_init__(self) -> None:
        named = [("inputs", array) for array in self.arrays]
        named += [] if self.labels is None else [("labels", self.labels)]
        for name, array in named:
            if array.dtype.kind not in "biuf":
                raise DataError(f"the training {name} have dtype {array.dtype}, expected numbers")
        lengths = [len(array) for _, array in named]
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
    """What a loss sees besides the outputs: the inputs as they were fed (augmented), and the labels if any.

    unchecked: the labels of all samples, in the first batch of a training only: there they can be checked once.
    number: which batch this is, where the same one comes again; what a teacher says to it may be remembered.
    """

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor | None
    unchecked: np.ndarray | None = None
    number: int | None = None
