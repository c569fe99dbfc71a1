"""Multiply-accumulates of one sample, counted by our own hooks on convolutions and linear layers.

The rule: a layer costs its weight's size times the number of positions it is applied at, so a plan can be priced
without running the pruned network. Biases, norms, activations and products of two activations are not counted.
The projections of an nn.MultiheadAttention count as linear layers, named `q_proj`, `k_proj`, `v_proj`, `out_proj`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Call:
    """One call of what is counted: the name of its weight, the layer, and the tensors that it reads and makes."""

    name: str
    layer: Any
    given: torch.Tensor
    made: torch.Tensor


def tensors(example: Mapping[str, np.ndarray]) -> tuple[torch.Tensor, ...]:
    """Return the arrays of an example as tensors, in order."""
    import torch

    return tuple(torch.from_numpy(array.copy()) for array in example.values())


def count_macs(module: torch.nn.Module, example: Mapping[str, np.ndarray]) -> int:
    """Return the multiply-accumulates of one sample of `example` (batch axis first)."""
    return sum(count * weight_of(module, name).numel() for name, count in positions(module, example).items())


def positions(module: torch.nn.Module, example: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return for each convolution and linear layer how often its weight is applied to one sample.

    That is the number of output pixels (input pixels of a transposed convolution) or of rows, over all its calls.
    """
    counts: dict[str, int] = {}

    def count(call: Call) -> None:
        tensor = call.given if getattr(call.layer, "transposed", False) else call.made
        channels = tensor.shape[1] if hasattr(call.layer, "kernel_size") else tensor.shape[-1]
        counts[call.name] = counts.get(call.name, 0) + tensor.numel() // channels

    observe(module, example, tell=count)
    batch = next(iter(example.values())).shape[0]
    return {name: count // batch for name, count in counts.items()}


def is_weighted(layer: torch.nn.Module) -> bool:
    """Say whether the layer is one whose multiplications are counted, and whose width can be planned."""
    import torch

    return isinstance(layer, torch.nn.modules.conv._ConvNd | torch.nn.Linear)


def is_attention(layer: torch.nn.Module) -> bool:
    """Say whether the layer is torch's own attention, which reads its weights without calling a layer."""
    import torch

    return isinstance(layer, torch.nn.MultiheadAttention)


def weighted_names(module: torch.nn.Module) -> list[str]:
    """Return the names of all that is counted: layers (the module itself is ""), and projections of attentions."""
    names = [name for name, layer in module.named_modules() if is_weighted(layer)]
    attentions = [name for name, layer in module.named_modules() if is_attention(layer)]
    return names + [_inside(name, each) for name in attentions for each in PROJECTIONS]


def layer_of(module: torch.nn.Module, name: str) -> Any:
    """Return the layer that holds the weight of this name: of a projection, its attention."""
    outer, _, last = name.rpartition(".")
    if last in PROJECTIONS and is_attention(module.get_submodule(outer)):
        return module.get_submodule(outer)
    return module.get_submodule(name)


def weight_of(module: torch.nn.Module, name: str) -> torch.Tensor:
    """Return the weight of a layer, or of a projection of an attention, by its name."""
    layer, last = layer_of(module, name), name.rpartition(".")[2]
    weight: torch.Tensor
    if not is_attention(layer):
        weight = layer.weight
    elif layer.in_proj_weight is None:
        weight = getattr(layer, f"{last}_weight")
    else:
        weight = layer.in_proj_weight.chunk(len(PROJECTIONS))[PROJECTIONS.index(last)]
    return weight


def observe(module: torch.nn.Module, example: Mapping[str, np.ndarray], *, tell: Callable[[Call], None]) -> None:
    """Run the module on an example; `tell` gets each call of what is counted.

    A projection is told with its attention as the layer, and with what it reads as its output, which has as many rows.
    """
    import torch

    within = {id(layer.out_proj) for layer in module.modules() if is_attention(layer)}
    hooks = []
    for name, layer in module.named_modules():
        if is_attention(layer):
            hooks.append(layer.register_forward_hook(_attention_hook(name, tell), with_kwargs=True))
        elif is_weighted(layer) and id(layer) not in within:
            hooks.append(layer.register_forward_hook(_hook(name, tell)))
    try:
        with torch.no_grad(), unfused():
            module(*tensors(example))
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Have torch's transformer layers call their parts.

    In eval mode they else read all weights in one go, where no hook sees it, and pack padded sequences.
    """
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _hook(name: str, tell: Callable[[Call], None]) -> Any:
    return lambda layer, given, made: tell(Call(name, layer, given[0], made))


def _attention_hook(name: str, tell: Callable[[Call], None]) -> Any:
    def hook(layer: Any, *flow: Any) -> None:
        given, named, made = flow
        read = [*given, *(named[each] for each in ("query", "key", "value") if each in named)]
        for each, rows in zip(PROJECTIONS, read, strict=False):
            tell(Call(_inside(name, each), layer, rows, rows))
        tell(Call(_inside(name, "out_proj"), layer, made[0], made[0]))

    return hook


def _inside(name: str, last: str) -> str:
    return f"{name}.{last}".removeprefix(".")
