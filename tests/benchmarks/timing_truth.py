"""Our mean latency against the means of the runtimes' own tools on the same files, launch beside launch."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeexport.devices.local import Local, clean_environment
from tests.benchmarks.bar import Bar

ROUNDS, ITERATIONS, WARMUP = 24, 100, 5
SHAPE = (1, 3, 64, 64)
# Two threads: onnxruntime_test takes as many as there are cores, and has no option for it.
NETWORK = """
import sys, torch, litert_torch
from torch import nn
torch.manual_seed(0)
layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()]
for _ in range(6):
    layers += [nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()
x = (torch.rand(1, 3, 64, 64),)
torch.onnx.export(net, x, sys.argv[1] + "/m.onnx", dynamo=False)
litert_torch.convert(net, x).export(sys.argv[1] + "/m.tflite")
"""


@dataclass(frozen=True)
class Tool:
    """A runtime's own tool: its name, our job for the same file, and how to get the tool's mean in milliseconds."""

    name: str
    job: dict[str, Any]
    mean_ms: Callable[[], float]


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Run tool and device program in turn, in changing order; the ratio is the median over the rounds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-c", NETWORK, name], check=True, capture_output=True, timeout=300)
        np.save(folder / "x.npy", np.random.default_rng(0).random(SHAPE, np.float32))
        figures: dict[str, Any] = {}
        for tool in _tools(folder):
            ours, theirs = _interleaved(tool)
            ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
            figures[f"{tool.name}_ratio"] = statistics.median(ratios)
            figures[f"{tool.name}_ours_ms"] = statistics.median(ours)
            figures[f"{tool.name}_theirs_ms"] = statistics.median(theirs)
            figures[f"{tool.name}_ratios"] = [round(ratio, 3) for ratio in sorted(ratios)]
    figures["seconds"] = time.monotonic() - began
    names = [key.removesuffix("_ratio") for key in figures if key.endswith("_ratio")]
    return figures, {
        key: Bar(abs(figures[f"{key}_ratio"] - 1), 0.03, f"our mean is that of {key} within 3 %") for key in names
    }


def _interleaved(tool: Tool) -> tuple[list[float], list[float]]:
    ours, theirs = [], []
    for number in range(ROUNDS):
        sys.stderr.write(f"{tool.name}: round {number + 1} of {ROUNDS}\n")
        steps = [lambda: ours.append(_our_mean(tool.job)), lambda: theirs.append(tool.mean_ms())]
        for step in steps if number % 2 else steps[::-1]:
            step()
    return ours, theirs


def _our_mean(job: dict[str, Any]) -> float:
    return float(np.mean(Local().run(job, timeout=120)["iterations_ns"])) / 1e6


def _tools(folder: Path) -> list[Tool]:
    limits = {"iterations": ITERATIONS, "seconds": 0, "cap_iterations": ITERATIONS}
    job = {"mode": "time", "warmup": {"iterations": WARMUP}, "timed": limits}

    def ort_mean() -> float:
        start = [sys.executable, "-m", "onnxruntime.tools.onnxruntime_test", str(folder / "m.onnx"), str(ITERATIONS)]
        return float(re.findall(r"avg latency: ([0-9.e-]+) ms", _started(start, threads=2))[0])

    def litert_mean() -> float:
        tool, result = Path(sys.executable).parent / "litert-benchmark", folder / "result.json"
        counts = [f"--num_runs={ITERATIONS}", f"--warmup_runs={WARMUP}", f"--result_json={result}"]
        _started([str(tool), f"--model={folder / 'm.tflite'}", *counts], threads=1)
        return float(json.loads(result.read_text(encoding="utf-8"))["latency"]["avg_ms"])

    return [
        Tool("onnxruntime_test", {**job, **_opened(folder, "m.onnx", threads=2)}, ort_mean),
        Tool("litert-benchmark", {**job, **_opened(folder, "m.tflite", threads=1)}, litert_mean),
    ]


def _opened(folder: Path, file: str, *, threads: int) -> dict[str, Any]:
    if file.endswith(".tflite"):
        from ai_edge_litert.interpreter import Interpreter

        name = Interpreter(str(folder / file)).get_input_details()[0]["name"]
        return _input(folder, file, threads=threads, runtime="ai_edge_litert", name=name)
    import onnxruntime

    name = onnxruntime.InferenceSession(str(folder / file)).get_inputs()[0].name
    return _input(folder, file, threads=threads, runtime="onnxruntime", name=name)


def _input(folder: Path, file: str, *, threads: int, runtime: str, name: str) -> dict[str, Any]:
    inputs = [{name: str(folder / "x.npy")}]
    return {"runtime": runtime, "model": str(folder / file), "threads": threads, "inputs": inputs}


def _started(command: list[str], *, threads: int) -> str:
    environment = clean_environment(threads)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout
