"""Training: one trainer, the losses and augmentations it knows by name, and the user's own."""

from __future__ import annotations

from edgeexport.training.augment import Augment, crop_flip, resolve_augment
from edgeexport.training.distillation import distillation_loss, soft_loss
from edgeexport.training.losses import CLASS_LOSSES, Loss, first_output, forward, hard_loss, resolve_loss
from edgeexport.training.optimizers import one_cycle
from edgeexport.training.samples import Batch, TrainingData
from edgeexport.training.timing import StepTimes
from edgeexport.training.trainer import time_steps, train

__all__ = [
    "CLASS_LOSSES",
    "Augment",
    "Batch",
    "Loss",
    "StepTimes",
    "TrainingData",
    "crop_flip",
    "distillation_loss",
    "first_output",
    "forward",
    "hard_loss",
    "one_cycle",
    "resolve_augment",
    "resolve_loss",
    "soft_loss",
    "time_steps",
    "train",
]
