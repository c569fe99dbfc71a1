"""Checks of a decoded ONNX model that must pass before anything else looks at it.

The rule: the runtimes below us treat a model as a program and exhaustion as out of scope, so every limit stands here,
and each refusal names the node or tensor, the value found and the limit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgeexport.errors import CorruptFile, ModelError, UnsupportedOperator
from edgeexport.graph.walk import describe, graphs, nodes, tensors

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

MAX_BYTES = 2 * 1024**3
MAX_NODES = 200_000
MAX_DEPTH = 32
MAX_RANK = 64
MAX_ATTRIBUTE_VALUES = 1_000_000
KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")

# TensorProto.DataType → (bits of one value in raw_data, the typed field that may hold it, field entries per value).
_STORAGE: dict[int, tuple[int, str, float]] = {
    1: (32, "float_data", 1), 2: (8, "int32_data", 1), 3: (8, "int32_data", 1), 4: (16, "int32_data", 1),
    5: (16, "int32_data", 1), 6: (32, "int32_data", 1), 7: (64, "int64_data", 1), 8: (0, "string_data", 1),
    9: (8, "int32_data", 1), 10: (16, "int32_data", 1), 11: (64, "double_data", 1), 12: (32, "uint64_data", 1),
    13: (64, "uint64_data", 1), 14: (64, "float_data", 2), 15: (128, "double_data", 2), 16: (16, "int32_data", 1),
    17: (8, "int32_data", 1), 18: (8, "int32_data", 1), 19: (8, "int32_data", 1), 20: (8, "int32_data", 1),
    21: (4, "int32_data", 0.5), 22: (4, "int32_data", 0.5), 23: (4, "int32_data", 0.5), 24: (8, "int32_data", 1),
    25: (2, "int32_data", 0.25), 26: (2, "int32_data", 0.25),
}  # fmt: skip

# Operators with quantization scales, and the input positions at which these stand.
_SCALES = {"QuantizeLinear": (1,), "DequantizeLinear": (1,), "QLinearConv": (1, 4, 6), "QLinearMatMul": (1, 4, 6)}


def check_structure(model: ModelProto, *, origin: str) -> None:
    """Refuse a model that breaks a limit; `origin` (the path) starts every message.

    Raises CorruptFile (no graph, sizes that lie), UnsupportedOperator (unknown domain) or ModelError (the rest).
    """
    _check_header(model, origin)
    _check_size(model, origin)
    _check_domains(model, origin)
    _check_functions(model, origin)
    _check_names(model, origin)
    for where, tensor in tensors(model):
        check_tensor(tensor, where=f"{origin}: {where}")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        _check_declared_shape([dim.dim_value for dim in value.type.tensor_type.shape.dim], f"{origin}: {value.name!r}")


def check_tensor(tensor: TensorProto, *, where: str) -> None:
    """Refuse a stored tensor whose type is unknown, whose dims are impossible, or whose data has another length."""
    if tensor.data_type not in _STORAGE:
        raise CorruptFile(f"{where}: data type {tensor.data_type} is not one that ONNX defines")
    _check_declared_shape(tensor.dims, where)
    needed = stored_bytes(tensor)
    if needed > MAX_BYTES:
        raise CorruptFile(f"{where}: shape {list(tensor.dims)} needs {needed} bytes, the limit is {MAX_BYTES}")
    if not is_external(tensor):
        _check_inline_data(tensor, needed, where=where)


def stored_bytes(tensor: TensorProto) -> int:
    """Return how many bytes of raw data the tensor's type and shape ask for (0 for strings)."""
    bits: int = math.prod(tensor.dims) * _STORAGE[tensor.data_type][0]
    return (bits + 7) // 8


def is_external(tensor: TensorProto) -> bool:
    """True if the tensor's data is said to lie in another file."""
    return tensor.data_location == type(tensor).EXTERNAL


