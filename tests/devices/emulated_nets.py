"""Tiny networks for emulated CPUs, and how a job for them is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.device_bench.tiny import saved

WIDTH = 64


def integer_model(path: Path) -> Path:
    """Write `x` (1, 64) -> `y`: quantized dynamically, then multiplied with a 64 x 64 int8 matrix."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["y"], to=TensorProto.FLOAT),
    ]
    return _written(path, nodes, [numpy_helper.from_array(weights, "w")])


def half_model(path: Path) -> Path:
    """Write `x` (1, 64) -> `y`: in fp16, with sums of about 90,000 in between, which fp16 cannot hold (65,504)."""
    from onnx import TensorProto, helper, numpy_helper

    grow = np.full((WIDTH, WIDTH), 1500, np.float16)
    shrink = np.full((WIDTH, WIDTH), 2.0**-20, np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "grow"], ["big"]),
        helper.make_node("MatMul", ["big", "shrink"], ["small"]),
        helper.make_node("Cast", ["small"], ["y"], to=TensorProto.FLOAT),
    ]
    return _written(path, nodes, [numpy_helper.from_array(grow, "grow"), numpy_helper.from_array(shrink, "shrink")])


def sample(seed: int = 1) -> dict[str, Any]:
    """One input of either network, around one."""
    return {"x": 1 + np.random.default_rng(seed).standard_normal((1, WIDTH)).astype(np.float32) / 16}


def job(model: Path, *, samples: int = 1, runtime: str = "onnxruntime") -> dict[str, Any]:
    """Return a job of mode `outputs`, its inputs written beside the model."""
    inputs = [{"x": saved(model.parent, f"x{index}.npy", sample(index)["x"])} for index in range(samples)]
    return {"mode": "outputs", "runtime": runtime, "model": str(model), "inputs": inputs}


def _written(path: Path, nodes: list[Any], weights: list[Any]) -> Path:
    import onnx
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, path.stem, ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
