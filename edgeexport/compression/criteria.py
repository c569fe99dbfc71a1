"""Importance: how much a channel, a head or a block counts, by its weights or by what they do on samples.

The rule: figures of one group are comparable among themselves, mean 1 in every layer; what they are made of is a row
in `CRITERIA`.

| criterion | importance of a channel | source |
|---|---|---|
| l1, l2 | norm of the filter that makes it | Li et al. 2017, arXiv:1608.08710 |
| bn_scale | size of the batch norm's factor behind it; l2 where there is none | Liu et al. 2017, arXiv:1708.06519 |
| taylor | (gradient x weight, summed over its filter) squared, mean over batches | Molchanov 2019, arXiv:1906.10771 |
| group_norm | l2 of all that goes with it: what makes, scales and reads it | Fang et al. 2023, arXiv:2301.12900 |
| random | chance: the control | |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgeexport.errors import ModelError
from edgeexport.records.recipe import Prune
from edgeexport.records.training import Training
from edgeexport.training import Batch, TrainingData, first_output, forward

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from edgeexport.compression.channels import ChannelGroup, Member
    from edgeexport.training import Loss

    Evidence = Mapping[str, NDArray[np.float64]]

NO_EVIDENCE: Evidence = {}


def importance(
    module: torch.nn.Module, group: ChannelGroup, *, step: Prune, order: int, evidence: Evidence = NO_EVIDENCE
) -> NDArray[np.float64]:
    """Return the importance of each channel of a group, by `step.criterion`. order: the group's number, a seed.

    evidence: layer -> Taylor score of each of its output channels (`taylor_scores`), for that criterion.
    """
    import numpy as np

    if step.criterion == "random":
        return np.random.default_rng([step.training.seed, order]).random(group.width) + 1e-6
    total = np.zeros(group.width)
    for member in group.members:
        each = CRITERIA[step.criterion](module, member, group=group, evidence=evidence)
        if each is not None:
            mine = np.array([sum(each[index] for index in own) for own in member.indices])
            total += mine / max(mine.mean(), 1e-12)
    return total + 1e-9


def _l1(module: torch.nn.Module, member: Member, **_: Any) -> NDArray[np.float64] | None:
    return _strength(module, member, l1=True) if member.side == "out" else None


def _l2(module: torch.nn.Module, member: Member, **_: Any) -> NDArray[np.float64] | None:
    return _strength(module, member) if member.side == "out" else None


def _bn_scale(module: torch.nn.Module, member: Member, *, group: ChannelGroup, **_: Any) -> NDArray[np.float64] | None:
    scaled = [each for each in group.members if each.side == "norm" and _is_scaled(module, each)]
    if not scaled:
        return _l2(module, member)
    return _strength(module, member) if member in scaled else None


def _taylor(_: torch.nn.Module, member: Member, *, evidence: Evidence, **__: Any) -> NDArray[np.float64] | None:
    return evidence[member.layer] if member.side == "out" and member.layer in evidence else None


def _group_norm(module: torch.nn.Module, member: Member, **_: Any) -> NDArray[np.float64] | None:
    return _strength(module, member) if member.side != "norm" or _is_scaled(module, member) else None


def _is_scaled(module: torch.nn.Module, member: Member) -> bool:
    """Whether a norm has factors of its own (`affine`)."""
    return module.get_submodule(member.layer).weight is not None


CRITERIA: Mapping[str, Callable[..., NDArray[np.float64] | None]] = {
    "l1": _l1,
    "l2": _l2,
    "bn_scale": _bn_scale,
    "taylor": _taylor,
    "group_norm": _group_norm,
}


def _strength(module: torch.nn.Module, member: Member, *, l1: bool = False) -> NDArray[np.float64]:
    """Return the size of a layer's weights for each channel of the member's side."""
    import torch

    layer = module.get_submodule(member.layer)
    weight = layer.weight
    if not isinstance(weight, torch.Tensor):
        raise ModelError(f"{type(layer).__name__} has no weight to judge its channels by")
    values = weight.detach().double()
    if values.ndim > 1 and getattr(layer, "transposed", False) != (member.side == "in"):
        values = values.transpose(0, 1)
    values = values.flatten(1) if values.ndim > 1 else values[:, None]
    size: NDArray[np.float64] = (values.abs().sum(1) if l1 else values.norm(dim=1)).numpy()
    return size


def taylor_scores(
    module: torch.nn.Module, batches: Iterable[Batch], *, loss: Loss | None, classes: bool = True
) -> dict[str, Any]:
    """Return layer -> importance of each output channel: (gradient x weight, summed) squared, mean over `batches`.

    loss: of outputs and batch; without one (no labels), the network's own most likely classes stand in for them, or
    the squares of its outputs where there are no `classes`. Gradients and mode of the module are left as they were.
    """
    import torch

    from edgeexport.compression.macs import is_weighted

    layers = {name: layer for name, layer in module.named_modules() if is_weighted(layer)}
    flags = {name: value.requires_grad for name, value in module.named_parameters()}
    training, count = module.training, 0
    totals: dict[str, Any] = {}
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    for batch in batches:
        outputs = forward(module, batch.inputs, what="the network")
        taught = None if batch.labels is None else loss
        value = _own(outputs, classes=classes) if taught is None else taught(outputs, batch)
        weights = {name: layer.weight for name, layer in layers.items()}
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        count += 1
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is not None:
                product = (gradient * weight).detach().double()
                product = product.transpose(0, 1) if getattr(layers[name], "transposed", False) else product
                score = product.flatten(1).sum(1).square().numpy()
                totals[name] = totals.get(name, 0.0) + score
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(flags[name])
    module.train(training)
    if not count:
        raise ModelError("the criterion `taylor` needs samples to take gradients on", next_step="say data.train")
    return {name: total / count for name, total in totals.items()}


def gradient_batches(data: TrainingData, settings: Training, *, count: int) -> Iterator[Batch]:
    """Yield `count` seeded batches of a training's samples, none augmented; fewer where there are fewer samples."""
    import numpy as np
    import torch

    order = np.random.default_rng(settings.seed).permutation(len(data))
    for start in range(0, min(len(order), count * settings.batch_size), settings.batch_size):
        index = order[start : start + settings.batch_size]
        labels = None if data.labels is None else torch.from_numpy(data.labels[index])
        unchecked = data.labels if start == 0 else None
        yield Batch(tuple(torch.from_numpy(array[index]) for array in data.arrays), labels, unchecked)


def _own(outputs: Any, *, classes: bool) -> torch.Tensor:
    from torch.nn import functional

    first = first_output(outputs)
    if classes and first.ndim == 2 and first.shape[1] > 1:
        return functional.cross_entropy(first, first.detach().argmax(dim=1))
    return first.square().mean()
