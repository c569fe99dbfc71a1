"""One ONNX node as the operator functions see it: attributes, stored inputs, inferred shapes.

The rule: an attribute nobody read is an attribute nobody honoured, and is refused (`refuse_unread`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeexport.errors import UnsupportedOperator
from edgeexport.graph.walk import describe

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto

Run = Callable[..., Any]
Build = Callable[["Node"], Run]
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Entry:
    """A row of the table: how to build the operator, and which inputs it wants as numbers (sizes) and not tensors."""

    build: Build
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Node:
    """A node with what is known about its surroundings before anything runs.

    constants: stored tensor → value. shapes: tensor → inferred sizes, None where free. opset: of the node's domain.
    """

    proto: NodeProto
    opset: int
    constants: Mapping[str, np.ndarray]
    shapes: Mapping[str, Shape]
    _read: set[str] = field(default_factory=set)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, an empty text for one left out."""
        return tuple(self.proto.input)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, without those left out at the end."""
        names = list(self.proto.output)
        while names and not names[-1]:
            names.pop()
        return tuple(names)

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute as a Python value (texts decoded), or `default`."""
        import onnx

        self._read.add(name)
        for attribute in self.proto.attribute:
            if attribute.name == name:
                value = onnx.helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def ints(self, name: str, default: list[int]) -> list[int]:
        """Return a list-of-integers attribute, or `default` where it is missing or empty."""
        return [int(value) for value in self.get(name) or default]

    def constant(self, position: int) -> np.ndarray | None:
        """Return the stored value of an input; None if it is left out or computed."""
        name = self.inputs[position] if position < len(self.inputs) else ""
        return self.constants.get(name)

    def has(self, position: int) -> bool:
        """True if the input is given at all."""
        return position < len(self.inputs) and bool(self.inputs[position])

    def stored_ints(self, position: int, what: str) -> list[int] | None:
        """Return a stored integer input as a list, None if it is left out; a computed one is refused."""
        if not self.has(position):
            return None
        value = self.constant(position)
        if value is None:
            raise self.refusal(f"its {what} are computed, only stored ones can be lifted")
        return [int(number) for number in value.ravel()]

    def shape(self, position: int) -> Shape:
        """Return the inferred shape of an input; an unknown rank is refused."""
        value = self.constant(position)
        if value is not None:
            return tuple(value.shape)
        shape = self.shapes.get(self.inputs[position])
        if shape is None:
            raise self.refusal(f"the number of dimensions of its input {self.inputs[position]!r} is not known")
        return shape

    def rank(self, position: int = 0) -> int:
        """Return the number of dimensions of an input."""
        return len(self.shape(position))

    def axis(self, name: str = "axis", default: int = 0, *, position: int = 0) -> int:
        """Return an axis attribute, counted from the front."""
        axis = int(self.get(name, default))
        return axis % self.rank(position) if axis < 0 else axis

    def refusal(self, reason: str) -> UnsupportedOperator:
        """Return the error that refuses this node."""
        return UnsupportedOperator(
            f"{describe(self.proto)} (opset {self.opset}) cannot be lifted: {reason}",
            next_step="export the model without it, or open an issue with this line",
        )

    def demand(self, name: str, default: Any, *, allowed: tuple[Any, ...]) -> Any:
        """Return an attribute that must be one of `allowed`; another value is refused by name."""
        value = self.get(name, default)
        if value not in allowed:
            raise self.refusal(f"attribute {name} = {value!r}, supported: {', '.join(map(repr, allowed))}")
        return value

    def refuse_unread(self) -> None:
        """Refuse the node if it has an attribute that its operator function never asked for."""
        import onnx

        for attribute in self.proto.attribute:
            if attribute.name not in self._read:
                value = onnx.helper.get_attribute_value(attribute)
                raise self.refusal(f"attribute {attribute.name} = {value!r} is not supported")

    def one_output(self) -> None:
        """Refuse a node whose optional further outputs are used."""
        if len(self.outputs) > 1:
            raise self.refusal(f"its optional output {self.outputs[1]!r} is used")
