"""Optimizers: by name, or the user's own, and the one cycle of the learning rate that all of them follow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.data import resolve_reference
from edgeexport.data.userfunction import UserFunction
from edgeexport.errors import ModelError, RecipeError, RequestError
from edgeexport.records.training import Training

if TYPE_CHECKING:
    import torch

WARM_UP_SHARE = 0.2
MOMENTUM = 0.9
# Smaller tensors, zero among them, move as if they were of this size (Adafactor's).
LEAST_SIZE = 1e-3


def make_optimizer(modules: list[torch.nn.Module], settings: Training, *, folder: str = ".") -> torch.optim.Optimizer:
    """Return the optimizer of `settings` over every parameter of `modules` that may be trained.

    "sgd" (Nesterov momentum), "adamw", "adamw-relative" or "module:function" in `folder`: a function of (groups,
    learning_rate), where groups is what torch's optimizers take as `params`, weight decay included, that returns a
    torch optimizer. "adamw-relative" is for weights that are good already: the rate for each tensor is multiplied by
    its root mean square at the start (as in Shazeer and Stern 2018, arXiv:1804.04235), so that weights of very
    different sizes, such as equalized ones, move by the same share.
    Raises ModelError if nothing may be trained, RequestError for a function that fails or leaves a parameter out.
    """
    import torch

    trainable = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ModelError("the module has no parameter that may be trained (requires_grad is off everywhere)")
    # Norm scales and biases are vectors: decaying them costs accuracy and regularizes nothing.
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=MOMENTUM, nesterov=True)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    if settings.optimizer == "adamw-relative":
        return torch.optim.AdamW(_by_size(groups, settings.learning_rate), lr=settings.learning_rate)
    return _users(settings, [group for group in groups if group["params"]], folder=folder)


def _by_size(groups: list[dict[str, Any]], learning_rate: float) -> list[dict[str, Any]]:
    """Return a group for each tensor, its rate times the root mean square of its values."""
    apart = []
    for group in groups:
        for tensor in group["params"]:
            size = max(float(tensor.detach().double().square().mean().sqrt()), LEAST_SIZE)
            decay = group["weight_decay"] / size  # a step decays by rate x this
            apart.append({"params": [tensor], "lr": learning_rate * size, "weight_decay": decay})
    return apart


def _users(settings: Training, groups: list[dict[str, Any]], *, folder: str) -> torch.optim.Optimizer:
    import torch

    name = settings.optimizer
    found = resolve_reference(name, Path(folder))
    if not callable(found):
        raise RecipeError(f"the optimizer {name!r} is {type(found).__name__}, expected a function")
    user = UserFunction(f"the optimizer {name!r}", found, Path(folder))
    wanted = {id(parameter) for group in groups for parameter in group["params"]}
    made = user(groups, settings.learning_rate)
    if not isinstance(made, torch.optim.Optimizer):
        raise RequestError(f"{user.where} returned {type(made).__name__}, expected a torch optimizer")
    held = {id(parameter) for group in made.param_groups for parameter in group["params"]}
    if held != wanted:
        raise RequestError(
            f"{user.where} returned an optimizer of {len(held & wanted)} of the {len(wanted)} parameters to train",
            next_step="hand it all the groups that the function is given",
        )
    return made


def one_cycle(step: int, *, steps: int, peak: float) -> float:
    """Return the learning rate of `step` (from 0): a linear rise from a tenth of `peak`, then a cosine to near zero.

    Smith and Topin 2018, arXiv:1708.07120.
    """
    rise = WARM_UP_SHARE * steps
    if step < rise:
        return peak * (0.1 + 0.9 * step / rise)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))
