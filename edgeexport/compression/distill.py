"""Distillation: a student learns from a teacher's outputs or features, and from the labels where there are any.

The rule: to the trainer it is just another loss; see `edgeexport.training.distillation` and `.features`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgeexport.progress import Progress, silent
from edgeexport.records.labels import Answers, answers_under
from edgeexport.records.recipe import Distill
from edgeexport.records.training import TrainingRecord
from edgeexport.training import CLASS_LOSSES, StepTimes, TrainingData, hard_loss, time_steps, train
from edgeexport.training.distillation import Soft, Taught, cosine, decoupled, directions, logits, squared
from edgeexport.training.features import watched
from edgeexport.training.stepping import fast_layout

if TYPE_CHECKING:
    import torch

    from edgeexport.training import Batch


def distill(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    *,
    data: TrainingData,
    step: Distill,
    progress: Progress = silent,
    state: Path | None = None,
) -> TrainingRecord:
    """Train `student` in place on what `teacher` says, by `step.method`; of `state`, see `train`.

    A student that is its own teacher learns from a copy of itself as it was. Raises RecipeError for layers that are
    not there, ModelError for outputs or features that cannot be compared.
    """
    teacher = (copy.deepcopy(teacher) if teacher is student else teacher).eval()
    with _lesson(student, teacher, data=data, step=step) as loss:
        return train(student, data, loss=loss, settings=step.training, progress=progress, state=state)


def time_distil_steps(
    student: torch.nn.Module, teacher: torch.nn.Module, *, data: TrainingData, step: Distill
) -> StepTimes:
    """Return what the steps of distilling take here: see `training.time_steps`."""
    with _lesson(student, teacher.eval(), data=data, step=step) as loss:
        return time_steps(student, data, loss=loss, settings=step.training)


@contextlib.contextmanager
def _lesson(
    student: torch.nn.Module, teacher: torch.nn.Module, *, data: TrainingData, step: Distill
) -> Iterator[Taught]:
    answers = answers_under(step, data.answers)
    hard = hard_loss(data, step.training, soft_share=step.soft_share, answers=answers)
    soft = _soft(step, answers)
    with fast_layout(teacher, data) as layout:
        if step.method not in {"hint", "attention"}:
            yield Taught(
                teacher, soft, step.soft_share, hard, layout=layout, remember=True, further_weight=step.further_weight
            )
            return
        with watched(student, teacher, data=data, kind=step.method, layers=step.layers) as features:

            def both(given: torch.Tensor, wanted: torch.Tensor, *, batch: Batch) -> torch.Tensor:
                return soft(given, wanted, batch=batch) + step.feature_weight * features.loss()

            yield Taught(
                teacher, both, step.soft_share, hard, features.learned, layout, further_weight=step.further_weight
            )


def _soft(step: Distill, answers: Answers | None) -> Soft:
    """The loss between outputs, by what they are where the method does not say; features come on top of it."""
    if step.method == "dkd":
        return decoupled(step.temperature, beta=step.beta)
    if step.method == "cosine":
        return cosine
    if step.method == "mse":
        return squared
    if answers == "embeddings":
        return directions
    return logits(step.temperature, classes=_classes(step.training.loss, answers))


def _classes(loss: str, answers: Answers | None) -> bool:
    """Whether outputs are class logits: as the metric says, else the loss.

    Of the losses that have a name, those of values speak for themselves; one of the user's tells nothing.
    """
    if answers == "values":
        return False
    return answers == "classes" if ":" in loss else loss in CLASS_LOSSES
