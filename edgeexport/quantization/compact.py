"""Compact: the same int8 model in fewer bytes.

The rule: nothing that computes changes. Tensors and nodes of the fp32 model, and quantized weights, keep their names;
only what the quantizer added gets short ones, equal scales and zero points are stored once, and what says the default
is left out. Zero points of zero are not left out: without them onnxruntime 1.32 fuses no Gemm, no Slice and no Pad.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from edgeexport import graph
from edgeexport.graph.walk import nodes

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

# Attributes of ONNX that default to ones without the schema saying so.
_ONES = {"Conv": ("strides", "dilations"), "MaxPool": ("strides", "dilations"), "AveragePool": ("strides", "dilations")}


def compact(model: ModelProto, *, tensors: AbstractSet[str], named: AbstractSet[str]) -> None:
    """Shorten a QDQ model in place. tensors, named: the tensors and nodes whose names stay."""
    del model.graph.value_info[:]
    _leave_out_defaults(model)
    _share(model, tensors)
    _drop_unused(model)
    _rename(model, tensors, named=named)


def _leave_out_defaults(model: ModelProto) -> None:
    import onnx

    opset = graph.standard_opset(model)
    for node in model.graph.node:
        if node.domain not in {"", "ai.onnx"}:
            continue
        known = onnx.defs.get_schema(node.op_type, opset).attributes
        given = [item for item in node.attribute if not _is_default(node, item, default=known[item.name].default_value)]
        del node.attribute[:]
        node.attribute.extend(given)


def _is_default(node: NodeProto, item: AttributeProto, *, default: AttributeProto) -> bool:
    import onnx

    if default.type:
        return bool(onnx.helper.get_attribute_value(item) == onnx.helper.get_attribute_value(default))
    return item.name in _ONES.get(node.op_type, ()) and all(value == 1 for value in item.ints)


def _share(model: ModelProto, kept: AbstractSet[str]) -> None:
    """Let the nodes read one of several equal initializers; those whose name stays are left as they are.

    int8 weights keep zero points of their own: with `session.x64quantprecision` onnxruntime rewrites them one by one,
    and does not open a file in which two weights share one.
    """
    from onnx import TensorProto

    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8}
    own = {node.input[2] for node in model.graph.node if len(node.input) > 2 and node.input[0] in weights}
    first: dict[bytes, str] = {}
    instead: dict[str, str] = {}
    for tensor in model.graph.initializer:
        if tensor.name not in kept and tensor.name not in own:
            instead[tensor.name] = first.setdefault(_value(tensor), tensor.name)
    for node in model.graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]


def _value(tensor: TensorProto) -> bytes:
    """Everything that a tensor says, but its name."""
    copy = type(tensor)()
    copy.CopyFrom(tensor)
    copy.ClearField("name")
    return bytes(copy.SerializeToString(deterministic=True))


def _drop_unused(model: ModelProto) -> None:
    used = {name for node in nodes(model) for name in node.input} | {value.name for value in model.graph.output}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)


def _rename(model: ModelProto, tensors: AbstractSet[str], *, named: AbstractSet[str]) -> None:
    """Give short names, in the order of the graph, to all tensors and nodes but these."""
    part = model.graph
    made = [tensor.name for tensor in part.initializer] + [name for node in part.node for name in node.output]
    short = _names(set(made) | tensors)
    new = {name: next(short) for name in made if name not in tensors}
    for node in part.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for tensor in part.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    short = _names({node.name for node in part.node} | named)
    for node in part.node:
        node.name = node.name if node.name in named else next(short)


def _names(taken: AbstractSet[str]) -> Iterator[str]:
    """Yield q0, q1, …, without those that are taken."""
    return itertools.filterfalse(taken.__contains__, (f"q{number}" for number in itertools.count()))
