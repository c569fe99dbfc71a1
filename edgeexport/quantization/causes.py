"""Why a node of a QDQ file stays in float: one sentence for each, from the file alone.

The rule: onnxruntime turns DequantizeLinear → operator → QuantizeLinear into one integer kernel, so every cause is
what breaks that pattern, named with tensor and numbers. The rules stand in ROWS, first match wins. Source:
onnxruntime's selectors and actions for QDQ graphs, and what its saved graphs show.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeexport import graph

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_BINARY = frozenset({"Add", "Mul"})
# Operators that run on 8-bit numbers as they are when both points are equal.
MOVES = frozenset({
    "Expand", "Flatten", "Gather", "MaxPool", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
})  # fmt: skip
FUSED = WEIGHTED | _BINARY | MOVES | {
    "AveragePool", "Concat", "ConvTranspose", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax", "Where",
}  # fmt: skip
_SATURATED = frozenset({"Relu", "Clip"})
S8_OPTION = "session.qdqisint8allowed"


@dataclass(frozen=True)
class Wiring:
    """The main graph of a file: who makes a tensor, who reads it, what is stored."""

    nodes: dict[str, NodeProto]
    maker: dict[str, NodeProto]
    readers: dict[str, list[NodeProto]]
    stored: dict[str, np.ndarray]
    outputs: frozenset[str]
    signed_allowed: bool

    def point_of(self, tensor: str) -> NodeProto | None:
        """Return the QuantizeLinear or DequantizeLinear that makes a tensor, None if something else does."""
        made = self.maker.get(tensor)
        return made if made is not None and made.op_type in {"QuantizeLinear", "DequantizeLinear"} else None

    def limits(self, point: NodeProto) -> tuple[float, float] | None:
        """Return the least and the greatest number that a point holds, None if its scale is not a stored single one."""
        import numpy as np

        scale = self.stored.get(point.input[1])
        zero = self.stored.get(point.input[2]) if len(point.input) > 2 else None
        if scale is None or scale.size != 1 or zero is None:
            return None
        kind, at = np.iinfo(zero.dtype), int(zero.item())
        return float((kind.min - at) * scale.item()), float((kind.max - at) * scale.item())

    def tensor_of(self, point: NodeProto) -> str:
        """Return the float tensor that a point stands for, without what onnxruntime's quantizer adds to its name."""
        made = self.maker.get(point.input[0])
        first = made if point.op_type == "DequantizeLinear" and made is not None else point
        name = first.input[0] if first.op_type == "QuantizeLinear" else point.output[0]
        return str(name.removesuffix("_QuantizeLinear_Input"))

    def dtype(self, point: NodeProto) -> str:
        """Return the integer type of a point, empty if it is not stored."""
        zero = self.stored.get(point.input[2]) if len(point.input) > 2 else None
        return str(zero.dtype) if zero is not None else ""


def wiring(model: ModelProto, *, signed_allowed: bool) -> Wiring:
    """Index a file's main graph. signed_allowed: S8_OPTION is set, or the machine is an Arm."""
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in filter(None, node.input):
            readers[name].append(node)
    return Wiring(
        nodes={node.name: node for node in model.graph.node if node.name},
        maker={name: node for node in model.graph.node for name in node.output if name},
        readers=readers,
        stored={**graph.constants(model), **graph.initializers(model)},
        outputs=frozenset(value.name for value in model.graph.output),
        signed_allowed=signed_allowed,
    )


def cause(node: NodeProto, wires: Wiring) -> str:
    """Say in one sentence why this node of the file computes in float; empty if nothing stands against it."""
    return next((text for rule in ROWS if (text := rule(node, wires))), "")


def _unpointed(node: NodeProto, wires: Wiring) -> str:
    """Left in float by whoever wrote the file: no point on any side."""
    data = [name for name in _data(node) if name not in wires.stored]
    made = any(wires.point_of(name) is not None for name in data)
    read = any(reader.op_type == "QuantizeLinear" for name in node.output for reader in wires.readers.get(name, []))
    return "" if made or read else f"{node.op_type} has no points around it: the file leaves it in float"


def _no_kernel(node: NodeProto, wires: Wiring) -> str:
    del wires
    if node.op_type in FUSED | _SATURATED:
        return ""
    tips = {
        "ReduceMean": "; a mean over whole pictures has one as GlobalAveragePool",
        "HardSwish": ": it becomes HardSigmoid and Mul in float",
        "HardSigmoid": "; as Clip it would be part of the point",
        "Pad": ": its fill is a float",
    }
    return f"{node.op_type} has no integer kernel that fuses{tips.get(node.op_type, '')}"


def _input(node: NodeProto, wires: Wiring) -> str:
    for name in _data(node):
        source = wires.maker.get(name)
        if source is not None and source.op_type != "DequantizeLinear":
            return f"its input {name!r} comes from {source.op_type} and has no point"
        if source is None:
            what = "is stored in float" if name in wires.stored else "is an input of the model and has no point"
            return f"its input {name!r} {what}"
    return ""


def _bias(node: NodeProto, wires: Wiring) -> str:
    """A stored bias may be float (onnxruntime quantizes it itself), one that is computed stops the fusion."""
    if node.op_type not in {"Conv", "Gemm"} or len(node.input) < 3 or not node.input[2]:
        return ""
    bias = node.input[2]
    point = wires.point_of(bias)
    if bias in wires.stored or (point is not None and point.input[0] in wires.stored):
        return ""
    return f"its bias {bias!r} is not a constant"


def _output(node: NodeProto, wires: Wiring) -> str:
    """A Conv or an element-wise operator fuses with exactly one QuantizeLinear; Gemm and MatMul need none."""
    for name in node.output[:1]:
        readers = wires.readers.get(name, [])
        if node.op_type in {"Gemm", "MatMul"} and all(reader.op_type != "QuantizeLinear" for reader in readers):
            return ""
        if name in wires.outputs:
            return f"its result {name!r} is an output of the model, in float"
        if len(readers) > 1:
            kinds = ", ".join(sorted(reader.op_type for reader in readers))
            return f"its result {name!r} has {len(readers)} readers ({kinds}); it fuses with a single QuantizeLinear"
        if readers and readers[0].op_type != "QuantizeLinear":
            return _between(node, readers[0], wires=wires)
    return ""


def _between(node: NodeProto, reader: NodeProto, *, wires: Wiring) -> str:
    """What sits between an operator and the point that should take its result."""
    after = wires.readers.get(reader.output[0], [])
    point = after[0] if len(after) == 1 and after[0].op_type == "QuantizeLinear" else None
    held = wires.limits(point) if point is not None else None
    if reader.op_type not in _SATURATED or held is None:
        return f"{reader.op_type} sits between {node.op_type} and a QuantizeLinear"
    low, high = _bounds(reader, wires)
    return (
        f"{reader.op_type} sits between {node.op_type} and QuantizeLinear, and its bounds [{low:.4g}, {high:.4g}] "
        f"do not match the range [{held[0]:.4g}, {held[1]:.4g}] of the point"
    )


def _saturation(node: NodeProto, wires: Wiring) -> str:
    """A Relu or Clip that no point absorbs."""
    if node.op_type not in _SATURATED:
        return ""
    readers = wires.readers.get(node.output[0], [])
    held = wires.limits(readers[0]) if len(readers) == 1 and readers[0].op_type == "QuantizeLinear" else None
    if held is None:
        return f"{node.op_type} is not followed by one QuantizeLinear that could absorb it"
    low, high = _bounds(node, wires)
    if low <= held[0] and held[1] <= high:
        return ""
    return f"{node.op_type} to [{low:.4g}, {high:.4g}] cuts into the range [{held[0]:.4g}, {held[1]:.4g}] of its point"


def _signed(node: NodeProto, wires: Wiring) -> str:
    """Int8 activations become uint8 on x86-64 where the point has one reader; elsewhere the kernel stays in float."""
    if wires.signed_allowed:
        return ""
    points = [wires.point_of(name) for name in _data(node)[:1] if name not in wires.stored]
    points += [reader for name in node.output for reader in wires.readers.get(name, [])]
    counts: dict[str, int] = {}
    for point in points:
        if point is None or point.op_type not in {"QuantizeLinear", "DequantizeLinear"} or wires.dtype(point) != "int8":
            continue
        name = point.input[0] if point.op_type == "DequantizeLinear" else point.output[0]
        counts[wires.tensor_of(point)] = sum(
            len(wires.readers.get(made.output[0], [])) for made in wires.readers.get(name, [])
        )
    if not counts:
        return ""
    most = max(counts, key=lambda name: counts[name])
    where = f"; {most!r} has {counts[most]}" if counts[most] > 1 else ""
    return f"S8S8 on x86-64: onnxruntime takes int8 activations only where a point has one reader{where}"


def _mode(node: NodeProto, wires: Wiring) -> str:
    del wires
    mode = _text(node, "mode", default="nearest") if node.op_type == "Resize" else "nearest"
    return "" if mode == "nearest" else f"Resize in mode {mode} keeps its points in float; only nearest drops them"


def _scales(node: NodeProto, wires: Wiring) -> str:
    """A move in integers needs the same point on both sides."""
    if node.op_type not in MOVES:
        return ""
    before = wires.point_of(node.input[0])
    after = [reader for reader in wires.readers.get(node.output[0], []) if reader.op_type == "QuantizeLinear"]
    if before is None or not after:
        return f"{node.op_type} moves integers only between two points"
    pairs = [[wires.stored.get(name) for name in point.input[1:3]] for point in (before, after[0])]
    if all(one is not None and other is not None and (one == other).all() for one, other in zip(*pairs, strict=True)):
        return ""
    return f"the points before and after {node.op_type} differ; moving integers needs one scale"


def _data(node: NodeProto) -> list[str]:
    """The inputs of a node that carry data, not numbers that steer it."""
    count = {"Concat": len(node.input), "Where": 3, **dict.fromkeys(WEIGHTED | _BINARY, 2)}.get(node.op_type, 1)
    return [name for name in node.input[:count] if name]


def _bounds(node: NodeProto, wires: Wiring) -> tuple[float, float]:
    if node.op_type == "Relu":
        return 0.0, float("inf")
    names = [*node.input[1:3], "", ""][:2]
    low, high = (wires.stored.get(name) for name in names)
    return (
        float(low.item()) if low is not None else _number(node, "min", default=-float("inf")),
        float(high.item()) if high is not None else _number(node, "max", default=float("inf")),
    )


def _number(node: NodeProto, name: str, *, default: float) -> float:
    return next((float(item.f) for item in node.attribute if item.name == name), default)


def _text(node: NodeProto, name: str, *, default: str) -> str:
    return next((item.s.decode() for item in node.attribute if item.name == name), default)


Rule = Callable[[Any, Wiring], str]
ROWS: tuple[Rule, ...] = (
    _unpointed, _no_kernel, _saturation, _input, _bias, _output, _signed, _mode, _scales,
)  # fmt: skip
