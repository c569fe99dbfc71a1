"""Distillation: a student learns from a teacher's outputs, and from the labels where there are any.

The rule: to the trainer it is just another loss. The teacher is never changed and sees the very batch, augmented, that
the student sees.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from edgeexport.errors import ModelError
from edgeexport.progress import Progress, silent
from edgeexport.records.recipe import Distill
from edgeexport.records.training import TrainingRecord
from edgeexport.training import Batch, TrainingData, first_output, forward, resolve_loss, train

if TYPE_CHECKING:
    import torch

    from edgeexport.training import Loss


def distill(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    *,
    data: TrainingData,
    step: Distill,
    progress: Progress = silent,
    steps: int | None = None,
) -> TrainingRecord:
    """Train `student` in place on the outputs of `teacher`; see `distillation_loss`. `steps` replays that many steps.

    A student that is its own teacher learns from a copy of itself as it was.
    """
    teacher = copy.deepcopy(teacher) if teacher is student else teacher
    loss = distillation_loss(
        teacher,
        temperature=step.temperature,
        soft_share=step.soft_share,
        hard=None if data.labels is None else resolve_loss(step.training.loss, data.folder),
        classes=step.training.loss == "cross_entropy",
    )
    return train(student, data, loss=loss, settings=step.training, progress=progress, steps=steps)


def distillation_loss(
    teacher: torch.nn.Module, *, temperature: float, soft_share: float, hard: Loss | None, classes: bool = True
) -> Loss:
    """Return `soft_share` x soft + (1 - soft_share) x hard, as a loss for the trainer.

    soft, for class logits (n, classes): temperature^2 x KL(teacher || student), both softened by `temperature`
    (Hinton et al. 2015, arXiv:1503.02531). With `classes` off, or a single output, there is no softmax to soften, and
    it is the squared difference of the outputs (Ba and Caruana 2014, arXiv:1312.6184).
    Without `hard` (no labels) the soft part is all there is. The loss raises ModelError for outputs of two shapes.
    """
    import torch

    teacher.eval()

    def loss(outputs: Any, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            wanted = first_output(forward(teacher, batch.inputs, what="the teacher"))
        given = first_output(outputs)
        if given.shape != wanted.shape:
            raise ModelError(
                f"the student's first output has the shape {list(given.shape)}, the teacher's {list(wanted.shape)}",
                next_step="give a student and a teacher of the same task",
            )
        logits = classes and given.ndim > 1 and given.shape[1] > 1
        soft = soft_loss(given, wanted, temperature=temperature) if logits else _squared(given, wanted)
        if hard is None:
            return soft
        return soft_share * soft + (1 - soft_share) * hard(outputs, batch)

    return loss


def soft_loss(student: torch.Tensor, teacher: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Return temperature^2 x KL(teacher || student) of logits (n, classes, ...), averaged over the rest."""
    import torch
    from torch.nn import functional

    wanted = functional.log_softmax(teacher / temperature, dim=1)
    given = functional.log_softmax(student / temperature, dim=1)
    each = functional.kl_div(given, wanted, log_target=True, reduction="none").sum(dim=1)
    return torch.mean(each) * temperature**2


def _squared(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    return functional.mse_loss(given, wanted)
