"""The numbers stored in a model: lists of them, and the check that they are numbers.

The rule: a tensor is a weight wherever it is stored, as an initializer or in a Constant node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeexport.errors import ModelError
from edgeexport.graph.walk import describe, graphs, tensors

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto

_FLOATS = ("float16", "float32", "float64", "bfloat16")
# Where a lone infinity is meant: the fill of an attention mask, an open bound.
_INFINITY_IS_MEANT = ("Where", "Clip", "Pad", "Max", "Min")


def initializers(model: ModelProto) -> dict[str, np.ndarray]:
    """Return the main graph's initializers by name, in the order they are stored."""
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def constants(model: ModelProto) -> dict[str, np.ndarray]:
    """Return the values of the main graph's Constant nodes by the name of their output."""
    return {node.output[0]: constant_value(node) for node in model.graph.node if node.op_type == "Constant"}


def constant_value(node: NodeProto) -> np.ndarray:
    """Return the value of a Constant node, whichever of its attribute forms holds it. Raises ModelError for strings."""
    import numpy as np
    from onnx import numpy_helper

    attribute = node.attribute[0]
    if attribute.name == "value":
        return numpy_helper.to_array(attribute.t)
    kinds = {"value_float": "f", "value_floats": "floats", "value_int": "i", "value_ints": "ints"}
    if attribute.name not in kinds:
        raise ModelError(f"Constant {node.output[0]!r} holds {attribute.name}, which is not a number")
    dtype = np.float32 if "float" in attribute.name else np.int64
    return np.array(getattr(attribute, kinds[attribute.name]), dtype=dtype)


def largest_tensors(model: ModelProto, count: int = 10) -> tuple[tuple[str, tuple[int, ...], int], ...]:
    """Return (name, shape, bytes) of the largest stored tensors, largest first."""
    stored = {**initializers(model), **constants(model)}
    ordered = sorted(stored.items(), key=lambda item: (-item[1].nbytes, item[0]))
    return tuple((name, value.shape, value.nbytes) for name, value in ordered[:count])


def check_weights(model: ModelProto) -> None:
    """Raise ModelError at the first stored tensor that holds NaN or an infinity: its name, first index and count.

    A lone infinity that only bounds or fills (Where, Clip, Pad, Max, Min) is meant and stays.
    """
    import numpy as np

    meant = _meant_infinities(model)
    for name, value in _stored_floats(model):
        numbers = value.astype(np.float32) if value.dtype.name == "bfloat16" else value
        bad = np.isnan(numbers) if name in meant else ~np.isfinite(numbers)
        if bad.any():
            first = [int(axis[0]) for axis in np.nonzero(np.atleast_1d(bad))]
            found = float(np.atleast_1d(numbers)[tuple(first)])
            raise ModelError(
                f"{name}: {int(bad.sum())} of {value.size} values are not finite, the first is {found} at {first}",
                next_step="train or export the model again; such a weight spoils every output",
            )


def subnormal_share(model: ModelProto) -> float:
    """Return the share of stored float values that are subnormal: they slow inference on x86 many times over."""
    import numpy as np

    total = subnormal = 0
    for _, value in _stored_floats(model):
        if value.dtype in (np.float32, np.float64):
            total += value.size
            subnormal += int(_is_subnormal(value).sum())
    return subnormal / total if total else 0.0


def flush_subnormals(model: ModelProto) -> ModelProto:
    """Return a copy in which every subnormal float initializer value is zero."""
    import numpy as np

    changed = {
        name: np.where(_is_subnormal(value), value.dtype.type(0), value)
        for name, value in initializers(model).items()
        if value.dtype.name in ("float32", "float64") and _is_subnormal(value).any()
    }
    return with_initializers(model, changed)


def with_initializers(model: ModelProto, values: Mapping[str, np.ndarray]) -> ModelProto:
    """Return a copy with these initializers replaced. Raises ModelError if a name, shape or type does not fit."""
    import onnx
    from onnx import numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    for name, value in values.items():
        if name not in stored:
            raise ModelError(f"the model has no initializer {name!r}")
        new = numpy_helper.from_array(value, name)
        old = stored[name]
        if list(new.dims) != list(old.dims) or new.data_type != old.data_type:
            has = f"shape {list(old.dims)}, type {old.data_type}"
            raise ModelError(f"initializer {name!r} has {has}; given: shape {list(new.dims)}, type {new.data_type}")
        old.CopyFrom(new)
    return copy


def _is_subnormal(value: np.ndarray) -> np.ndarray:
    """Read the bits: where a library has told the CPU to take subnormals for zero, a comparison cannot see them."""
    import numpy as np

    bits: Any = np.ascontiguousarray(value).view(np.uint32 if value.dtype == np.float32 else np.uint64)
    exponent = 0x7F800000 if value.dtype == np.float32 else 0x7FF0000000000000
    fraction = 0x007FFFFF if value.dtype == np.float32 else 0x000FFFFFFFFFFFFF
    found: np.ndarray = ((bits & exponent) == 0) & ((bits & fraction) != 0)
    return found.reshape(value.shape)


def _stored_floats(model: ModelProto) -> list[tuple[str, np.ndarray]]:
    from onnx import numpy_helper

    found = []
    for where, tensor in tensors(model):
        if tensor.data_type in (1, 10, 11, 16):
            found.append((where, numpy_helper.to_array(tensor)))
    for graph, _ in graphs(model):
        lone = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].floats]
        lone += [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value_float"]
        found += [(f"Constant {node.output[0]!r}", constant_value(node)) for node in lone]
    return [(where, value) for where, value in found if value.dtype.name in _FLOATS]


def _meant_infinities(model: ModelProto) -> set[str]:
    """Return the locations of single-value tensors that are read only where an infinity makes sense."""
    meant = set()
    for graph, _ in graphs(model):
        users: dict[str, set[str]] = {}
        for node in graph.node:
            for name in node.input:
                users.setdefault(name, set()).add(node.op_type)
        fills = {name for name, ops in users.items() if ops <= set(_INFINITY_IS_MEANT)}
        small = [tensor.name for tensor in graph.initializer if not tensor.dims or list(tensor.dims) == [1]]
        meant |= {f"initializer {name!r}" for name in small if name in fills}
        for node in graph.node:
            if node.op_type == "Constant" and node.output[0] in fills and constant_value(node).size == 1:
                meant |= {f"attribute 'value' of {describe(node)}", f"Constant {node.output[0]!r}"}
    return meant
