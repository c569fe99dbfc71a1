"""Muon, an optimizer for the convolutions of a short training: the step of each is made orthogonal.

The rule: every convolution is followed by a norm, so that its size means nothing and may be set. torch's own Muon
takes matrices alone, and the trainer hands out the parameters as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import normalize

MOMENTUM = 0.9
# Of everything that is no convolution, which is stepped by SGD, as a multiple of the rate of the convolutions.
OTHERS = 2.5
# Jordan et al. 2024, "Muon": a quintic that brings all singular values close to 1 in five turns.
TURNS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)


def muon(groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    """Return Muon over the convolutions in `groups`, and SGD with Nesterov momentum over everything else.

    groups: as torch's optimizers take them, with their weight decay, which convolutions do without. It is torch's SGD,
    which finds an orthogonal step where the gradient of a convolution was.
    """
    filters = [parameter for group in groups for parameter in group["params"] if parameter.ndim == 4]
    others = [{**group, "params": [each for each in group["params"] if each.ndim != 4]} for group in groups]
    nesterov = {"lr": OTHERS * learning_rate, "momentum": MOMENTUM, "nesterov": True}
    apart = [{**group, **nesterov} for group in others if group["params"]]
    optimizer = torch.optim.SGD([{"params": filters}, *apart], lr=learning_rate)
    optimizer.register_step_pre_hook(_orthogonalize)
    return optimizer


@torch.no_grad()
def _orthogonalize(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Put orthogonal steps in place of the gradients of the first group, and give its weights their size."""
    for parameter in optimizer.param_groups[0]["params"]:
        if parameter.grad is None:
            continue
        momentum = optimizer.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        momentum.mul_(MOMENTUM).add_(parameter.grad)
        step = parameter.grad.add(momentum, alpha=MOMENTUM)
        parameter.grad.copy_(orthogonal(step.flatten(1)).view_as(parameter))
        parameter.mul_(len(parameter) ** 0.5 / parameter.norm())


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Return about the orthogonal matrix next to a matrix, by Newton and Schulz: singular values from 0.7 to 1.2."""
    found = normalize(matrix, dim=(0, 1), eps=1e-7)
    if len(found) > found.shape[1]:
        return orthogonal(found.T).T
    first, third, fifth = COEFFICIENTS
    for _ in range(TURNS):
        square = found @ found.T
        found = first * found + (third * square + fifth * square @ square) @ found
    return found
