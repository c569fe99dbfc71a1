"""What a model's first layers say about the values it was made for.

The rule: only what the graph states is told, constants that shift and scale an input, or the statistics of a
BatchNormalization on it; nothing is guessed from weights.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgeexport.graph.shapes import free_inputs
from edgeexport.graph.weights import constants, initializers

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto

    Values = dict[str, np.ndarray]


def expected_inputs(model: ModelProto) -> dict[str, tuple[float, float]]:
    """Return input -> (mean, standard deviation) over all channels, for inputs that the model normalizes itself."""
    stored = {**initializers(model), **constants(model)}
    found = {value.name: _expected(model, value.name, stored=stored) for value in free_inputs(model)}
    return {name: each for name, each in found.items() if each is not None}


def _expected(model: ModelProto, name: str, *, stored: Values) -> tuple[float, float] | None:
    """Follow an input through x * scale + shift as long as it goes straight on."""
    scale, shift, at = 1.0, 0.0, name
    while True:
        readers = [node for node in model.graph.node if at in node.input]
        if len(readers) != 1:
            break
        node = readers[0]
        if node.op_type == "BatchNormalization":
            mean, variance = (stored[each] for each in node.input[3:5])
            return (float(mean.mean()) - shift) / scale, math.sqrt(float(variance.mean())) / abs(scale)
        step = _affine(node, at, stored=stored)
        if step is None or step[0] == 0.0:
            break
        scale, shift, at = scale * step[0], shift * step[0] + step[1], node.output[0]
    return None if at == name else (-shift / scale, 1 / abs(scale))


def _affine(node: NodeProto, at: str, *, stored: Values) -> tuple[float, float] | None:
    """Return (scale, shift) of a node that only shifts or scales what it reads; None for any other."""
    other = next((each for each in node.input if each != at), "")
    if node.op_type not in {"Add", "Sub", "Mul", "Div"} or other not in stored:
        return None
    value, first = float(stored[other].mean()), node.input[0] == at
    if node.op_type in {"Sub", "Div"} and not first:
        return (-1.0, value) if node.op_type == "Sub" else None
    return {"Add": (1.0, value), "Sub": (1.0, -value), "Mul": (value, 0.0), "Div": (1 / (value or math.inf), 0.0)}[
        node.op_type
    ]
