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
from tests.benchmarks.load import favoured

ROUNDS, WARMUP = 24, 5
ORT_ITERATIONS, LITERT_ITERATIONS = 3000, 100
# onnxruntime_test takes onnxruntime's default number of threads, and has no option for it: so does our job, and
# products this small are not divided among them. All weights fit a core's own cache, whoever else uses the shared one.
# litert-benchmark rounds to 0.01 ms, so its model takes some milliseconds.
DEFAULT_THREADS = 0
NETWORK = """
import sys, torch, litert_torch
from torch import nn
torch.manual_seed(0)
layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()]
for _ in range(6):
    layers += [nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()
x = (torch.rand(1, 3, 64, 64),)
litert_torch.convert(net, x).export(sys.argv[1] + "/m.tflite")
small = nn.Sequential(*[part for _ in range(24) for part in (nn.Linear(64, 64), nn.ReLU())]).eval()
torch.onnx.export(small, (torch.rand(15, 64),), sys.argv[1] + "/m.onnx", dynamo=False)
"""


@dataclass(frozen=True)
class Tool:
    """A runtime's own tool: its name, our job for the same file, and how to get the tool's mean in milliseconds.

    counts_first: its mean holds the first inference, some hundred times as long as the others; so does ours then.
    """

    name: str
    job: dict[str, Any]
    mean_ms: Callable[[], float]
    counts_first: bool = False


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Run tool and device program in turn, in changing order; the ratio is the median over the rounds."""
    began, niceness = time.monotonic(), favoured()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-c", NETWORK, name], check=True, capture_output=True, timeout=300)
        figures: dict[str, Any] = {"niceness": niceness}
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
        steps = [lambda: ours.append(_our_mean(tool)), lambda: theirs.append(tool.mean_ms())]
        for step in steps if number % 2 else steps[::-1]:
            step()
    return ours, theirs


def _our_mean(tool: Tool) -> float:
    answer = Local().run(tool.job, timeout=120)
    first = [answer["first_ms"] * 1e6] if tool.counts_first else []
    return float(np.mean([*first, *answer["iterations_ns"]])) / 1e6


def _tools(folder: Path) -> list[Tool]:

    def ort_mean() -> float:
        start = [sys.executable, "-m", "onnxruntime.tools.onnxruntime_test", str(folder / "m.onnx")]
        start.append(str(ORT_ITERATIONS))
        return float(re.findall(r"avg latency: ([0-9.e-]+) ms", _started(start, threads=1))[0])

    def litert_mean() -> float:
        tool, result = Path(sys.executable).parent / "litert-benchmark", folder / "result.json"
        counts = [f"--num_runs={LITERT_ITERATIONS}", f"--warmup_runs={WARMUP}", f"--result_json={result}"]
        _started([str(tool), f"--model={folder / 'm.tflite'}", *counts], threads=1)
        return float(json.loads(result.read_text(encoding="utf-8"))["latency"]["avg_ms"])

    return [
        Tool("onnxruntime_test", _ort_job(folder), ort_mean, counts_first=True),
        Tool("litert-benchmark", _litert_job(folder), litert_mean),
    ]


def _ort_job(folder: Path) -> dict[str, Any]:
    import onnxruntime

    model = folder / "m.onnx"
    spec = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_inputs()[0]
    job = _job(folder, model, name=spec.name, shape=spec.shape)
    limits = {"warmup": {"iterations": 0}, **_limits(ORT_ITERATIONS - 1)}
    return {**job, "runtime": "onnxruntime", "threads": DEFAULT_THREADS, **limits}


def _litert_job(folder: Path) -> dict[str, Any]:
    from ai_edge_litert.interpreter import Interpreter

    model = folder / "m.tflite"
    spec = Interpreter(str(model)).get_input_details()[0]
    job = _job(folder, model, name=spec["name"], shape=spec["shape"])
    return {**job, "runtime": "ai_edge_litert", **_limits(LITERT_ITERATIONS)}


def _job(folder: Path, model: Path, *, name: str, shape: Any) -> dict[str, Any]:
    """Our job for a file, with seeded noise as both tools have it."""
    place = folder / f"{model.suffix[1:]}.npy"
    np.save(place, np.random.default_rng(0).random(tuple(shape), np.float32))
    return {"mode": "time", "model": str(model), "inputs": [{name: str(place)}], "warmup": {"iterations": WARMUP}}


def _limits(iterations: int) -> dict[str, Any]:
    return {"timed": {"iterations": iterations, "seconds": 0, "cap_iterations": iterations}}


def _started(command: list[str], *, threads: int) -> str:
    environment = clean_environment(threads)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout
