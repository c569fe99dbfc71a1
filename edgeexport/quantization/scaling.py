"""Where channels can be scaled: sets of tensors that must share one factor per channel, and who makes and reads them.

The rule: a set may be scaled only if that changes no output: its makers are layers whose outputs take the factor, its
readers layers whose inputs take the inverse, and all between is positively homogeneous. Else it says what fixes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.quantization.layers import Layer, layers
from edgeexport.quantization.placement import attribute

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto

# f(s·x) = s·f(x) for s > 0, channel by channel.
_HOMOGENEOUS = frozenset({
    "Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity",
})  # fmt: skip


@dataclass
class Scalable:
    """One set of tensors, with the layers that make and read it. fixed: why it may not be scaled, else empty."""

    tensors: list[str] = field(default_factory=list)
    makers: list[Layer] = field(default_factory=list)
    readers: list[Layer] = field(default_factory=list)
    fixed: str = ""


def scalable(model: ModelProto) -> list[Scalable]:
    """Return the sets of a model in graph order, those that may not be scaled included. model: `prepared`."""
    return _Sets(model).found()


class _Sets:
    """Tensors joined by the nodes that keep channels (union-find), then filled with who makes and reads them."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.types = graph.tensor_types(model)
        self.stored = {**graph.initializers(model), **graph.constants(model)}
        self.layers = {layer.node: layer for layer in layers(model) if layer.op != "MatMul"}
        self.root: dict[str, str] = {}
        self.sets: dict[str, Scalable] = {}

    def found(self) -> list[Scalable]:
        for node in self.model.graph.node:
            for name in self._alike(node):
                self.root[self._first(node.output[0])] = self._first(name)
        for value in graph.free_inputs(self.model):
            self._of(value.name).fixed = "it is an input of the model"
        for node in self.model.graph.node:
            self._enter(node)
        for value in self.model.graph.output:
            self._of(value.name).fixed = "it is an output of the model"
        for one in self.sets.values():
            if not one.fixed and not (one.makers and one.readers):
                one.fixed = "no layer makes it" if not one.makers else "no layer reads it"
        return list(self.sets.values())

    def _first(self, name: str) -> str:
        while self.root.get(name, name) != name:
            name = self.root[name]
        return name

    def _of(self, name: str) -> Scalable:
        return self.sets.setdefault(self._first(name), Scalable())

    def _enter(self, node: NodeProto) -> None:
        layer = self.layers.get(node.name)
        flowing = [name for name in node.input if name and name not in self.stored]
        for name in [name for name in node.output if name and node.op_type != "Constant"]:
            self._of(name).tensors.append(name)
        if layer is not None:
            self._of(layer.source).readers.append(layer)
            self._of(layer.result).makers.append(layer)
        elif node.op_type != "Constant" and not self._alike(node):
            for name in [*flowing, *node.output]:
                self._of(name).fixed = self._of(name).fixed or f"{node.op_type} {node.name!r} does not keep factors"

    def _alike(self, node: NodeProto) -> list[str]:
        """The inputs whose factors the node's output must have; none if it keeps none."""
        if node.op_type == "Add" and not any(name in self.stored for name in node.input):
            left, right = (self._shape(name) for name in node.input)
            return list(node.input) if len(left) > 1 and left[1:] == right[1:] else []
        relu = node.op_type == "Clip" and self._bounds(node) == (0.0, float("inf"))
        flat = node.op_type in {"Reshape", "Flatten"} and self._flattens(node)
        mean = node.op_type == "ReduceMean" and self._over_places(node)
        return [node.input[0]] if node.op_type in _HOMOGENEOUS or relu or flat or mean else []

    def _bounds(self, node: NodeProto) -> tuple[float, float]:
        """A Clip's bounds, as inputs or attributes; NaN for one that is computed."""
        low, high = [*node.input[1:3], "", ""][:2]
        return (
            self._bound(low, default=attribute(node, "min", default=-float("inf"))),
            self._bound(high, default=attribute(node, "max", default=float("inf"))),
        )

    def _bound(self, name: str, *, default: float) -> float:
        return (float(self.stored[name]) if name in self.stored else float("nan")) if name else default

    def _flattens(self, node: NodeProto) -> bool:
        """(N, C, 1, 1) → (N, C)."""
        before, after = self._shape(node.input[0]), self._shape(node.output[0])
        return len(before) > 1 and len(after) == 2 and before[1] == after[1] and set(before[2:]) <= {1}

    def _over_places(self, node: NodeProto) -> bool:
        rank = len(self._shape(node.input[0]))
        listed = self.stored.get(node.input[1]) if len(node.input) > 1 else attribute(node, "axes", default=None)
        return listed is not None and all(int(axis) % max(rank, 1) > 1 for axis in listed)

    def _shape(self, name: str) -> list[Any]:
        value: ValueInfoProto | None = self.types.get(name)
        dims = value.type.tensor_type.shape.dim if value is not None else []
        return [dim.dim_value or dim.dim_param for dim in dims]
