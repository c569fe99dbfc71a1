"""Distillation losses: what a student is charged for not answering as its teacher does.

The rule: to the trainer it is just another loss. The teacher is never changed and sees the very batch, augmented, that
the student sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from edgeexport import ranks
from edgeexport.errors import ModelError
from edgeexport.training.losses import (
    At,
    Loss,
    Place,
    check_classes,
    first_output,
    forward,
    outputs_by_place,
    widened,
)
from edgeexport.training.samples import Batch
from edgeexport.training.stepping import fed

if TYPE_CHECKING:
    import torch

# Bytes of a teacher's answers that are kept in memory; beyond them it is asked again.
MOST_REMEMBERED = 1 << 30
# A value beyond this stands for infinity: masks of attention hold the largest float there is.
LARGEST = 1e15

# What a teacher says to a batch: its first output, and those of the others that have a partner.
_Answer: TypeAlias = "tuple[torch.Tensor, dict[Place, torch.Tensor]]"


class Soft(Protocol):
    """A loss between what a student and its teacher say to a batch."""

    def __call__(self, given: torch.Tensor, wanted: torch.Tensor, *, batch: Batch) -> torch.Tensor:
        """Return a scalar, the mean over the batch."""
        ...


@dataclass(frozen=True)
class Taught:
    """A loss of a student under a teacher. soft: (student's output, teacher's, batch) -> scalar; hard: on labels.

    The first outputs are compared by `soft`, further ones that both have in one shape by `relative`, which counts
    `further_weight` times (0: they are not looked at): see `partners`.
    learned: what is trained beside the student, such as the projections of `feature_matcher`.
    layout: of the pictures that the teacher is shown, see `fast_layout`; None for the one they come in.
    remember: keep what it says to a batch that comes again (`Training.views`); not where its features are looked at.
    """

    teacher: torch.nn.Module
    soft: Soft
    soft_share: float
    hard: Loss | None
    learned: torch.nn.Module | None = None
    layout: torch.memory_format | None = None
    remember: bool = False
    further_weight: float = 1.0
    _remembered: dict[int | None, _Answer] = field(default_factory=dict, repr=False)

    def __call__(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """Return soft_share x soft + (1 - soft_share) x hard. Raises ModelError for outputs of two shapes."""
        given, others = first_output(outputs), self._by_place(outputs)
        wanted, further = self._wanted(batch, others)
        if given.shape != wanted.shape:
            raise ModelError(
                f"the student's first output has the shape {list(given.shape)}, the teacher's {list(wanted.shape)}",
                next_step="give a student and a teacher of the same task",
            )
        # The hard loss first: it checks the labels, which the soft one may use.
        hard = None if self.hard is None else self.hard(outputs, batch)
        soft = self.soft(given, wanted, batch=batch)
        for place, other in further.items():
            soft = soft + self.further_weight * relative(others[place], other)
        return soft if hard is None else self.soft_share * soft + (1 - self.soft_share) * hard

    def remembered(self, batches: int) -> float:
        """Return what share of so many batches is answered from memory when they come again."""
        known = next(iter(self._remembered.values()), None)
        return 0.0 if known is None else min(1.0, MOST_REMEMBERED // _bytes(known) / batches)

    def forget(self) -> None:
        """Forget what was said: numbers of batches mean something in one training only."""
        self._remembered.clear()

    def _by_place(self, outputs: Any) -> dict[Place, torch.Tensor]:
        return outputs_by_place(outputs) if self.further_weight else {}

    def _wanted(self, batch: Batch, others: Mapping[Place, torch.Tensor]) -> _Answer:
        """Return what the teacher says to a batch: from memory if it can be, else by asking it.

        others: the student's outputs; of the teacher's further ones, those without a partner are of no use.
        """
        import torch

        known = self._remembered.get(batch.number)
        if known is not None:
            return known
        with torch.no_grad():
            shown = batch.inputs if self.layout is None else fed(batch.inputs, self.layout)
            said = forward(self.teacher, shown, what="the teacher")
            further = {place: widened(each) for place, each in partners(others, self._by_place(said)).items()}
            answer = widened(first_output(said)), further
        if self.remember and batch.number is not None and len(self._remembered) < MOST_REMEMBERED // _bytes(answer):
            first, further = answer
            self._remembered[batch.number] = first.clone(), {place: each.clone() for place, each in further.items()}
        return answer


def _bytes(answer: _Answer) -> int:
    return sum(each.nbytes for each in (answer[0], *answer[1].values()))


def partners(given: Mapping[Place, torch.Tensor], wanted: Mapping[Place, torch.Tensor]) -> dict[Place, torch.Tensor]:
    """Return the teacher's output for each of the student's, but the first, that has one, by the student's places.

    Partners have one place: the same keys, the same index in lists of one length. Lists of two lengths are left alone:
    which of a teacher's six layers answers to the second of three is not known. Where no key is in both (an .onnx
    teacher returns all in a row) they are paired in order, if there are as many. Left alone, too, is what is not of
    one shape, empty, or no floating-point tensor.
    """
    named, known = (
        {key for place in outputs for key in place if not isinstance(key, At)} for outputs in (given, wanted)
    )
    students, teachers = (dict(list(outputs.items())[1:]) for outputs in (given, wanted))
    if students.keys() != teachers.keys() and len(students) == len(teachers) and not named & known:
        teachers = dict(zip(students, teachers.values(), strict=True))
    pairs = {place: (own, teachers[place]) for place, own in students.items() if place in teachers}
    return {
        place: other
        for place, (own, other) in pairs.items()
        if own.shape == other.shape and own.numel() and own.is_floating_point() and other.is_floating_point()
    }


def distillation_loss(
    teacher: torch.nn.Module, *, temperature: float, soft_share: float, hard: Loss | None, classes: bool = True
) -> Loss:
    """Return `soft_share` x soft + (1 - soft_share) x hard, as a loss for the trainer.

    soft: see `logits`. Without `hard` (no labels) the soft part is all there is.
    """
    return Taught(teacher.eval(), logits(temperature, classes=classes), soft_share, hard, remember=True)


def logits(temperature: float, *, classes: bool = True) -> Soft:
    """Return the loss between class logits (n, classes, ...): temperature^2 x KL(teacher || student).

    Both are softened by `temperature` (Hinton et al. 2015, arXiv:1503.02531). With `classes` off, or a single output,
    there is no softmax to soften, and it is the squared difference of the outputs (Ba and Caruana 2014,
    arXiv:1312.6184).
    """

    def soft(given: torch.Tensor, wanted: torch.Tensor, *, batch: Batch) -> torch.Tensor:
        if classes and given.ndim > 1 and given.shape[1] > 1:
            return soft_loss(given, wanted, temperature=temperature)
        return squared(given, wanted, batch=batch)

    return soft


def decoupled(temperature: float, *, beta: float) -> Soft:
    """Return decoupled knowledge distillation (Zhao et al. 2022, arXiv:2203.08679) of logits (n, classes, ...).

    temperature^2 x (KL of target against all others + `beta` x KL among the others). The target is the label; without
    class labels, the teacher's first choice. Raises ModelError for outputs that are no logits of at least two classes,
    DataError for a label that is none of them.
    """

    def soft(given: torch.Tensor, wanted: torch.Tensor, *, batch: Batch) -> torch.Tensor:
        if given.ndim < 2 or given.shape[1] < 2:
            raise ModelError(
                f"the method 'dkd' needs outputs (samples, classes), found shape {list(given.shape)}",
                next_step='choose the method "mse" or "cosine"',
            )
        target = wanted.argmax(1)
        labels = batch.labels
        if labels is not None and not labels.is_floating_point() and labels.numel() == target.numel():
            if batch.unchecked is not None:
                check_classes("dkd", tuple(given.shape), labels=batch.unchecked)
            target = labels.reshape(target.shape).long()
        return _decoupled(given, wanted, target=target, temperature=temperature, beta=beta)

    return soft


def _decoupled(
    given: torch.Tensor, wanted: torch.Tensor, *, target: torch.Tensor, temperature: float, beta: float
) -> torch.Tensor:
    import torch
    from torch.nn import functional

    chosen = functional.one_hot(target, given.shape[1]).movedim(-1, 1).bool()

    def parts(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of (target, all others), and of the others among themselves: 0 where the target is."""
        shares = functional.log_softmax(values / temperature, dim=1)
        others = shares.masked_fill(chosen, -torch.inf)
        rest = others.logsumexp(1, keepdim=True)
        hit = shares.masked_fill(~chosen, -torch.inf).logsumexp(1, keepdim=True)
        return torch.cat([hit, rest], 1), (shares - rest).masked_fill(chosen, 0.0)

    (hit_given, among_given), (hit_wanted, among_wanted) = parts(given), parts(wanted)
    on_target = (hit_wanted.exp() * (hit_wanted - hit_given)).sum(1)
    weights = among_wanted.exp().masked_fill(chosen, 0.0)
    among = (weights * (among_wanted - among_given)).sum(1)
    return torch.mean(on_target + beta * among) * temperature**2


