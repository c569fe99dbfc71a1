"""Muon, an optimizer for the convolutions of a short training: the step of each is made orthogonal.

The rule: every convolution is followed by a norm, so that its size means nothing and may be set.
"""

from __future__ import annotations

from collections.abc import Callable
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

    groups: as torch's optimizers take them, with their weight decay, which convolutions do without.
    """
    filters = [parameter for group in groups for parameter in group["params"] if parameter.ndim == 4]
    others = [{**group, "params": [each for each in group["params"] if each.ndim != 4]} for group in groups]
    apart = [{**group, "lr": OTHERS * learning_rate, "orthogonal": False} for group in others if group["params"]]
    return Muon([{"params": filters, "orthogonal": True}, *apart], learning_rate)


class Muon(torch.optim.Optimizer):
    """Steps of `orthogonal` groups are orthogonal matrices (outputs, inputs x kernel), of others SGD's."""

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float) -> None:
        super().__init__(groups, {"lr": learning_rate, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])
        state = self.state[parameter]
        momentum = state.setdefault("momentum", torch.zeros_like(parameter))
        momentum.mul_(MOMENTUM).add_(gradient)
        step = gradient.add(momentum, alpha=MOMENTUM)
        if group["orthogonal"]:
            step = orthogonal(step.flatten(1)).view_as(parameter)
            parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
        parameter.add_(step, alpha=-group["lr"])


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
