"""A tiny transformer encoder with what makes real ones hard: giant channels after a normalization and after Gelu."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.quantization.nets import Net

WORDS, LENGTH, WIDTH, INNER = 200, 12, 64, 128


def small_encoder(path: Path, *, giant: float = 12.0) -> Path:
    """Write word ids → table → normalization → attention → feed-forward, twice → mean over the words."""
    net = Net(seed=3)
    x = net.put("Gather", net.store(net.random.standard_normal((WORDS, WIDTH)).astype(np.float32)), "ids")
    for _ in range(2):
        x = _norm(net, x, giant=giant)
        queries, keys, values = (_linear(net, x, WIDTH, WIDTH) for _ in range(3))
        turned = net.put("Transpose", keys, perm=[0, 2, 1])
        scores = net.put("Mul", net.put("MatMul", queries, turned), net.store(np.float32(1 / WIDTH)))
        x = net.put("Add", net.put("MatMul", net.put("Softmax", scores, axis=-1), values), x)
        x = _norm(net, x, giant=1.0)
        inner = _linear(net, x, WIDTH, INNER, loud=giant)
        x = net.put("Add", _linear(net, net.put("Gelu", inner), INNER, WIDTH), x)
    net.put("ReduceMean", x, net.store(np.array([1], np.int64)), keepdims=0)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ("batch", LENGTH))
    result = helper.make_tensor_value_info(net.nodes[-1].output[0], TensorProto.FLOAT, ("batch", WIDTH))
    graph = helper.make_graph(net.nodes, "net", [ids], [result], net.stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def sentences(count: int, *, seed: int = 5) -> list[dict[str, NDArray[Any]]]:
    """Return random word ids as feeds."""
    random = np.random.default_rng(seed)
    return [{"ids": random.integers(0, WORDS, (1, LENGTH)).astype(np.int64)} for _ in range(count)]


def inside_if(path: Path, *, hidden: int = 64) -> Path:
    """Write a model whose only layers stand in the two branches of an If: one reads an outer weight, one its own."""
    net = Net(seed=4)
    outer = net.store((net.random.standard_normal((64, hidden)) / 8).astype(np.float32))
    own = onnx.numpy_helper.from_array((net.random.standard_normal((64, hidden)) / 8).astype(np.float32), "own")
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", hidden))
    branches = [
        helper.make_graph([helper.make_node("MatMul", ["x", name], ["y"], f"layer_{name}")], name, [], [result], stored)
        for name, stored in ((outer, []), ("own", [own]))
    ]
    node = helper.make_node("If", ["first"], ["out"], "choice", then_branch=branches[0], else_branch=branches[1])
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 64)),
        helper.make_tensor_value_info("first", TensorProto.BOOL, ()),
    ]
    made = helper.make_tensor_value_info("out", TensorProto.FLOAT, ("batch", hidden))
    graph = helper.make_graph([node], "net", inputs, [made], net.stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def _norm(net: Net, x: str, *, giant: float) -> str:
    """A normalization whose fourth channel is `giant` times as large as the others."""
    factor = np.ones(WIDTH, np.float32)
    factor[3] = giant
    return net.put("LayerNormalization", x, net.store(factor), net.store(np.zeros(WIDTH, np.float32)), axis=-1)


def _linear(net: Net, x: str, width: int, into: int, *, loud: float = 1.0) -> str:
    """A MatMul and its bias; the sixth output is `loud` times as large as the others."""
    weight = (net.random.standard_normal((width, into)) / np.sqrt(width)).astype(np.float32)
    weight[3] *= 0.1
    weight[:, 5] *= loud
    bias = net.store((net.random.standard_normal(into) * 0.1).astype(np.float32))
    return net.put("Add", net.put("MatMul", x, net.store(weight)), bias)