def cosine(given: torch.Tensor, wanted: torch.Tensor, *, batch: Batch) -> torch.Tensor:  # noqa: ARG001 # a Soft
    """Return 1 - cosine of embeddings (n, d) or (n, seq, d), averaged (Sanh et al. 2019, arXiv:1910.01108)."""
    from torch.nn import functional

    return 1 - functional.cosine_similarity(given, wanted, dim=-1).mean()


def directions(given: torch.Tensor, wanted: torch.Tensor, *, batch: Batch) -> torch.Tensor:
    """Return the loss between embeddings by default: `cosine`, and `squared` for outputs of any other shape."""
    return (cosine if given.ndim in {2, 3} else squared)(given, wanted, batch=batch)


def squared(given: torch.Tensor, wanted: torch.Tensor, *, batch: Batch) -> torch.Tensor:  # noqa: ARG001 # a Soft
    """Return the mean squared difference, for outputs of any shape."""
    from torch.nn import functional

    return functional.mse_loss(given, wanted)


def relative(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the squared difference as a share of the mean squares of both, over the batch of all processes.

    The share is only a scale: no gradient flows through it. With the teacher's squares alone, a student that starts
    with larger outputs would diverge. Where either says nothing finite (a masked place), nothing is compared; a
    student's NaN stays one, as its training has diverged.
    """
    import torch

    own = given.detach()
    known = (wanted.abs() < LARGEST) & ~(own.abs() >= LARGEST)
    size = ranks.mean(torch.where(known, own.square() + wanted.square(), 0.0))
    return torch.where(known, given - wanted, 0.0).square().mean() / size.clamp_min(1e-12)


def soft_loss(student: torch.Tensor, teacher: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Return temperature^2 x KL(teacher || student) of logits (n, classes, ...), averaged over the rest."""
    import torch
    from torch.nn import functional

    wanted = functional.log_softmax(teacher / temperature, dim=1)
    given = functional.log_softmax(student / temperature, dim=1)
    each = functional.kl_div(given, wanted, log_target=True, reduction="none").sum(dim=1)
    return torch.mean(each) * temperature**2
