"""Training: one trainer, the losses and augmentations it knows by name, and the user's own."""

from __future__ import annotations

from edgeexport.training.augment import Augment, crop_flip, resolve_augment
from edgeexport.training.losses import Loss, first_output, forward, resolve_loss
from edgeexport.training.samples import Batch, TrainingData
from edgeexport.training.trainer import count_steps, one_cycle, train

__all__ = [
    "Augment",
    "Batch",
    "Loss",
    "TrainingData",
    "count_steps",
    "crop_flip",
    "first_output",
    "forward",
    "one_cycle",
    "resolve_augment",
    "resolve_loss",
    "train",
]
