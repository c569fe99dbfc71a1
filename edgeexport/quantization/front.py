"""Front-ends: what makes a logarithm's input (a spectrogram, say) has a range that 8 bits do not hold.

The rule: found by structure, never by names: a Log before which nothing but linear layers, products and powers stands.
A network has activations before its logarithms (those of a softmax, say), a front-end has none. What the Log is made
from stays in float: of a range of 1 : 10,000, most steps of int8 would be one and the same logarithm.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeexport import graph
from edgeexport.quantization.placement import CANDIDATES, prepared

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_LINEAR = CANDIDATES - {"Relu", "LeakyRelu", "Sigmoid", "MaxPool"}
_SIGNAL = frozenset({"Pow", "Sqrt", "Abs", "Sub", "Div", "Cast", "Gather", "Expand", "Identity", "ReduceSum", "Max"})


def front_floats(model_path: Path) -> dict[str, str]:
    """Return the nodes that a front-end's Log is made from, node -> reason; empty where there is none."""
    model = prepared(graph.load(model_path))
    kept: dict[str, str] = {}
    for node in model.graph.node:
        before = _before(model, node) if node.op_type == "Log" else []
        if all(other.op_type in _LINEAR | _SIGNAL for other in before):
            reason = f"the logarithm {node.name!r} is taken of it: small values count as much as large ones"
            kept |= {other.name: reason for other in before if other.op_type in CANDIDATES}
    return kept


def _before(model: ModelProto, end: NodeProto) -> list[NodeProto]:
    """Return all nodes that make what `end` reads, directly or not, stored numbers left out."""
    constant = set(graph.constants(model))
    needed, found = set(end.input), []
    for node in reversed(model.graph.node):
        if any(name in needed for name in node.output) and node.output[0] not in constant:
            needed.update(node.input)
            found.append(node)
    return found
