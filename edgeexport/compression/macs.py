"""Multiply-accumulates of one sample, counted by our own hooks on convolutions and linear layers.

The rule: a layer costs its weight's size times the number of positions it is applied at, so a plan can be priced
without running the pruned network. Biases, norms, activations and products of two activations are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch


def tensors(example: Mapping[str, np.ndarray]) -> tuple[torch.Tensor, ...]:
    """Return the arrays of an example as tensors, in order."""
    import torch

    return tuple(torch.from_numpy(array.copy()) for array in example.values())


def count_macs(module: torch.nn.Module, example: Mapping[str, np.ndarray]) -> int:
    """Return the multiply-accumulates of one sample of `example` (batch axis first)."""
    layers = dict(module.named_modules())
    return sum(count * layers[name].weight.numel() for name, count in positions(module, example).items())


def positions(module: torch.nn.Module, example: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return for each convolution and linear layer how often its weight is applied to one sample.

    That is the number of output pixels (input pixels of a transposed convolution) or of rows, over all its calls.
    """
    import torch

    counts: dict[str, int] = {}
    feeds = tensors(example)
    hooks = [
        layer.register_forward_hook(_counter(name, counts))
        for name, layer in module.named_modules()
        if is_weighted(layer)
    ]
    try:
        with torch.no_grad():
            module(*feeds)
    finally:
        for hook in hooks:
            hook.remove()
    batch = feeds[0].shape[0]
    return {name: count // batch for name, count in counts.items()}


def is_weighted(layer: torch.nn.Module) -> bool:
    """Say whether the layer is one whose multiplications are counted, and whose width can be planned."""
    import torch

    return isinstance(layer, torch.nn.modules.conv._ConvNd | torch.nn.Linear)


def _counter(name: str, counts: dict[str, int]) -> Any:
    def hook(layer: Any, *flow: Any) -> None:
        inputs, output = flow
        tensor = inputs[0] if getattr(layer, "transposed", False) else output
        channels = tensor.shape[1] if hasattr(layer, "kernel_size") else tensor.shape[-1]
        counts[name] = counts.get(name, 0) + tensor.numel() // channels

    return hook
