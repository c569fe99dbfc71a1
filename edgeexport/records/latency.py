"""LatencyTable: what one layer costs on a target, by its shape and widths. A stored input: plans are made from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from edgeexport.records.base import Record

# How a cost is known: timed on a machine that may judge the target, counted under emulation, or from arithmetic alone.
Basis = Literal["measured", "counted", "predicted"]


class LayerShape(Record):
    """What chooses the kernel of a layer besides its widths.

    size: of its input in space, or (rows,) for a linear layer. The others are as torch's convolutions have them, one
    for each axis of space; padding is that of the beginning. in_float: it is left in float where others are int8.
    """

    kind: Literal["conv", "depthwise", "transposed", "linear"]
    size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    in_float: bool = False


class LayerCost(Record):
    """One point of the grid. cost: in the table's unit."""

    inputs: int
    outputs: int
    cost: float


class ShapeCosts(Record):
    """The grid of one shape: every pair of the widths it was asked for."""

    shape: LayerShape
    costs: tuple[LayerCost, ...]


class TimedSheet(Record):
    """What was timed in the same processes, to be used again. references: what those layers took that all sheets have.

    Counted costs need none.
    """

    shapes: tuple[ShapeCosts, ...]
    references: tuple[Annotated[float, msgspec.Meta(gt=0)], ...] = ()


class LatencyTable(Record):
    """Costs of single layers in the form that ships.

    form: "int8" or "fp32". conditions: of the machine that was timed, what lasts. reason: why nothing was timed, where
    basis is not "measured".
    """

    target: str
    form: Literal["int8", "fp32"]
    basis: Basis
    unit: Literal["ms", "M instructions", "aligned MMACs"]
    shapes: tuple[ShapeCosts, ...]
    device: str = ""
    runtime_version: str = ""
    threads: int = 1
    conditions: dict[str, Any] = {}
    reason: str = ""
