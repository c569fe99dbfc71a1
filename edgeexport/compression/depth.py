"""Depth: whole blocks (residual blocks, encoder layers) that the network can do without.

The rule: a block is a member of a sequence or list of modules that adds to what it reads: with its layers silenced it
gives back its input, shape and all. Skipping puts a module without weights in its place, so every other name stays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeexport.compression.macs import is_attention, is_weighted, tensors, unfused, weighted_names
from edgeexport.compression.misfit import MISFIT, told
from edgeexport.errors import ModelError
from edgeexport.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    import torch

    Example = Mapping[str, np.ndarray]

# What a silenced block gives back: its input, up to this correlation, and to this factor in size. Layer norms behind
# the addition, as in BERT, move each value a little.
ALIKE, FACTOR = 0.5, 1.5
NO_BLOCK = "silenced, it does not give back its input"


@dataclass(frozen=True)
class Block:
    """A block by its name, and what is counted of it (`macs.weighted_names`). `blocked`: why it must stay, or empty."""

    name: str
    kind: str
    layers: tuple[str, ...]
    blocked: str = ""


@unfused()
def find_blocks(module: torch.nn.Module, example: Example, *, locked: Sequence[str] = ()) -> list[Block]:
    """Return the innermost blocks of a module that give back their input when silenced; the module is not changed.

    Those that are called several times, or give back several values, are `blocked`; what is no block is left out.
    """
    flows = _flows(module, example)
    found: list[Block] = []
    for name, inner in reversed(list(_members(module))):
        layers = tuple(f"{name}.{each}" for each in weighted_names(inner) if each)
        outer = any(other.name.startswith(f"{name}.") and not other.blocked for other in found)
        if not layers or outer or name not in flows:
            continue
        reason = _refusal(inner, flows[name]) or _misfit(module, name, flow=flows[name], example=example)
        held = next((each for each in (name, *layers) if each in locked), "")
        if reason != NO_BLOCK:
            found.append(Block(name, type(inner).__name__, layers, f"`{held}` is locked" if held else reason))
    return found[::-1]


def _members(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Every module that stands in a sequence or list, is more than one layer, and is not skipped already."""
    import torch

    rows = [
        (f"{name}.", inner)
        for name, inner in module.named_modules()
        if isinstance(inner, torch.nn.Sequential | torch.nn.ModuleList)
    ]
    for name, inner in rows:
        for number, child in inner.named_children():
            if any(True for _ in child.children()):
                yield f"{name}{number}".removeprefix("."), child


@dataclass(frozen=True)
class _Flow:
    """One call of a module: its arguments, and what came out."""

    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    output: Any


@unfused()
def _flows(module: torch.nn.Module, example: Example) -> dict[str, _Flow | str]:
    """What each member of a sequence or list is called with; why it cannot be skipped, where that is plain."""
    import torch

    found: dict[str, _Flow | str] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: Any, *call: Any) -> None:
            arguments, named, output = call
            found[name] = "it is called more than once" if name in found else _Flow(arguments, named, output)

        return hook

    hooks = [inner.register_forward_hook(watch(name), with_kwargs=True) for name, inner in _members(module)]
    try:
        with torch.no_grad():
            module.eval()(*tensors(example))
    finally:
        for handle in hooks:
            handle.remove()
    return found


def _refusal(inner: torch.nn.Module, flow: _Flow | str) -> str:
    """Why a module is no block that can be skipped; empty if it is one."""
    import torch

    if isinstance(flow, str):
        return flow
    given, made = first(flow.arguments, flow.named), flow.output
    if isinstance(made, tuple) and len(made) > 1:
        return f"it gives back {len(made)} values"
    made = made[0] if isinstance(made, tuple) else made
    if not (isinstance(given, torch.Tensor) and isinstance(made, torch.Tensor) and given.shape == made.shape):
        return NO_BLOCK
    with _silenced(inner), torch.no_grad():
        left = inner(*flow.arguments, **flow.named)
    left = left[0] if isinstance(left, tuple) else left
    flat, wanted = left.double().flatten(), given.double().flatten()
    sizes = float(flat.norm()), float(wanted.norm())
    if min(sizes) == 0 or not 1 / FACTOR < sizes[0] / sizes[1] < FACTOR:
        return NO_BLOCK
    alike = float(flat @ wanted) / (sizes[0] * sizes[1])
    return "" if alike > ALIKE else NO_BLOCK


