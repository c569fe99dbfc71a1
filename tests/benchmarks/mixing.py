"""Pictures that no network has seen: a teacher has its training pictures by heart, but not mixtures of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeexport.training.augment import crop_flip


def cut_mixed(pictures: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Do crop-flip, then put a piece of another picture into every picture of the first half of the batch.

    The pieces are of CutMix (Yun et al. 2019, arXiv:1905.04899): their area is uniform between none and all. They come
    without labels: for trainings in which a teacher says what is to be seen (Beyer et al. 2022, arXiv:2106.05237).
    pictures: (n, channels, height, width).
    """
    made = crop_flip(pictures, generator)
    others = made[::-1].copy()
    height, width = made.shape[2:]
    for picture, other in zip(made[: len(made) // 2], others, strict=False):
        side = np.sqrt(generator.random())
        tall, wide = max(1, round(height * side)), max(1, round(width * side))
        top, left = generator.integers(0, height - tall + 1), generator.integers(0, width - wide + 1)
        piece = np.s_[:, top : top + tall, left : left + wide]
        picture[piece] = other[piece]
    return made
