"""Multiply-accumulates of a graph, from shapes alone.

The rule: what multiplies a weight or two activations is counted (Conv, ConvTranspose, Gemm, MatMul and their integer
forms); everything else is not. A shape that is not known gives no number rather than a wrong one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgeexport.graph.shapes import free_inputs, tensor_types, with_input_shapes

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto

_CONVOLUTIONS = ("Conv", "ConvInteger")
_PRODUCTS = ("MatMul", "MatMulInteger")
COUNTED = (*_CONVOLUTIONS, "ConvTranspose", "Gemm", *_PRODUCTS)


def macs(model: ModelProto) -> dict[str, int] | None:
    """Return the multiply-accumulates of each node of the main graph that has some, by the name of its first output.

    A free batch counts as one. None when a shape that is needed is not known.
    """
    shapes = {
        name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for name, value in _types(model).items()
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type not in COUNTED:
            continue
        count = _count(node, [shapes.get(name, []) for name in (*node.input[:2], node.output[0])])
        if count <= 0:
            return None
        found[node.output[0]] = count
    return found


def _types(model: ModelProto) -> dict[str, ValueInfoProto]:
    """Types with the batch, if it is free, fixed to one."""
    inputs: dict[str, tuple[int | str, ...]] = {}
    for value in free_inputs(model):
        dims = [dim.dim_value or dim.dim_param or 0 for dim in value.type.tensor_type.shape.dim]
        if dims and not isinstance(dims[0], int):
            inputs[value.name] = (1, *dims[1:])
    return tensor_types(with_input_shapes(model, inputs) if inputs else model)


def _count(node: NodeProto, shapes: list[list[int]]) -> int:
    left, right, out = shapes
    if not left or not right or not out:
        return 0
    if node.op_type == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])
    if node.op_type in _CONVOLUTIONS:
        return math.prod(out) * math.prod(right[1:])
    if node.op_type == "Gemm":
        transposed = any(item.name == "transA" and item.i for item in node.attribute)
        return math.prod(out) * left[0 if transposed else -1]
    return math.prod(out) * left[-1]
