"""Arithmetic on sizes: the operators that may stand between a Shape and the Reshape that uses it.

The rule: values are object arrays of Python numbers, symbolic ones for a free batch among them, so that torch.export
sees the sizes themselves and nothing depends on data.
"""
# ruff: noqa: ARG001, ARG005  every builder gets its node and every operator all its inputs, needed or not

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeexport.graph.lifting.node import Build, Node, Run

_INTEGERS = (2, 3, 5, 6, 7)


def as_numbers(values: Sequence[Any]) -> np.ndarray:
    """Return a one-dimensional object array of these numbers."""
    result = np.empty(len(values), dtype=object)
    result[:] = list(values)
    return result


def stored_numbers(value: np.ndarray) -> np.ndarray:
    """Return a stored array as an object array of Python numbers."""
    result = np.empty(value.shape, dtype=object)
    result[...] = value.tolist()
    return result


def as_tensor(value: np.ndarray) -> Tensor:
    """Return numbers as a tensor: integers as int64, else float32."""
    flat = list(value.ravel())
    if all(isinstance(number, int) for number in flat):
        return torch.tensor(flat, dtype=torch.int64).reshape(value.shape)
    whole = all(isinstance(number, int | torch.SymInt) for number in flat)
    dtype = torch.int64 if whole else torch.float32
    return torch.stack([torch.full((), number, dtype=dtype) for number in flat]).reshape(value.shape)


def shape(node: Node) -> Run:
    """Shape, whole or from `start` to `end`."""
    start, end = node.get("start", 0), node.get("end")
    return lambda x: as_numbers(x.shape[start:end])


def size(node: Node) -> Run:
    """Size: the number of values."""
    return lambda x: _scalar(math.prod(x.shape))


def _scalar(number: Any) -> np.ndarray:
    result = np.empty((), dtype=object)
    result[()] = number
    return result


def _each(function: Callable[..., Any]) -> Build:
    def run(*values: np.ndarray) -> np.ndarray:
        arrays = np.broadcast_arrays(*values)
        result = np.empty(arrays[0].shape, dtype=object)
        for place in np.ndindex(result.shape):
            result[place] = function(*(array[place] for array in arrays))
        return result

    return lambda node: run


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, float | torch.SymFloat) or isinstance(b, float | torch.SymFloat):
        return a / b
    return a // b if not isinstance(a, int) or a >= 0 else -(-a // b)


def _cast(node: Node) -> Run:
    node.get("saturate")
    to = node.get("to")
    if to in _INTEGERS:
        return _each(lambda n: n if isinstance(n, int | torch.SymInt) else torch.sym_int(n))(node)  # type: ignore[no-untyped-call]
    return _each(torch.sym_float)(node)


def _gather(node: Node) -> Run:
    axis = int(node.get("axis", 0))
    return lambda x, indices: _array(np.take(x, np.array(indices.tolist(), dtype=np.int64), axis=axis))


def _array(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else _scalar(value)


def _concat(node: Node) -> Run:
    axis = int(node.get("axis", 0))
    return lambda *parts: np.concatenate(parts, axis=axis)


def _slice(node: Node) -> Run:
    def run(x: np.ndarray, *bounds: Any) -> np.ndarray:
        step = bounds[3][0] if len(bounds) > 3 and bounds[3] is not None else 1
        return x[slice(bounds[0][0], bounds[1][0], step)]

    if node.opset >= 10:
        return run
    starts, ends = node.ints("starts", []), node.ints("ends", [])
    node.get("axes")
    return lambda x: run(x, starts, ends)


def _unsqueeze(node: Node) -> Run:
    axes = node.stored_ints(1, "axes") if node.opset >= 13 else node.ints("axes", [])
    return lambda x, *rest: np.expand_dims(x, tuple(axes or [0]))


def _squeeze(node: Node) -> Run:
    axes = node.stored_ints(1, "axes") if node.opset >= 13 else node.ints("axes", [])
    return lambda x, *rest: _array(np.squeeze(x, axis=tuple(axes) if axes else None))


def _reduce_prod(node: Node) -> Run:
    keep = bool(node.get("keepdims", 1))
    if node.opset >= 18:
        node.stored_ints(1, "axes")
        node.get("noop_with_empty_axes")
    else:
        node.get("axes")
    return lambda x, *rest: as_numbers([math.prod(x)]) if keep else _scalar(math.prod(x))


def _identity(node: Node) -> Run:
    return lambda x: x


def _reshape(node: Node) -> Run:
    node.get("allowzero")
    return lambda x, to: x.reshape([int(number) for number in to])


NUMBERS: dict[str, Build] = {
    "Add": _each(lambda a, b: a + b),
    "Cast": _cast,
    "Ceil": _each(lambda a: float(math.ceil(a)) if isinstance(a, float) else math.ceil(a)),
    "Concat": _concat,
    "Div": _each(_divide),
    "Equal": _each(lambda a, b: bool(a == b)),
    "Floor": _each(lambda a: float(math.floor(a)) if isinstance(a, float) else math.floor(a)),
    "Gather": _gather,
    "Identity": _identity,
    "Max": _each(torch.sym_max),
    "Min": _each(torch.sym_min),
    "Mul": _each(lambda a, b: a * b),
    "Neg": _each(lambda a: -a),
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _each(lambda a, b: a - b),
    "Unsqueeze": _unsqueeze,
    "Where": _each(lambda condition, a, b: a if condition else b),
}
