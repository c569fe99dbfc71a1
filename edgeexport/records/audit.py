"""Audit: how a runtime really runs a model: what fused into integer kernels, what is left in float, why, at what cost.

The rule: a cost is the median of whole runs on one thread, or None where nothing was run; a cause is a sentence.
"""

from __future__ import annotations

from typing import Literal

from edgeexport.records.base import Record

# integer: computes in integers. move: rearranges integers. boundary: QuantizeLinear and DequantizeLinear.
# float: computes in floats. other: shapes, indices, booleans.
Kind = Literal["integer", "move", "boundary", "float", "other"]
# entry: the model's inputs become integers. exit: its results become floats. head, between, tail: float operators
# before, between and after integer ones. requantized: a DequantizeLinear → QuantizeLinear pair with nothing between.
Place = Literal["entry", "exit", "head", "between", "tail", "requantized"]


class Kernel(Record):
    """One node of the graph as it runs. origin: the node of the file that it was made from, empty when unknown."""

    op: str
    origin: str
    kind: Kind
    us: float | None = None
    share: float | None = None


class Island(Record):
    """Float kernels that hang together, with the quantize and dequantize nodes around them.

    origin: the file's nodes that compute in float there. tensors: where the integers end and begin again.
    """

    place: Place
    origin: tuple[str, ...]
    tensors: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    causes: tuple[str, ...]
    us: float | None = None
    share: float | None = None


class Audit(Record):
    """One file under given session options. weighted: Conv, Gemm and MatMul in the file; integer: those in integers.

    convolutions and integer_convolutions: the same for Conv alone. transposes: changes of layout that are left. us: a
    whole run, None when it was not profiled, with the reason in `unmeasured`.
    """

    model_digest: str
    runtime_version: str
    options: dict[str, str]
    weighted: int
    integer_weighted: int
    convolutions: int
    integer_convolutions: int
    kernels: tuple[Kernel, ...]
    islands: tuple[Island, ...]
    transposes: int
    us: float | None = None
    runs: int = 0
    unmeasured: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Operator → count of the kernels that compute in integers, most frequent first."""
        ops = [kernel.op for kernel in self.kernels if kernel.kind == "integer"]
        return dict(sorted(((op, ops.count(op)) for op in set(ops)), key=lambda item: (-item[1], item[0])))

    @property
    def lost(self) -> tuple[Island, ...]:
        """The islands that cost something: all but the model's own entry and exit."""
        return tuple(island for island in self.islands if island.place not in {"entry", "exit"})


class RepairStep(Record):
    """One edit that was tried. ratio: latency after / before, None when it was not measured. outcome: why it stayed.

    level: of the spine (the fp32 model) or of the plan. places: how many times its pattern was found.
    """

    name: str
    level: Literal["spine", "plan"]
    reason: str
    places: int
    kept: bool
    outcome: str
    ratio: float | None = None
