"""Losses: by name, or the user's own; and what is wrong with labels, told before anything is learnt from them.

The rule: a loss is called with what it can work on. Labels are checked once, all of them, against the first output;
a network or a loss of the user that fails is told as the user's, with file and line.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from edgeexport.data import UserCode, resolve_reference
from edgeexport.data.userfunction import UserFunction
from edgeexport.errors import DataError, ModelError, RecipeError, RequestError
from edgeexport.records.labels import Answers, learns_labels
from edgeexport.records.training import Training
from edgeexport.training.samples import Batch, TrainingData

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

# Losses on class logits, which a softmax turns into probabilities.
CLASS_LOSSES = ("cross_entropy", "smooth_cross_entropy")
SMOOTHING = 0.1

Loss: TypeAlias = "Callable[[Any, Batch], torch.Tensor]"


def resolve_loss(name: str, folder: str = ".") -> Loss:
    """Return the loss called `name`, or "module:function" in `folder`.

    "cross_entropy", "smooth_cross_entropy" (0.1 of label smoothing), "mse", "bce" (on logits).
    """
    if name in LOSSES:
        return LOSSES[name]
    if ":" not in name:
        raise RecipeError(f"unknown loss {name!r}", next_step=f"choose one of {', '.join(LOSSES)} or module:function")
    found = resolve_reference(name, Path(folder))
    if not callable(found):
        raise RecipeError(f"the loss {name!r} is {type(found).__name__}, expected a function")
    return UserLoss(UserFunction(f"the loss {name!r}", found, Path(folder)))


@dataclass(frozen=True)
class UserLoss:
    """A loss of the user's, held to what a loss must be."""

    user: UserFunction

    def __call__(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """Return the loss. Raises RequestError unless the function returns one number that depends on the outputs."""
        import torch

        value = self.user(outputs, batch)
        if not isinstance(value, torch.Tensor):
            raise RequestError(f"{self.user.where} returned {type(value).__name__}, expected a tensor of one number")
        if value.numel() != 1 or not value.is_floating_point():
            shape = tuple(value.shape)
            raise RequestError(
                f"{self.user.where} returned {value.dtype} of shape {shape}, expected one floating-point number",
                next_step="average over the batch: `.mean()`",
            )
        if torch.is_grad_enabled() and not value.requires_grad:
            raise RequestError(f"{self.user.where} returned a tensor that does not depend on the network's weights")
        return value


def guarded(loss: Loss) -> Loss:
    """Return `loss` as a UserLoss unless it is edgeexport's own."""
    # An object has the __module__ of its class, so this holds for functions, closures and callable objects.
    if str(getattr(loss, "__module__", "")).partition(".")[0] == __name__.partition(".")[0]:
        return loss
    return UserLoss(UserFunction(f"the loss {getattr(loss, '__name__', type(loss).__name__)!r}", loss))


def forward(module: nn.Module, inputs: Sequence[torch.Tensor], *, what: str = "the network") -> Any:
    """Return what the network answers. Raises RequestError with the batch's shapes and the place where it fails."""
    shapes = ", ".join(str(list(each.shape)) for each in inputs)
    code = getattr(type(module).forward, "__code__", None)
    with UserCode(f"{what} cannot take a training batch of {shapes}", code and Path(code.co_filename).parent):
        return module(*inputs)


def first_output(outputs: Any) -> torch.Tensor:
    """Return the first output of a model that returns a tensor, a sequence or a mapping of tensors."""
    import torch

    found = outputs
    if isinstance(outputs, dict):
        found = next(iter(outputs.values()), None)
    elif isinstance(outputs, list | tuple):
        found = outputs[0] if outputs else None
    if not isinstance(found, torch.Tensor):
        raise ModelError(f"the network's first output is {type(found).__name__}, expected a tensor")
    return found


class At(NamedTuple):
    """An entry of a list of so many. Lists of two lengths have no entry in common: nobody knows which are alike."""

    number: int
    of: int


# Where a tensor is in what a model returns: keys of mappings and fields of named tuples as they are, entries of lists.
Place: TypeAlias = tuple[Hashable, ...]


def outputs_by_place(outputs: Any) -> dict[Place, torch.Tensor]:
    """Return all tensors that a model returns, in order, each by its place: `("boxes", At(0, of=3))`.

    Of what is no dict, list or tuple, the parts that were registered with torch.utils._pytree count as one list.
    Raises RequestError where the code registered there fails.
    """
    return dict(_placed(outputs, ()))


def _placed(found: Any, place: Place) -> Iterator[tuple[Place, torch.Tensor]]:
    import torch

    if isinstance(found, torch.Tensor):
        yield place, found
        return
    for key, inner in _entries(found):
        yield from _placed(inner, (*place, key))


def _entries(found: Any) -> Iterable[tuple[Hashable, Any]]:
    from torch.utils import _pytree

    if isinstance(found, dict):
        return found.items()
    if isinstance(found, tuple) and hasattr(found, "_fields"):
        return zip(found._fields, found, strict=True)
    if not isinstance(found, list | tuple):
        with UserCode(f"an output of the network, {type(found).__name__}, cannot be taken apart"):
            parts = _pytree.tree_leaves(found)
        found = [] if any(part is found for part in parts) else parts
    return ((At(index, len(found)), part) for index, part in enumerate(found))


def widened(values: torch.Tensor) -> torch.Tensor:
    """Return 16-bit floats as float32, anything else as it is: losses are not worked out in 8 bits of mantissa."""
    return values.float() if values.is_floating_point() and values.itemsize < 4 else values


def hard_loss(data: TrainingData, settings: Training, *, soft_share: float, answers: Answers | None) -> Loss | None:
    """Return the loss on labels beside a teacher; None where there are no labels or none are to be learnt.

    See `learns_labels`. answers: what the outputs are.
    """
    if data.labels is None or not learns_labels(settings.loss, soft_share=soft_share, answers=answers):
        return None
    return resolve_loss(settings.loss, data.folder)


Check: TypeAlias = "Callable[[tuple[int, ...], np.ndarray], None]"


@dataclass(frozen=True)
class LabelLoss:
    """A loss between the first output and the labels. check: (shape of the output, all labels), raises DataError."""

    name: str
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    check: Check

    def __call__(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """Return the loss, averaged over the batch. Raises DataError for labels it cannot work on."""
        if batch.labels is None:
            raise DataError(f"the loss {self.name!r} needs labels, and the training samples have none")
        values = first_output(outputs)
        if values.ndim == 0 or len(values) != len(batch.labels):
            raise ModelError(
                f"the network's first output has the shape {list(values.shape)} for a batch of {len(batch.labels)}"
            )
        if batch.unchecked is not None:
            self.check(tuple(values.shape), batch.unchecked)
        return self.function(values, batch.labels)


def check_classes(name: str, output: tuple[int, ...], *, labels: np.ndarray) -> None:
    """Refuse what are no indices of the output's classes. Floats of the output's shape are probabilities of classes."""
    import numpy as np

    if len(output) < 2:
        raise ModelError(f"the loss {name!r} needs outputs (samples, classes), found shape {list(output)}")
    if labels.dtype.kind == "f":
        if labels.shape[1:] == output[1:]:
            return
        raise DataError(
            f"the loss {name!r} needs class indices, the labels are {labels.dtype}, first {labels.flat[0]}",
            next_step='give integers, or choose the loss "mse" or "bce"',
        )
    _check_size(name, (output[0], *output[2:]), labels=labels)
    wrong = np.argwhere((labels < 0) | (labels >= output[1]))
    if len(wrong):
        place = tuple(wrong[0])
        raise DataError(f"training sample {place[0]} has class {labels[place]}, the output has {output[1]} classes")


def _check_labels(name: str) -> Check:
    return lambda output, labels: check_classes(name, output, labels=labels)


def _check_targets(name: str) -> Check:
    return lambda output, labels: _check_size(name, output, labels=labels)


def _check_probabilities(output: tuple[int, ...], labels: np.ndarray) -> None:
    _check_size("bce", output, labels=labels)
    inside = ((labels >= 0) & (labels <= 1)).reshape(len(labels), -1).all(axis=1)
    if not inside.all():
        index = int(inside.argmin())
        raise DataError(f"the loss 'bce' needs targets from 0 to 1, training sample {index} has {labels[index]}")


def _check_size(name: str, output: tuple[int, ...], *, labels: np.ndarray) -> None:
    from math import prod

    if prod(labels.shape[1:]) != prod(output[1:]):
        raise DataError(
            f"the loss {name!r}: the targets have the shape {list(labels.shape[1:])} a sample, "
            f"the output calls for {list(output[1:])}"
        )


def _cross_entropy(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    if labels.is_floating_point():
        return functional.cross_entropy(values, labels.to(values.dtype))
    return functional.cross_entropy(values, labels.reshape(len(values), *values.shape[2:]).long())


def _smooth_cross_entropy(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy with a tenth of the target spread over all classes (Szegedy et al. 2016, arXiv:1512.00567)."""
    from torch.nn import functional

    targets = labels if labels.is_floating_point() else labels.reshape(len(values), *values.shape[2:]).long()
    return functional.cross_entropy(values, targets, label_smoothing=SMOOTHING)


def _mse(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    return functional.mse_loss(values, labels.reshape(values.shape).to(values.dtype))


def _bce(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    return functional.binary_cross_entropy_with_logits(values, labels.reshape(values.shape).to(values.dtype))


LOSSES: dict[str, Loss] = {
    "cross_entropy": LabelLoss("cross_entropy", _cross_entropy, _check_labels("cross_entropy")),
    "mse": LabelLoss("mse", _mse, _check_targets("mse")),
    "smooth_cross_entropy": LabelLoss(
        "smooth_cross_entropy", _smooth_cross_entropy, _check_labels("smooth_cross_entropy")
    ),
    "bce": LabelLoss("bce", _bce, _check_probabilities),
}
