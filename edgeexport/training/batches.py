"""Batches: which samples a step sees, and how they are augmented.

The rule: a batch is a function of the seed and the step alone. Nothing needs to be remembered for a training to go on
where it was, and every process of a distributed one draws the same batch and takes its own part of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeexport import ranks
from edgeexport.errors import RecipeError
from edgeexport.records.training import Training
from edgeexport.training.augment import Augment, augmented, resolve_augment
from edgeexport.training.samples import Batch, TrainingData

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Batches:
    """Full batches from an endless seeded shuffle; none is short, so batch norm never sees one sample.

    views: epochs after which the same batches come again, in another order; None for ever new ones.
    """

    data: TrainingData
    seed: int
    size: int
    augment: Augment | None
    views: int | None = None

    def __post_init__(self) -> None:
        if self.size < ranks.count():
            raise RecipeError(
                f"`training.batch_size` is {self.size}, and {ranks.count()} processes share a batch",
                next_step="give each at least one sample, better 16: batch_size is that of all processes together",
            )

    @property
    def share(self) -> float:
        """This process's part of a batch, times the number of processes: what its mean loss counts."""
        return len(self._own()) * ranks.count() / self.size

    def at(self, step: int) -> Batch:
        """Return this process's part of the batch of `step` (from 0), augmented."""
        import numpy as np
        import torch

        number = self._number(step)
        index = self._index(number)
        arrays = [array[index] for array in self.data.arrays]
        if self.augment is not None:
            arrays[0] = augmented(self.augment, arrays[0], generator=np.random.default_rng([self.seed, 1, number]))
        own = self._own()
        tensors = tuple(torch.from_numpy(array[own.start : own.stop]) for array in arrays)
        labels = self.data.labels
        taken = None if labels is None else torch.from_numpy(labels[index[own.start : own.stop]])
        return Batch(tensors, taken, labels if step == 0 else None, None if self.views is None else number)

    @property
    def different(self) -> float:
        """How many batches there are before the first one comes again."""
        return math.inf if self.views is None else math.ceil(self.views * len(self.data) / self.size)

    def _number(self, step: int) -> int:
        """Return which of the different batches is a step's: each time they come, in an order of its own."""
        if step < self.different:
            return step
        time, place = divmod(step, int(self.different))
        return int(_permutation((self.seed, 2, time), total=int(self.different))[place])

    def _own(self) -> range:
        first, count = ranks.index(), ranks.count()
        return range(self.size * first // count, self.size * (first + 1) // count)

    def _index(self, step: int) -> np.ndarray:
        """Return the positions of a step's samples: its stretch of all epochs' permutations, one after the other."""
        import numpy as np

        total = len(self.data)
        places = np.arange(step * self.size, (step + 1) * self.size)
        parts = [
            _permutation((self.seed, 0, epoch), total=total)[places[places // total == epoch] % total]
            for epoch in range(places[0] // total, places[-1] // total + 1)
        ]
        return np.concatenate(parts)


@functools.lru_cache(maxsize=16)
def _permutation(key: tuple[int, int, int], *, total: int) -> np.ndarray:
    import numpy as np

    return np.random.default_rng(key).permutation(total)


def batches_of(data: TrainingData, settings: Training) -> Batches:
    """Return the batches that `settings` asks for."""
    augment = data.augment or resolve_augment(settings.augment, data.folder)
    return Batches(data, settings.seed, min(settings.batch_size, len(data)), augment, settings.views)


def in_order(data: TrainingData, size: int) -> Iterator[Batch]:
    """Yield all samples once, as they are, in batches of `size` or less."""
    import torch

    for start in range(0, len(data), size):
        part = slice(start, start + size)
        labels = None if data.labels is None else torch.from_numpy(data.labels[part])
        yield Batch(
            tuple(torch.from_numpy(array[part]) for array in data.arrays), labels, data.labels if start == 0 else None
        )
