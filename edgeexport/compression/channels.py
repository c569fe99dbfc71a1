"""Channel groups: which channels of which layers live and die together, and the proof that they may.

Groups come from torch-pruning's dependency graph (Fang et al. 2023, arXiv:2301.12900). The rule: a group is believed
only after removing channels from it has been shown to give the zero-masked network, on random weights; what fails
that is named and left alone.
"""

from __future__ import annotations

import contextlib
import copy
import math
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from edgeexport.compression.heads import HEADS, find_heads, remove_heads
from edgeexport.compression.macs import is_attention, is_weighted, tensors
from edgeexport.compression.misfit import MISFIT, told
from edgeexport.errors import MissingExtra, ModelError

if TYPE_CHECKING:
    import numpy as np
    import torch

TOLERANCE = 1e-4
MOST_ITEMS = 30_000
STATISTICS = {"running_mean", "running_var"}


class Removal(NamedTuple):
    """Channels of the group that a layer names; of the kind "heads", heads of the attention whose queries it makes."""

    layer: str
    channels: tuple[int, ...]
    kind: str = ""


@dataclass(frozen=True)
class Member:
    """A layer of a group. `indices[c]`: which of its own indices go when channel c of the group goes."""

    layer: str
    side: Literal["out", "in", "norm"]
    indices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Coupled layers, named by the first one that makes their channels. `blocked`: why it must stay, or empty."""

    layer: str
    kind: str
    width: int
    members: tuple[Member, ...]
    blocked: str = ""
    crosses: tuple[str, ...] = ()


def trace(module: torch.nn.Module, example: Mapping[str, np.ndarray]) -> Any:
    """Return torch-pruning's DependencyGraph of the module (left in eval mode, all parameters requiring gradients).

    Raises ModelError for code that it cannot follow.
    """
    import torch

    try:
        import torch_pruning
    except ImportError:
        raise MissingExtra("torch-pruning", extra="export", purpose="pruning") from None
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        with torch.enable_grad():
            return torch_pruning.DependencyGraph().build_dependency(
                module.eval(), tensors(example), forward_fn=_outputs, verbose=False
            )
    except MISFIT as error:
        raise ModelError(
            f"torch-pruning cannot tell which channels of this network depend on each other ({_cause(error)})",
            next_step='leave "width" out of `parts`',
        ) from error


def _cause(error: Exception) -> str:
    """What torch-pruning could not follow. It adds up the channels of a concatenation, known or not."""
    if traceback.extract_tb(error.__traceback__)[-1].name == "update_concat_index_mapping":
        return "it cannot tell how many a torch.cat joins: an empty cache of keys and values (use_cache), say"
    return told(error)


def _outputs(module: Any, feeds: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Run the module; a product with one marks each output, which the graph would else not tell from its layer."""
    return [leaf * 1.0 for leaf in _flat(module(*feeds)) if leaf.requires_grad]


def find_groups(
    module: torch.nn.Module, example: Mapping[str, np.ndarray], *, locked: Sequence[str] = ()
) -> list[ChannelGroup]:
    """Return every channel group of the module, in the order of its layers; the module is not changed."""
    module = copy.deepcopy(module)
    graph = trace(module, example)
    names, shared = {layer: name for name, layer in module.named_modules()}, shared_weights(module)
    groups: list[ChannelGroup] = []
    seen: set[str] = set()
    for name, layer in module.named_modules():
        if name in seen or not is_weighted(layer) or layer not in graph.module2node:
            continue
        group = _read_group(graph, layer, names=names, locked=locked, shared=shared)
        seen.update(member.layer for member in group.members if member.side == "out")
        groups.append(group)
    return groups


def _read_group(
    graph: Any, layer: Any, *, names: Mapping[Any, str], locked: Sequence[str], shared: Collection[int]
) -> ChannelGroup:
    width = layer.weight.shape[0] if not getattr(layer, "transposed", False) else layer.out_channels
    try:
        items = _group(graph, layer, channels=range(width))
    except _Endless as error:
        return ChannelGroup(names[layer], type(layer).__name__, width, (), told(error))
    members: list[Member] = []
    blocked, crosses = "", []
    for item in items:
        node = item.dep.target
        side = _side(graph, item.dep)
        if node.module in names and side is not None:
            indices: list[list[int]] = [[] for _ in range(width)]
            for index, root in zip(item.idxs, item.root_idxs, strict=True):
                indices[root].append(index)
            members.append(Member(names[node.module], side, tuple(map(tuple, indices))))
        elif node.module not in names and "ElementWise" not in type(node.module).__name__:
            crosses.append(type(node.module).__name__.strip("_").removesuffix("Op").lower())
        blocked = blocked or _blocks(node, names=names, locked=locked, shared=shared, count=len(item.idxs))
    return ChannelGroup(
        layer=names[layer],
        kind=type(layer).__name__,
        width=width,
        members=tuple(members),
        blocked=blocked,
        crosses=tuple(dict.fromkeys(crosses)),
    )


