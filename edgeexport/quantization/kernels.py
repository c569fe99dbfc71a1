"""What kind of work each node of a running graph does: in integers, in floats, or on the way between the two.

The rule: a kind follows from operator and types alone. Shape inference does not know onnxruntime's own operators, so
types are carried along in node order here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgeexport import graph
from edgeexport.records.audit import Kind

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Type = Literal["float", "integer", "other"]  # integer: of 8 bits

BOUNDARY = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_INTEGER = frozenset({
    "ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulInteger16",
    "MatMulIntegerToFloat", "MatMulNBits", "NhwcMaxPool", "QAttention", "QEmbedLayerNormalization", "QGemm",
})  # fmt: skip
_MAKES_FLOAT = frozenset({
    "DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "GatherBlockQuantized", "MatMulIntegerToFloat",
    "MatMulNBits", "QAttention", "QEmbedLayerNormalization",
})  # fmt: skip
_MAKES_OTHER = frozenset({
    "And", "ArgMax", "ArgMin", "ConvInteger", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "MatMulInteger", "NonZero", "Not", "Or", "Shape", "Size",
})  # fmt: skip
_FLOATS, _EIGHT_BITS = (1, 10, 11, 16), (2, 3)
_QGEMM_SCALED = 8  # inputs from which on QGemm has an output scale and so writes 8 bits


def tensor_types(model: ModelProto) -> dict[str, Type]:
    """Return tensor → type for all tensors of the main graph, stored ones too."""
    types = {value.name: _type(value.type.tensor_type.elem_type) for value in model.graph.input}
    types |= {tensor.name: _type(tensor.data_type) for tensor in model.graph.initializer}
    types |= {name: _constant(value.dtype.name) for name, value in graph.constants(model).items()}
    for node in model.graph.node:
        for name in filter(None, node.output):
            types.setdefault(name, _made(node, types))
    return types


def kind_of(node: NodeProto, types: dict[str, Type]) -> Kind:
    """Return what kind of work a node does. types: `tensor_types`."""
    if node.op_type in BOUNDARY:
        return "boundary"
    if node.op_type in _INTEGER or node.op_type.startswith("QLinear"):
        return "integer"
    read = next((types.get(name, "other") for name in node.input if name), "other")
    made = types.get(node.output[0], "other") if node.output else "other"
    if node.op_type != "Constant" and "float" in {read, made}:
        return "float"
    return "move" if "integer" in {read, made} else "other"


def _made(node: NodeProto, types: dict[str, Type]) -> Type:
    op = node.op_type
    if op in _MAKES_OTHER:
        return "other"
    if op in _MAKES_FLOAT or (op == "QGemm" and len(node.input) < _QGEMM_SCALED):
        return "float"
    if op in BOUNDARY or op == "QGemm" or op.startswith("QLinear"):
        return "integer"
    if op == "Cast":
        return _type(next(item.i for item in node.attribute if item.name == "to"))
    data = node.input[1:2] if op == "Where" else node.input[:1]
    return next((types.get(name, "other") for name in data), "other")


def _type(elem_type: int) -> Type:
    if elem_type in _FLOATS:
        return "float"
    return "integer" if elem_type in _EIGHT_BITS else "other"


def _constant(dtype: str) -> Type:
    if dtype.startswith(("float", "bfloat")):
        return "float"
    return "integer" if dtype in {"int8", "uint8"} else "other"
