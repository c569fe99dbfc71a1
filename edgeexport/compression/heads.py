"""Attention heads: which rows of queries, keys and values, and which columns of the projection after them, are one.

The rule: a head goes only where the layout is the common one (three linear layers, heads of equal size one behind the
other, one linear layer that reads them), and `channels.disproof` has shown that the network without it is the one with
it silenced. Other layouts (nn.MultiheadAttention, one layer for all three) are named and left alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeexport.compression.macs import Call, is_attention, is_weighted, observe

if TYPE_CHECKING:
    import numpy as np
    import torch

    from edgeexport.compression.channels import ChannelGroup

HEADS = "heads"
# What the three projections are called, and the attributes that hold their number of heads.
NAMES = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("to_q", "to_k", "to_v"),
)
# What one layer is called that makes all three, or two of them.
FUSED = (
    "qkv", "wqkv", "qkv_proj", "to_qkv", "c_attn", "query_key_value", "queries_keys_values",
    "kv", "kv_proj", "to_kv",
)  # fmt: skip
COUNTS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "heads")
WIDTHS = ("all_head_size", "inner_dim")
SIZES = ("attention_head_size", "head_dim", "head_size")


def find_heads(
    module: torch.nn.Module, example: Mapping[str, np.ndarray], *, locked: Sequence[str] = ()
) -> list[ChannelGroup]:
    """Return a group for each attention, its `kind` "heads" and a channel for each head; `blocked` where they stay."""
    from edgeexport.compression.channels import ChannelGroup, shared_weights

    calls, shared = _calls(module, example), shared_weights(module)
    groups: list[ChannelGroup] = []
    groups += [ChannelGroup(name, HEADS, count, (), blocked=why) for name, count, why in _others(module)]
    for name, attention, layers in _attentions(module):
        names = [f"{name}.{layer}" if name else layer for layer in layers]
        found = _projections(module, attention, names=names, calls=calls)
        if isinstance(found, str):
            groups.append(ChannelGroup(names[0], HEADS, 0, (), blocked=found))
            continue
        count, after = found
        held = next((each for each in (name, *names, after) if each in locked), "")
        blocked = f"`{held}` is locked" if held else _tied(module, (*names, after), shared=shared)
        groups.append(_group(names, after, count=count, width=_width(module, names[0]), blocked=blocked))
    return groups


def _attentions(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, tuple[str, ...]]]:
    """Every module with three linear children by one of the known sets of names."""
    import torch

    for name, inner in module.named_modules():
        for names in NAMES:
            if all(isinstance(getattr(inner, each, None), torch.nn.Linear) for each in names):
                yield name, inner, names
                break


def _others(module: torch.nn.Module) -> Iterator[tuple[str, int, str]]:
    """Attentions of other layouts: (name, number of heads or 0, why their heads stay)."""
    found = [name for name, _, _ in _attentions(module)]
    for name, inner in module.named_modules():
        fused = next((child for child, _ in inner.named_children() if child.lower() in FUSED), "")
        if is_attention(inner):
            yield (
                name,
                _count(inner, 0) or 0,
                "nn.MultiheadAttention wants heads that are as wide together as its input",
            )
        elif fused:
            why = "it makes several of queries, keys and values in one, in an order of heads that is its own"
            yield f"{name}.{fused}".removeprefix("."), _count(inner, 0) or 0, why
        if is_attention(inner) or fused:
            found.append(name)
    for name, inner in module.named_modules():
        count, inside = _count(inner, 0) or 0, f"{name}." if name else ""
        known = any(each == name or each.startswith(inside) for each in found)
        if count > 1 and not known and any(is_weighted(child) for child in inner.children()):
            why = f"it says that it has {count} heads, but no three linear layers for them by names known here"
            yield name or type(inner).__name__, count, why


def _calls(module: torch.nn.Module, example: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the linear layers in the order in which `forward` calls them."""
    import torch

    order: list[str] = []

    def note(call: Call) -> None:
        if isinstance(call.layer, torch.nn.Linear):
            order.append(call.name)

    observe(module, example, tell=note)
    return order


def _projections(
    module: torch.nn.Module, attention: torch.nn.Module, *, names: Sequence[str], calls: Sequence[str]
) -> tuple[int, str] | str:
    """(number of heads, the layer that reads them), or why the heads of this attention must stay."""
    widths = {_width(module, each) for each in names}
    if len(widths) > 1:
        return f"queries, keys and values have different widths {sorted(widths)} (heads share keys)"
    width = widths.pop()
    count = _count(attention, width)
    if count is None or count < 2 or width % count:
        return "its number of heads is not to be found" if not count else "it has one head"
    if any(calls.count(each) != 1 for each in names):
        return "its projections are not called exactly once"
    last = max(calls.index(each) for each in names)
    after = next((each for each in calls[last + 1 :] if module.get_submodule(each).in_features == width), None)
    return "no linear layer reads its heads" if after is None else (count, after)


def _tied(module: torch.nn.Module, names: Sequence[str], *, shared: Collection[int]) -> str:
    """Why heads of tied layers stay: cut, each of the layers would have weights of its own."""
    layers = ((name, module.get_submodule(name)) for name in names)
    tied = (name for name, layer in layers if any(id(value) in shared for value in layer.parameters(recurse=False)))
    return next((f"`{name}` shares its weights with another layer" for name in tied), "")


def _width(module: torch.nn.Module, name: str) -> int:
    layer: Any = module.get_submodule(name)
    return int(layer.out_features)


def _count(attention: Any, width: int) -> int | None:
    """The number of heads that a module says it has; of none but their size, how many there are."""
    for name in COUNTS:
        value = getattr(attention, name, None)
        if isinstance(value, int):
            return value
    sizes = (getattr(attention, name, None) for name in SIZES)
    return next((width // size for size in sizes if isinstance(size, int) and size > 0), None)


def _group(names: Sequence[str], after: str, *, count: int, width: int, blocked: str) -> ChannelGroup:
    from edgeexport.compression.channels import ChannelGroup, Member

    size = width // count
    indices = tuple(tuple(range(head * size, (head + 1) * size)) for head in range(count))
    members = tuple(Member(name, "out", indices) for name in names)
    return ChannelGroup(names[0], HEADS, count, (*members, Member(after, "in", indices)), blocked)


def remove_heads(module: torch.nn.Module, group: ChannelGroup, *, heads: Sequence[int]) -> None:
    """Cut heads out of their layers, in place, and correct what the attention says of its number and width."""
    for member in group.members:
        gone = {index for head in heads for index in member.indices[head]}
        layer = module.get_submodule(member.layer)
        _cut(layer, gone, axis=0 if member.side == "out" else 1)
    attention: Any = module.get_submodule(group.layer.rpartition(".")[0])
    width = module.get_submodule(group.layer).out_features
    for name, value in [*((each, group.width - len(heads)) for each in COUNTS), *((each, width) for each in WIDTHS)]:
        if isinstance(getattr(attention, name, None), int):
            setattr(attention, name, value)


def _cut(layer: Any, gone: set[int], *, axis: int) -> None:
    import torch

    keep = torch.tensor([index for index in range(layer.weight.shape[axis]) if index not in gone])
    layer.weight = torch.nn.Parameter(layer.weight.detach().index_select(axis, keep), layer.weight.requires_grad)
    if axis == 0:
        layer.out_features = len(keep)
        if layer.bias is not None:
            layer.bias = torch.nn.Parameter(layer.bias.detach()[keep], layer.bias.requires_grad)
    else:
        layer.in_features = len(keep)