def check_scales(model: ModelProto, *, origin: str) -> None:
    """Refuse a stored quantization scale that is not finite and above zero: it would turn every value into NaN."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for graph, _ in graphs(model) for tensor in graph.initializer}
    for node in nodes(model):
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            stored[node.output[0]] = node.attribute[0].t
    for node in nodes(model):
        for position in _SCALES.get(node.op_type, ()):
            name = node.input[position] if position < len(node.input) else ""
            if name in stored:
                values = numpy_helper.to_array(stored[name]).astype("float64")
                _check_scale(values.ravel().tolist(), f"{origin}: scale {name!r} of {describe(node)}")


def _check_scale(values: Iterable[float], where: str) -> None:
    for index, value in enumerate(values):
        if not (math.isfinite(value) and value > 0):
            raise ModelError(f"{where} is {value} at index {index}, a scale must be finite and above 0")


def _check_header(model: ModelProto, origin: str) -> None:
    import onnx

    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise CorruptFile(f"{origin}: not an ONNX model, it holds no graph")
    if model.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{origin}: IR version {model.ir_version} is newer than {onnx.IR_VERSION}, the newest this onnx reads",
            next_step="upgrade the package onnx, or export the model with an older IR version",
        )
    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if len(versions) != len(model.opset_import):
        raise ModelError(f"{origin}: one operator set is imported twice")
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= versions.get("ai.onnx", 0) <= newest:
        found = versions.get("ai.onnx", "missing")
        raise ModelError(f"{origin}: opset of the standard operators is {found}, must be 1 to {newest}")


def _check_size(model: ModelProto, origin: str) -> None:
    count = sum(len(function.node) for function in model.functions)
    for graph, depth in graphs(model):
        count += len(graph.node)
        if depth > MAX_DEPTH:
            raise ModelError(f"{origin}: subgraphs are nested {depth} deep, the limit is {MAX_DEPTH}")
        if count > MAX_NODES:
            raise ModelError(f"{origin}: more than {MAX_NODES} nodes ({count} counted so far)")
    for node in nodes(model):
        for attribute in node.attribute:
            size = len(attribute.ints) + len(attribute.floats) + len(attribute.strings)
            if size > MAX_ATTRIBUTE_VALUES:
                where = f"attribute {attribute.name!r} of {describe(node)}"
                raise ModelError(f"{origin}: {where} holds {size} values, the limit is {MAX_ATTRIBUTE_VALUES}")


def _check_domains(model: ModelProto, origin: str) -> None:
    local = {function.domain for function in model.functions}
    imported = {entry.domain for entry in model.opset_import}
    for node in nodes(model):
        if node.domain not in KNOWN_DOMAINS and node.domain not in local:
            raise UnsupportedOperator(
                f"{origin}: {describe(node)} is of the unknown domain {node.domain!r}",
                next_step="export the model without custom operators",
            )
        if node.domain not in imported and node.domain not in ("", "ai.onnx") and node.domain not in local:
            raise ModelError(f"{origin}: {describe(node)} uses the domain {node.domain!r}, which has no opset import")


def _check_functions(model: ModelProto, origin: str) -> None:
    """Refuse functions that call themselves, and calls that unfold into more nodes than the limit."""
    bodies = {(f.domain, f.name): [(node.domain, node.op_type) for node in f.node] for f in model.functions}
    if len(bodies) != len(model.functions):
        raise ModelError(f"{origin}: two model-local functions have the same name")
    sizes: dict[tuple[str, str], int] = {}
    while len(sizes) < len(bodies):
        ready = [key for key in bodies if key not in sizes and all(c in sizes or c not in bodies for c in bodies[key])]
        if not ready:
            loop = sorted(name for _, name in bodies.keys() - sizes.keys())
            raise ModelError(f"{origin}: model-local functions call themselves: {', '.join(loop)}")
        for key in ready:
            sizes[key] = sum(sizes.get(call, 1) for call in bodies[key])
    total = sum(sizes.get((n.domain, n.op_type), 1) for graph, _ in graphs(model) for n in graph.node)
    if total > MAX_NODES:
        raise ModelError(f"{origin}: its functions unfold into {total} nodes, the limit is {MAX_NODES}")


def _check_names(model: ModelProto, origin: str) -> None:
    for graph, _ in graphs(model):
        _refuse_repeats((value.name for value in graph.input), "graph input", origin=origin)
        _refuse_repeats((value.name for value in graph.output), "graph output", origin=origin)
        _refuse_repeats((tensor.name for tensor in graph.initializer), "initializer", origin=origin)
        _refuse_repeats((node.name for node in graph.node if node.name), "node", origin=origin)
        _refuse_repeats(_made_names(graph.node), "tensor", origin=origin)
        made = set(_made_names(graph.node))
        given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        if made & given:
            raise ModelError(f"{origin}: tensor {min(made & given)!r} is both given and computed by a node")


def _made_names(graph_nodes: Iterable[NodeProto]) -> Iterable[str]:
    return (name for node in graph_nodes for name in node.output if name)


def _refuse_repeats(names: Iterable[str], what: str, *, origin: str) -> None:
    name, count = next(iter(Counter(names).most_common(1)), ("", 1))
    if count > 1:
        raise ModelError(f"{origin}: {what} name {name!r} stands {count} times, names must be unique")


def _check_declared_shape(dims: Iterable[int], where: str) -> None:
    shape = list(dims)
    if len(shape) > MAX_RANK:
        raise CorruptFile(f"{where}: {len(shape)} dimensions, the limit is {MAX_RANK}")
    if any(size < 0 for size in shape):
        raise CorruptFile(f"{where}: shape {shape} has a negative dimension")
    if math.prod(size for size in shape if size) > 2**62:
        raise CorruptFile(f"{where}: shape {shape} has more values than a 64-bit number can count")


def _check_inline_data(tensor: TensorProto, needed: int, *, where: str) -> None:
    _, field, per_value = _STORAGE[tensor.data_type]
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != needed or tensor.data_type == type(tensor).STRING:
            found = len(tensor.raw_data)
            raise CorruptFile(f"{where}: shape {list(tensor.dims)} needs {needed} bytes, raw_data holds {found}")
        return
    entries = math.ceil(math.prod(tensor.dims) * per_value)
    found = len(getattr(tensor, field))
    if found != entries:
        raise CorruptFile(f"{where}: shape {list(tensor.dims)} needs {entries} values, {field} holds {found}")
