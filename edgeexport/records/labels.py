"""Labels: what a metric takes a model's outputs for, and which steps cannot do without labels.

The rule: labels are asked for where something is learnt from them or judged by them, nowhere else. A step that has a
teacher learns from it alone where samples have no labels, unless it names a loss or a share for them.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

from edgeexport.records.recipe import LABEL_FREE_METRICS, Distill, Prune, Quantize, Recipe, Step, Train, teaches
from edgeexport.records.training import Training

# What a model's outputs are: class logits, embeddings whose direction counts, or values that are right or far off.
Answers: TypeAlias = Literal["classes", "embeddings", "values"]

_ANSWERS: dict[str, Answers] = {
    "top1": "classes",
    "top5": "classes",
    "auc": "classes",
    "agreement": "classes",
    "cosine": "embeddings",
    "mse": "values",
    "mae": "values",
}
_LOSS = Training().loss
_SHARE = Distill().soft_share
_GIVE = "give every training sample its label"


class Demand(NamedTuple):
    """Who needs labels, as the beginning of a sentence, and the next step where there are none."""

    who: str
    next_step: str


def answers_of(metric: Any) -> Answers | None:
    """Return what a recipe's metric takes the outputs for; None for a metric of the user's, which tells nothing."""
    return _ANSWERS.get(metric.partition(":")[0]) if isinstance(metric, str) else None


def answers_under(step: Distill, answers: Answers | None) -> Answers | None:
    """Return the same for a distil step: where nothing else tells, its method "cosine" is for embeddings."""
    return "embeddings" if answers is None and step.method == "cosine" else answers


def learns_labels(loss: str, *, soft_share: float, answers: Answers | None) -> bool:
    """Whether labels, where there are some, are learnt beside a teacher.

    Not where they have no share, and not by the default loss, which is of classes, where outputs are none.
    """
    return soft_share < 1 and not (loss == _LOSS and answers in {"embeddings", "values"})


def learnt_from(recipe: Recipe) -> Demand | None:
    """Return the first step of a recipe that cannot be taken without labels; None where there is none."""
    answers = answers_of(recipe.data.metric)
    for number, step in enumerate(recipe.step, 1):
        if isinstance(step, Quantize) and not teaches(recipe):
            continue
        found = _demand(step, answers)
        if found is not None:
            return Demand(f"step {number} `{step.__struct_config__.tag}` {found.who}", found.next_step)
    return None


def judged_by(metric: Any) -> Demand | None:
    """Return the demand of a metric that compares with labels, the user's own included; None for one that does not."""
    if isinstance(metric, str) and metric.partition(":")[0] in LABEL_FREE_METRICS:
        return None
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
    known = " and ".join(f'"{each}"' for each in LABEL_FREE_METRICS)
    return Demand(f"the metric {name!r} judges by labels", f"give labels, or another metric: {known} need none")


def must_train(recipe: Recipe) -> bool:
    """Whether a recipe trains on samples in any case."""
    return any(
        step.qat == "always" if isinstance(step, Quantize) else not isinstance(step, Prune) or step.training.asked
        for step in recipe.step
    )


def _demand(step: Step, answers: Answers | None) -> Demand | None:
    training = step.training
    told = f"learns labels by the loss {training.loss!r}"
    if isinstance(step, Train):
        return None if _of_user(training) else Demand(told, _GIVE)
    if isinstance(step, Distill):
        named = training.loss != _LOSS or step.soft_share != _SHARE
        used = learns_labels(training.loss, soft_share=step.soft_share, answers=answers_under(step, answers))
        told = f"{told}, soft_share = {step.soft_share:g}"
        return Demand(told, f"{_GIVE}, or say soft_share = 1.0: the teacher alone teaches") if named and used else None
    if isinstance(step, Prune) and not step.training.asked:
        return None
    if isinstance(step, Prune) and not step.distil:
        return None if _of_user(training) else Demand(told, f"{_GIVE}, or say distil = true")
    if training.loss == _LOSS or (isinstance(step, Quantize) and step.qat == "never"):
        return None
    return Demand(told, f"{_GIVE}, or leave `training.loss` out: the teacher alone teaches")


def _of_user(training: Training) -> bool:
    """Whether the loss is the user's own, which may have no use for labels."""
    return ":" in training.loss