class _Endless(ModelError):
    """A dependency group that grows and grows: the gates of FocalNet make one of millions of items."""


def _group(graph: Any, layer: Any, *, channels: Sequence[int]) -> Any:
    """The dependency group of removing these output channels of the layer. Raises _Endless."""
    handler = graph.get_pruner_of_module(layer).prune_out_channels
    with _quick_groups():
        return graph.get_pruning_group(layer, handler, list(channels))


@contextlib.contextmanager
def _quick_groups() -> Iterator[None]:
    """Have torch-pruning look up in a set what a group holds.

    It goes through a list for each item: the groups of MobileViTV2, of up to 6,645 items, took 30 s, and take 5 s so.
    """
    from torch_pruning.dependency import graph, group

    class Quick(group.Group):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._held: set[Any] = set()

        def add_dep(self, dep: Any, idxs: Any) -> None:
            super().add_dep(dep, idxs)
            self._held.add(_item(dep, idxs))
            if len(self._held) > MOST_ITEMS:
                raise _Endless("slices of them are mixed with each other")

        def has_pruning_op(self, dep: Any, idxs: Any) -> bool:
            return _item(dep, idxs) in self._held

    plain, graph.Group = graph.Group, Quick
    try:
        yield
    finally:
        graph.Group = plain


def _item(dep: Any, indices: Sequence[Any]) -> tuple[Any, ...]:
    return id(dep.target), dep.handler, tuple(indices)


def _side(graph: Any, dep: Any) -> Literal["out", "in", "norm"] | None:
    import torch

    layer = dep.target.module
    if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
        return "norm"
    if not is_weighted(layer):
        return None
    # A depthwise convolution removes both sides at once; what it makes is what counts.
    return "out" if graph.get_pruner_of_module(layer).prune_out_channels == dep.handler else "in"


def shared_weights(module: torch.nn.Module) -> frozenset[int]:
    """Return the ids of parameters that more than one layer holds."""
    held = Counter(id(value) for layer in module.modules() for value in layer.parameters(recurse=False))
    return frozenset(value for value, count in held.items() if count > 1)


def _blocks(node: Any, *, names: Mapping[Any, str], locked: Sequence[str], shared: Collection[int], count: int) -> str:
    """Say why a node of the dependency graph keeps its group from being pruned at all, or nothing.

    count: how many of its channels belong to the group.
    """
    import torch

    layer = node.module
    name = names.get(layer, "")
    if name in locked:
        return f"`{name}` is locked"
    groups, transposed = getattr(layer, "groups", 1), getattr(layer, "transposed", False)
    if groups > 1 and (transposed or not groups == layer.in_channels == layer.out_channels):
        return f"`{name}` is a grouped {'transposed ' * transposed}convolution (groups={groups})"
    # What stands alone in a network (a class token) is a node of its own: a parameter, not a layer.
    held = layer.parameters(recurse=False) if isinstance(layer, torch.nn.Module) else ()
    if any(id(value) in shared for value in held):
        return f"`{name}` shares its weights with another layer"
    if is_attention(layer):
        return f"`{name}` is an nn.MultiheadAttention, whose heads would get another size"
    if type(layer).__name__ == "_OutputOp":
        return "its channels are an output of the model"
    padded = "its channels pass a shortcut that pads new ones with zeros (F.pad), whose count the code fixes"
    return padded if _pads_channels(node, count=count) else ""


def _pads_channels(node: Any, *, count: int) -> bool:
    """Whether a node adds channels to the `count` that come in: it pads axis 1, and that axis holds them."""
    if "ConstantPad" not in _gradient_name(node):
        return False
    made, padding = node.grad_fn._input_metadata[0].shape, node.grad_fn._saved_pad
    # F.pad lists pairs from the last axis back.
    pair = padding[2 * (len(made) - 2) :][:2] if len(made) > 1 else ()
    return any(pair) and made[1] - sum(pair) == count


def _gradient_name(node: Any) -> str:
    return "" if node.grad_fn is None else str(node.grad_fn.name())


