"""Giants that nothing hears: large weights of channels that are zero in all samples, before a layer or after it.

The rule: such a weight may be zero as well, and is set so before the training. Batch norms after a dead channel divide
by next to nothing: folded, its weights are hundreds of times larger than all others, one scale for all of them would
be theirs, and no gradient ever made them smaller. Others stay: what no sample at hand wakes, the next one may.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from edgeexport.graph.lifting.module import Lifted
    from edgeexport.quantization.qat.fused import KernelSite
    from edgeexport.quantization.qat.simulation import Simulation

# How many times larger than all others: half of their integers would go to it.
GIANT = 2.0


def rest_silent(module: Simulation, real: Lifted, *, batches: Iterable[Sequence[Tensor]]) -> int:
    """Set weights of convolutions to zero that set a scale and that no sample hears; return how many those were.

    real: the float model, which listens: in integers a giant's scale silences those that live. batches: inputs in the
    model's order. On these samples nothing changes but the rounding, by smaller scales.
    """
    convolutions = [kernel for kernel in module.kernels if kernel.op == "Conv"]
    heard = _heard(module, real, batches=batches) if convolutions else {}
    convolutions = [kernel for kernel in convolutions if kernel.sources[0] in heard]
    used: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for kernel in convolutions:
        name = module.weight_names[kernel.weight]
        mask, ears = _masks(module, name, live=heard[kernel.sources[0]], after=_after(kernel, heard))
        used[name] = used[name] | mask if name in used else mask
        for part in (name, *_biases(module, name)):
            outputs[part] = outputs[part] | ears if part in outputs else ears
    rested = 0
    with torch.no_grad():
        for name, mask in used.items():
            value, biases = module.value(name), _biases(module, name)
            giants = _giants(value, mask, axis=module.weights[name].axis)
            # The rest of an output that is never heard, or its bias, would wake it without its giant: all go, or none.
            dead = ~outputs[name]
            rows = dead & giants.flatten(1).any(dim=1)
            for bias in biases:
                rows = rows & ~outputs[bias]
            giants[dead] = False
            giants[rows] = True
            for bias in biases:
                module.value(bias)[rows] = 0.0
            rested += int((giants & (value != 0)).sum())
            value.mul_(~giants)
    module.restart_steps()
    return rested


def _biases(module: Simulation, name: str) -> list[str]:
    return [site.bias for site in module.biases if site.weight == name]


def _giants(value: Tensor, heard: Tensor, *, axis: int | None) -> Tensor:
    """Return which weights nothing hears are far larger than all that are heard under the same scale."""
    others = [index for index in range(value.ndim) if index != axis]
    largest = (value.abs() * heard).amax(others, keepdim=True)
    return ~heard & (value.abs() > GIANT * largest) & (largest > 0)


def _after(kernel: KernelSite, heard: Mapping[str, Tensor]) -> Tensor | None:
    """Which of its outputs are not zero somewhere; None where that is not known."""
    return heard.get(kernel.into[0].tensor) if kernel.into else None


def _masks(module: Simulation, name: str, *, live: Tensor, after: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return what some sample hears of a weight (outputs, inputs of a group, …), and which outputs are heard."""
    weight = module.value(name)
    outputs, width = weight.shape[:2]
    group = torch.arange(outputs) * (len(live) // width) // outputs
    ears = torch.ones(outputs, dtype=torch.bool) if after is None else after
    mask = live[group[:, None] * width + torch.arange(width)] & ears[:, None]
    return mask.reshape(outputs, width, *[1] * (weight.ndim - 2)), ears


def _heard(module: Simulation, real: Lifted, *, batches: Iterable[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Site → which of its channels (axis 1) are more than half a step somewhere, in float."""
    ears: dict[str, _Ear] = {}
    points = module.plan("").activations
    for site in module.activations:
        if site.source not in ears:
            ears[site.source] = _Ear(points[site.source].scale / 2)
            real.tap(site.source, ears[site.source])
    with torch.no_grad():
        for inputs in batches:
            real(*inputs)
    found = {site.tensor: ears[site.source].live for site in module.activations}
    return {tensor: live for tensor, live in found.items() if live is not None}


class _Ear(nn.Module):
    """Notes which channels of a tensor are ever beyond `least`, and passes it on."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self._least = least
        self.live: Tensor | None = None

    def forward(self, value: Tensor) -> Tensor:
        if value.ndim > 2:
            loud = (value.abs() > self._least).transpose(0, 1).flatten(1).any(dim=1)
            self.live = loud if self.live is None else self.live | loud
        return value
