"""What a network costs while parts of it go: multiply-accumulates, bytes, or time, without touching a weight.

The rule: a cost is the sum of what its layers cost by their widths, plus what no pruning changes; so a plan can be
priced before anything is built or measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeexport.compression.macs import layer_of, positions, weight_of
from edgeexport.records.latency import Basis
from edgeexport.records.pruning import GoalName

if TYPE_CHECKING:
    import numpy as np
    import torch

    from edgeexport.compression.channels import ChannelGroup

MB = 1e6


@dataclass(frozen=True)
class Price:
    """One cost. layer: name, (outputs, inputs of each group of channels) -> its share; `fixed` stays whatever goes.

    basis, table: how it is known, and the digest of the table that it is read from.
    """

    goal: GoalName
    unit: str
    basis: Basis
    layer: Callable[[str, tuple[int, int]], float]
    fixed: float = 0.0
    table: str = ""


def macs_price(module: torch.nn.Module, example: Mapping[str, np.ndarray]) -> Price:
    """Multiply-accumulates of one sample."""
    areas = {name: count * kernel_area(module, name) for name, count in positions(module, example).items()}
    return Price("macs", "MACs", "predicted", lambda name, size: areas[name] * size[0] * size[1])


def size_price(
    module: torch.nn.Module,
    example: Mapping[str, np.ndarray],
    *,
    int8: bool,
    total_mb: float = 0,
    floats: Collection[str] = (),
) -> Price:
    """Megabytes of weights in the file that ships: a byte each and a scale per channel in int8, else four bytes.

    total_mb: what the present network's file takes, where one was built; what its layers do not explain stays. floats:
    layers left in float where others are int8.
    """
    names = list(positions(module, example))
    areas = {name: kernel_area(module, name) for name in names}

    def layer(name: str, size: tuple[int, int]) -> float:
        outputs, weights = size[0], areas[name] * size[0] * size[1]
        small = int8 and name not in floats
        return (weights + 9 * outputs if small else 4 * weights + 4 * outputs) / MB

    known = {id(value) for name in names for value in layer_of(module, name).parameters(recurse=False)}
    others = 4 * sum(value.numel() for value in module.parameters() if id(value) not in known) / MB
    explained = sum(layer(name, widths_of(module, name)) for name in names)
    fixed = max(total_mb - explained, 0.0) if total_mb else others
    return Price("max_size_mb", "MB", "predicted", layer, fixed=fixed)


def widths_of(module: torch.nn.Module, name: str) -> tuple[int, int]:
    """Return how many channels a layer makes, and how many it reads in each of its groups."""
    rows, columns = (int(size) for size in weight_of(module, name).shape[:2])
    return (columns, rows) if getattr(layer_of(module, name), "transposed", False) else (rows, columns)


def kernel_area(module: torch.nn.Module, name: str) -> int:
    """Return how many taps a layer's kernel has; 1 for a linear layer."""
    return int(math.prod(int(size) for size in weight_of(module, name).shape[2:]))


class Ledger:
    """Costs of the network as planned so far, by several prices at once."""

    def __init__(self, module: torch.nn.Module, names: Iterable[str], *, prices: Sequence[Price]) -> None:
        """`names`: the layers that cost anything."""
        self._prices = prices
        self._widths = {name: list(widths_of(module, name)) for name in names}
        self._gone: set[str] = set()
        self._totals = [price.fixed + sum(self._costs(price, self._widths)) for price in prices]

    @property
    def totals(self) -> tuple[float, ...]:
        """What the network costs now, one figure for each price."""
        return tuple(self._totals)

    def cut(self, group: ChannelGroup, channels: Collection[int], *, sign: int = -1) -> tuple[float, ...]:
        """Take `channels` of the group away (sign 1 puts them back); return what that saves by each price."""
        members = [member for member in group.members if member.side != "norm" and member.layer in self._widths]
        touched = {member.layer for member in members}
        before = [sum(self._costs(price, touched)) for price in self._prices]
        for member in members:
            axis = 0 if member.side == "out" else 1
            self._widths[member.layer][axis] += sign * sum(len(member.indices[channel]) for channel in channels)
        return self._booked(before, touched)

    def saving(self, group: ChannelGroup, channels: Collection[int]) -> tuple[float, ...]:
        """What removing `channels` would save, by each price."""
        saved = self.cut(group, channels)
        self.cut(group, channels, sign=1)
        return saved

    def skip(self, layers: Collection[str]) -> tuple[float, ...]:
        """Take whole layers away; return what that saves by each price."""
        touched = {name for name in layers if name in self._widths}
        before = [sum(self._costs(price, touched)) for price in self._prices]
        self._gone |= touched
        return self._booked(before, touched)

    def saving_of_skip(self, layers: Collection[str]) -> tuple[float, ...]:
        """What taking whole layers away would save, by each price."""
        kept, totals = set(self._gone), list(self._totals)
        saved = self.skip(layers)
        self._gone, self._totals = kept, totals
        return saved

    def _costs(self, price: Price, names: Iterable[str]) -> list[float]:
        alive = [name for name in names if name not in self._gone and min(self._widths[name]) > 0]
        return [price.layer(name, (self._widths[name][0], self._widths[name][1])) for name in alive]

    def _booked(self, before: Sequence[float], touched: Collection[str]) -> tuple[float, ...]:
        after = [sum(self._costs(price, touched)) for price in self._prices]
        saved = tuple(one - other for one, other in zip(before, after, strict=True))
        self._totals = [total - less for total, less in zip(self._totals, saved, strict=True)]
        return saved
