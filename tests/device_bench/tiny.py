"""Tiny models and jobs for the device program, and a way to run it as a user would: by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.needs import ROOT

BENCH = ROOT / "device_bench" / "bench.py"
WIDTH = 64


def dense_model(path: Path, layers: int = 2, *, width: int = WIDTH) -> Path:
    """Write an ONNX model `x` -> `y` of `layers` fully connected layers with ReLU."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, current = [], [], "x"
    for index in range(layers):
        values = (rng.standard_normal((width, width)) / width**0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{index}"))
        following = "y" if index + 1 == layers else f"r{index}"
        nodes.append(helper.make_node("MatMul", [current, f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Relu", [f"m{index}"], [following]))
        current = following
    shape: list[str | int | None] = ["batch", width]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def sample(rows: int = 1, *, width: int = WIDTH) -> dict[str, Any]:
    """One input for `dense_model`."""
    return {"x": np.random.default_rng(1).standard_normal((rows, width)).astype(np.float32)}


def saved(folder: Path, name: str, value: Any) -> str:
    """Write an array; return its path as jobs name it."""
    np.save(folder / name, value)
    return str(folder / name)


def job(mode: str, model: Path, **more: Any) -> dict[str, Any]:
    """A small job for `dense_model`, its input written beside the model."""
    inputs = [{"x": saved(model.parent, "x.npy", sample()["x"])}]
    counts = {"warmup": {"iterations": 2}, "timed": {"iterations": 20, "seconds": 0, "cap_seconds": 30}}
    return {"mode": mode, "runtime": "onnxruntime", "model": str(model), "inputs": inputs, **counts, **more}


def run(content: Any, *, raw: str | None = None, path: Path | None = None) -> tuple[int, dict[str, Any], str]:
    """Start the program on a job; return its exit code, its answer, and its stderr. Anything but one line fails."""
    text = json.dumps(content) if raw is None else raw
    env = {**os.environ, "PYTHONPATH": str(path)} if path else None
    command = [sys.executable, "-P", str(BENCH)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False, env=env)
    lines = done.stdout.splitlines()
    assert len(lines) == 1, f"{done.stdout!r} {done.stderr}"
    return done.returncode, json.loads(lines[0]), done.stderr
