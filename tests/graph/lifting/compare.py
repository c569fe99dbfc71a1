"""One node, run by onnxruntime and by its lifted twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper

from edgeexport.graph import lift

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    """Random numbers around zero."""
    return RANDOM.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    """Random numbers from 0.1 on."""
    return np.abs(normal(*shape)) + np.float32(0.1)


def ints(*values: int) -> np.ndarray:
    """A stored list of integers."""
    return np.array(values, np.int64)


def one_node(
    op: str,
    feeds: Sequence[np.ndarray],
    stored: Sequence[np.ndarray | None] = (),
    *,
    opset: int = 20,
    outputs: int = 1,
    **attributes: Any,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return a model of one node and its feeds; its inputs are the feeds, then the stored tensors (None: left out)."""
    given = {f"x{i}": value for i, value in enumerate(feeds)}
    kept = {f"s{i}": value for i, value in enumerate(stored) if value is not None}
    names = [*given, *(f"s{i}" if value is not None else "" for i, value in enumerate(stored))]
    out = [f"y{i}" for i in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, out, name="node", **attributes)],
        "one",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in given.items()],
        [onnx.ValueInfoProto(name=name) for name in out],
        [numpy_helper.from_array(value, name) for name, value in kept.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return model, given


def agree(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], *, tolerance: float = 1e-5) -> None:
    """Compare the lifted model with onnxruntime: types, shapes and numbers of every output."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected = ort.InferenceSession(model.SerializeToString(), options).run(None, dict(feeds))
    got = lift(model)(*(torch.from_numpy(value) for value in feeds.values()))
    for ours, theirs in zip(got if isinstance(got, tuple) else (got,), expected, strict=True):
        assert tuple(ours.shape) == theirs.shape
        assert ours.numpy(force=True).dtype == theirs.dtype
        scale = float(np.abs(np.nan_to_num(theirs.astype(np.float64))).max(initial=1.0))
        np.testing.assert_allclose(ours.numpy(force=True), theirs, rtol=tolerance, atol=tolerance * scale)


def check(op: str, feeds: Sequence[np.ndarray], stored: Sequence[np.ndarray | None] = (), **rest: Any) -> None:
    """Build one node and compare."""
    agree(*one_node(op, feeds, stored, **rest))