def remove(module: torch.nn.Module, removals: Sequence[Removal], *, example: Mapping[str, np.ndarray]) -> None:
    """Remove heads, then channels, group after group, in place. Raises ModelError if one drags in more than asked."""
    for group, heads in _heads_of(module, removals, example=example):
        remove_heads(module, group, heads=heads)
    graph = trace(module, example)
    layers = dict(module.named_modules())
    for name, channels, kind in removals:
        if kind == HEADS:
            continue
        group = _group(graph, layers[name], channels=channels)
        if sorted(group[0].idxs) != sorted(channels):
            raise ModelError(f"`{name}`: removing channels {list(channels)} would remove {sorted(group[0].idxs)}")
        group.prune(record_history=False)


def mask(module: torch.nn.Module, removals: Sequence[Removal], *, example: Mapping[str, np.ndarray]) -> None:
    """Zero, in place, every weight that reads a removed channel or head: it stays, and contributes nothing."""
    layers = dict(module.named_modules())
    for group, heads in _heads_of(module, removals, example=example):
        for member in group.members:
            if member.side == "in":
                _silence(layers[member.layer], [index for head in heads for index in member.indices[head]])
    graph = trace(module, example)
    for name, channels, kind in removals:
        if kind == HEADS:
            continue
        for item in _group(graph, layers[name], channels=channels):
            if _side(graph, item.dep) == "in":
                _silence(item.dep.target.module, item.idxs)


def _heads_of(
    module: torch.nn.Module, removals: Sequence[Removal], *, example: Mapping[str, np.ndarray]
) -> list[tuple[ChannelGroup, tuple[int, ...]]]:
    asked = {removal.layer: removal.channels for removal in removals if removal.kind == HEADS}
    found = find_heads(module, example) if asked else []
    return [(group, asked[group.layer]) for group in found if group.layer in asked]


def _silence(layer: Any, channels: Sequence[int]) -> None:
    import torch

    axis = 0 if getattr(layer, "transposed", False) else 1
    with torch.no_grad():
        layer.weight.index_fill_(axis, torch.tensor(channels), 0.0)


def disproof(module: torch.nn.Module, example: Mapping[str, np.ndarray], *, removals: Sequence[Removal]) -> str:
    """Return why removing these channels does not give the zero-masked network; empty if it does.

    Both are made from a copy with random weights, so that a dead channel cannot hide a wrong index, and compared on
    noise: outputs may differ by 1e-4 of their largest value.
    """
    import torch

    original, feeds = _scrambled(module), _noise(example)
    try:
        pruned, masked = copy.deepcopy(original), copy.deepcopy(original)
        mask(masked, removals, example=example)
        remove(pruned, removals, example=example)
        with torch.no_grad():
            got, wanted = _flat(pruned(*feeds)), _flat(masked(*feeds))
    except MISFIT as error:
        return f"`forward` does not allow it ({told(error)})"
    for one, other in zip(got, wanted, strict=True):
        if one.shape != other.shape:
            return f"an output would change its shape from {tuple(other.shape)} to {tuple(one.shape)}"
        error_size, scale = float((one - other).abs().max()), float(other.abs().max())
        if not math.isfinite(error_size) or error_size > TOLERANCE * scale:
            return f"the result differs from the zero-masked network by {error_size / (scale or 1.0):.2g} of its range"
    return ""


def _scrambled(module: torch.nn.Module) -> torch.nn.Module:
    import torch

    module = copy.deepcopy(module).eval()
    random = torch.Generator().manual_seed(0)
    # Other buffers are constants: filters, windows, masks.
    statistics = [(name, tensor) for name, tensor in module.named_buffers() if name.rpartition(".")[2] in STATISTICS]
    for name, tensor in [*module.named_parameters(), *statistics]:
        if not tensor.is_floating_point():
            continue
        leaf = name.rpartition(".")[2]
        if tensor.ndim > 1:
            values = torch.randn(tensor.shape, generator=random) * math.sqrt(2 * tensor.shape[0] / tensor.numel())
        elif leaf in ("weight", "running_var"):
            values = 0.5 + torch.rand(tensor.shape, generator=random)
        elif leaf in ("bias", "running_mean"):
            values = 0.1 * torch.randn(tensor.shape, generator=random)
        else:
            continue
        with torch.no_grad():
            tensor.copy_(values)
    return module


def _noise(example: Mapping[str, np.ndarray]) -> list[torch.Tensor]:
    import torch

    random = torch.Generator().manual_seed(1)
    return [x + torch.randn(x.shape, generator=random) if x.is_floating_point() else x for x in tensors(example)]


def _flat(outputs: Any) -> list[torch.Tensor]:
    from torch.utils import _pytree

    return [leaf for leaf in _pytree.tree_leaves(outputs) if hasattr(leaf, "shape")]