def _misfit(module: torch.nn.Module, name: str, *, flow: _Flow | str, example: Example) -> str:
    """Why the code around a block does not run without it; empty if it does. The module is put back."""
    import torch

    outer, _, last = name.rpartition(".")
    parent, block = module.get_submodule(outer), module.get_submodule(name)
    setattr(parent, last, _stand_in(block, flow))
    try:
        with torch.no_grad():
            module(*tensors(example))
    except MISFIT as error:
        return f"`forward` does not allow it ({told(error)})"
    finally:
        setattr(parent, last, block)
    return ""


class _silenced:  # noqa: N801 # a context manager, used like a function
    """All weighted layers, attentions and batch norms of a module give zero inside."""

    def __init__(self, module: torch.nn.Module) -> None:
        from torch import nn

        norms = nn.modules.batchnorm._BatchNorm
        self._layers = [
            layer for layer in module.modules() if is_weighted(layer) or is_attention(layer) or isinstance(layer, norms)
        ]
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        self._handles = [layer.register_forward_hook(_zeroed) for layer in self._layers]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _zeroed(_: Any, *flow: Any) -> Any:
    made = flow[1]
    return (made[0] * 0.0, *made[1:]) if isinstance(made, tuple) else made * 0.0


def first(arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Return the first argument of a call, given by place or by name."""
    return arguments[0] if arguments else next(iter(named.values()), None)


@functools.cache
def _skip_type() -> Any:
    import torch

    class Skip(torch.nn.Module):
        """Gives back its first argument, in a tuple of one if the block it stands for did so."""

        def __init__(self, wrapped: bool, *, kept: Mapping[str, Any]) -> None:
            super().__init__()
            vars(self).update(kept)
            self.wrapped = wrapped

        def forward(self, *arguments: Any, **named: Any) -> Any:
            """Return the first argument."""
            given = first(arguments, named)
            return (given,) if self.wrapped else given

    Skip.__qualname__ = "Skip"  # where `__getattr__` has it: a network with blocks skipped can be pickled
    return Skip


def __getattr__(name: str) -> Any:
    """Return the class `Skip`, which needs torch to exist."""
    if name == "Skip":
        return _skip_type()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _stand_in(block: torch.nn.Module, flow: _Flow | str) -> torch.nn.Module:
    """What takes a block's place; it has the plain values that code around may ask a block for (its kind, say)."""
    plain = (str, int, float, bool)
    kept = {name: value for name, value in vars(block).items() if name[0] != "_" and isinstance(value, plain)}
    stand_in: torch.nn.Module = _skip_type()(isinstance(flow, _Flow) and isinstance(flow.output, tuple), kept=kept)
    return stand_in


def skip(module: torch.nn.Module, names: Iterable[str], *, example: Example) -> None:
    """Put a module without weights in the place of each block, in place. Raises ModelError for what is no block."""
    names = list(names)
    flows = _flows(module, example) if names else {}
    for name in names:
        flow = flows.get(name)
        if not isinstance(flow, _Flow):
            raise ModelError(
                f"the pruning plan does not fit: `{name}` is no block that can be skipped ({flow or 'no such module'})",
                next_step="apply it to the network it was made for, before any other pruning",
            )
        outer, _, last = name.rpartition(".")
        setattr(module.get_submodule(outer), last, _stand_in(module.get_submodule(name), flow))


@unfused()
def effects(
    module: torch.nn.Module, blocks: Sequence[Block], *, samples: Sequence[Example], progress: Progress = silent
) -> dict[str, float]:
    """Return for each block how far the first output moves when it alone is skipped: a share of its size, 0 to 1.

    That is |difference|^2 over |output|^2 + |difference|^2, mean over samples.
    """
    import torch

    every = [tensors(sample) for sample in samples]
    module.eval()
    found = {}
    with torch.no_grad():
        before = [_first_of(module(*feeds)) for feeds in every]
        for index, block in enumerate(blocks):
            progress(f"skip block {index + 1} of {len(blocks)}", index / len(blocks))
            handle = module.get_submodule(block.name).register_forward_hook(_pass_on, with_kwargs=True)
            try:
                after = [_first_of(module(*feeds)) for feeds in every]
            finally:
                handle.remove()
            moved = [float((one - other).norm() ** 2) for one, other in zip(before, after, strict=True)]
            sizes = [float(one.norm() ** 2) for one in before]
            shares = [gone / max(size + gone, 1e-30) for gone, size in zip(moved, sizes, strict=True)]
            found[block.name] = sum(shares) / len(shares)
    return found


def _pass_on(_: Any, *call: Any) -> Any:
    arguments, named, output = call
    given = first(arguments, named)
    return (given,) if isinstance(output, tuple) else given


def _first_of(outputs: Any) -> torch.Tensor:
    from torch.utils import _pytree

    leaf: torch.Tensor = next(leaf for leaf in _pytree.tree_leaves(outputs) if hasattr(leaf, "shape"))
    return leaf.double()
