"""Time by the table: which layers of a network to time and at which widths, and what the network then takes.

The rule: everything here is arithmetic on a stored table. What times the layers is handed their shapes and knows
nothing of networks; between two widths of the grid costs are interpolated, below the least one they do not fall.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edgeexport.compression.macs import Call, observe
from edgeexport.compression.price import Price, widths_of
from edgeexport.records.base import digest
from edgeexport.records.latency import LatencyTable, LayerCost, LayerShape, ShapeCosts

if TYPE_CHECKING:
    import numpy as np
    import torch

    from edgeexport.compression.channels import ChannelGroup

# Of each axis of a layer at most so many widths are timed.
MOST_WIDTHS = 8
# What kernels compute in one go: where nothing was timed, a width costs as much as the next multiple of this.
LANES = 16


@dataclass(frozen=True)
class Grid:
    """What to time of one shape: every pair of these widths. A depthwise layer has as many inputs as outputs."""

    shape: LayerShape
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def points(self) -> list[tuple[int, int]]:
        """(inputs, outputs), in order."""
        if self.shape.kind == "depthwise":
            return [(width, width) for width in self.outputs]
        return [(inputs, outputs) for inputs in self.inputs for outputs in self.outputs]


def layer_shapes(
    module: torch.nn.Module, example: Mapping[str, np.ndarray], *, floats: Collection[str] = ()
) -> dict[str, tuple[LayerShape, ...]]:
    """Return for each convolution and linear layer the shapes it is applied at, one for each call.

    floats: the layers that are left in float where others are int8.
    """
    found: dict[str, tuple[LayerShape, ...]] = {}

    def note(call: Call) -> None:
        shape = msgspec.structs.replace(_shape(call.layer, call.given.shape), in_float=call.name in floats)
        found[call.name] = (*found.get(call.name, ()), shape)

    observe(module, example, tell=note)
    return found


def _shape(layer: Any, size: Sequence[int]) -> LayerShape:
    if not hasattr(layer, "kernel_size"):
        return LayerShape("linear", (math.prod(size[:-1]),))
    kind: Literal["conv", "depthwise", "transposed"] = "transposed" if layer.transposed else "conv"
    if kind == "conv" and layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:
        kind = "depthwise"
    kernel, dilation = tuple(layer.kernel_size), tuple(layer.dilation)
    padding = layer.padding
    if isinstance(padding, str):
        same = padding == "same"
        padding = tuple((one - 1) * far // 2 if same else 0 for one, far in zip(kernel, dilation, strict=True))
    groups = 1 if kind == "depthwise" else int(layer.groups)
    return LayerShape(kind, tuple(size[2:]), kernel, tuple(layer.stride), tuple(padding), dilation, groups)


def grids(
    module: torch.nn.Module,
    example: Mapping[str, np.ndarray],
    *,
    groups: Iterable[ChannelGroup],
    step: int,
    floats: Collection[str] = (),
) -> list[Grid]:
    """Return what a plan may ask of a table: each shape with the widths that its layers may have.

    groups: those that may be cut, each to multiples of `step` channels; other widths stay what they are. floats: as for
    `layer_shapes`.
    """
    steps: dict[tuple[str, int], int] = {}
    for group in groups:
        unit = 1 if group.kind == "heads" else min(step, group.width)
        for member in group.members:
            if member.side != "norm":
                key = (member.layer, 0 if member.side == "out" else 1)
                steps[key] = unit * max(len(indices) for indices in member.indices)
    wanted: dict[LayerShape, tuple[set[int], set[int]]] = {}
    for name, shapes in layer_shapes(module, example, floats=floats).items():
        outputs, inputs = widths_of(module, name)
        for shape in shapes:
            both, whole = wanted.setdefault(shape, (set(), set())), _whole(shape, outputs=outputs, inputs=inputs)
            both[0].update(_widths(whole[0], steps.get((name, 1))))
            both[1].update(_widths(whole[1], steps.get((name, 0))))
    return [Grid(shape, tuple(sorted(both[0])), tuple(sorted(both[1]))) for shape, both in wanted.items()]


def _widths(present: int, step: int | None) -> list[int]:
    """The present width, and where it may be cut, multiples of `step` below it, thinned out evenly."""
    if step is None or step >= present:
        return [present]
    wide = step * math.ceil(present / step / MOST_WIDTHS)
    return sorted({step, present, *range(wide, present, wide)})


class Times:
    """A table to read costs from."""

    def __init__(self, table: LatencyTable) -> None:
        self._grids = {entry.shape: _matrix(entry) for entry in table.shapes}

    def cost(self, shape: LayerShape, *, inputs: int, outputs: int) -> float:
        """Return what a layer costs, interpolated. Raises KeyError for a shape that is not in the table."""
        rows, columns, costs = self._grids[shape]
        low, high, share = _between(rows, rows[0] if shape.kind == "depthwise" else inputs)
        first, second = (_along(columns, costs[index], width=outputs) for index in (low, high))
        return first + share * (second - first)


def _matrix(entry: ShapeCosts) -> tuple[list[int], list[int], list[list[float]]]:
    if entry.shape.kind == "depthwise":
        known = {(0, point.outputs): point.cost for point in entry.costs}
    else:
        known = {(point.inputs, point.outputs): point.cost for point in entry.costs}
    rows, columns = (sorted({pair[axis] for pair in known}) for axis in (0, 1))
    return rows, columns, [[known[row, column] for column in columns] for row in rows]


def _along(grid: Sequence[int], costs: Sequence[float], *, width: int) -> float:
    low, high, share = _between(grid, width)
    return costs[low] + share * (costs[high] - costs[low])


def _between(grid: Sequence[int], width: int) -> tuple[int, int, float]:
    """The neighbours of a width in the grid, and how far it lies from the first to the second."""
    at = bisect.bisect_left(grid, width)
    if at == 0 or at == len(grid):
        edge = min(at, len(grid) - 1)
        return edge, edge, 0.0
    if grid[at] == width:
        return at, at, 0.0
    return at - 1, at, (width - grid[at - 1]) / (grid[at] - grid[at - 1])


def latency_price(
    module: torch.nn.Module,
    example: Mapping[str, np.ndarray],
    *,
    table: LatencyTable,
    total: float | None = None,
    floats: Collection[str] = (),
) -> Price:
    """Return the price of time. total: what the whole network was measured to take, in the table's unit.

    What the table does not explain of it (additions, pooling, quantizing) is shared out by how much each layer writes,
    and falls with that; where the table explains too much, all its costs shrink alike.
    """
    times, shapes = Times(table), layer_shapes(module, example, floats=floats)
    widths = {name: widths_of(module, name) for name in shapes}

    @functools.cache
    def known(name: str, size: tuple[int, int]) -> float:
        every = ((shape, *_whole(shape, outputs=size[0], inputs=size[1])) for shape in shapes[name])
        return sum(times.cost(shape, inputs=inputs, outputs=outputs) for shape, inputs, outputs in every)

    explained = sum(known(name, widths[name]) for name in shapes)
    rest = 0.0 if total is None else max(total - explained, 0.0)
    scale = 1.0 if total is None else min(total / max(explained, 1e-12), 1.0)
    written = {name: widths[name][0] * sum(_positions(shape) for shape in shapes[name]) for name in shapes}
    everything = max(sum(written.values()), 1)

    def layer(name: str, size: tuple[int, int]) -> float:
        share = rest * written[name] / everything * size[0] / widths[name][0]
        return scale * known(name, size) + share

    return Price("speedup", table.unit, table.basis, layer, table=digest(table))


def _whole(shape: LayerShape, *, outputs: int, inputs: int) -> tuple[int, int]:
    """(inputs, outputs) of all groups of channels together."""
    return (inputs, outputs * shape.groups) if shape.kind == "transposed" else (inputs * shape.groups, outputs)


def _positions(shape: LayerShape) -> int:
    """How many values a layer writes for each channel."""
    if shape.kind == "linear":
        return shape.size[0]
    if shape.kind == "transposed":
        return math.prod(size * step for size, step in zip(shape.size, shape.stride, strict=True))
    axes = zip(shape.size, shape.kernel, shape.stride, shape.padding, shape.dilation, strict=True)
    return math.prod((size + 2 * pad - far * (taps - 1) - 1) // step + 1 for size, taps, step, pad, far in axes)


def predicted_table(wanted: Iterable[Grid], *, target: str, form: Literal["int8", "fp32"], reason: str) -> LatencyTable:
    """Return a table from multiply-accumulates alone, widths rounded up to what kernels compute in one go."""
    shapes = tuple(
        ShapeCosts(
            grid.shape,
            tuple(LayerCost(*point, _aligned(grid.shape, inputs=point[0], outputs=point[1])) for point in grid.points),
        )
        for grid in wanted
    )
    return LatencyTable(target, form, "predicted", "aligned MMACs", shapes, reason=reason)


def _aligned(shape: LayerShape, *, inputs: int, outputs: int) -> float:
    read = 1 if shape.kind == "depthwise" else _up(inputs // shape.groups)
    area = math.prod(shape.size) if shape.kind == "transposed" else _positions(shape)
    return area * math.prod(shape.kernel) * read * _up(outputs) / 1e6


def _up(width: int) -> int:
    return LANES * math.ceil(width / LANES)
