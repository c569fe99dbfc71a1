"""Our mean latency against the means of the runtimes' own tools, on the same files and by turns."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgeexport.devices.local import clean_environment
from edgeexport.validation.statistics import order_statistic_ranks
from tests.benchmarks.bar import Bar
from tests.benchmarks.load import favoured
from tests.device_bench.tiny import BENCH

# Each process takes the tool and our program in turn, a tenth of a second each: what the machine does meanwhile, and
# how this process lies in memory, is the same for both.
PROCESSES, PAIRS = 12, 12
# onnxruntime_test has no warm-up, and a session takes some ten milliseconds to settle: of two runs of it, the longer
# less the shorter leaves them out, as our warm-up does.
ORT_ITERATIONS, ORT_WARMUP = 1000, 200
LITERT_ITERATIONS, LITERT_WARMUP = 20, 5
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


# argv: our program, what to do as JSON. Prints pairs of means in milliseconds, ours first.
CHILD = """
import contextlib, importlib.util, io, json, re, sys, types

spec = importlib.util.spec_from_file_location("bench", sys.argv[1])
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)
asked = json.loads(sys.argv[2])

def ours():
    answer = bench.MODES["time"](dict(asked["job"]), types.SimpleNamespace(stage=""))
    return sum(answer["iterations_ns"]) / len(answer["iterations_ns"]) / 1e6

def onnxruntime_test():
    from onnxruntime.tools import onnxruntime_test as tool
    shorter = asked["job"]["warmup"]["iterations"]
    counts, totals = (shorter, shorter + asked["iterations"]), []
    for count in counts:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            tool.run_model(asked["job"]["model"], count)
        totals.append(count * float(re.findall(r"avg latency: ([0-9.e-]+) ms", said.getvalue())[0]))
    return (totals[1] - totals[0]) / asked["iterations"]

def litert_benchmark():
    from ai_edge_litert.tools import benchmark_litert_model as tool
    counts = [f"--num_runs={asked['iterations']}", f"--warmup_runs={asked['job']['warmup']['iterations']}"]
    sys.argv = ["litert-benchmark", "--model=" + asked["job"]["model"], *counts]
    with contextlib.redirect_stdout(io.StringIO()):
        return tool.run_benchmark(tool.parse_args())["latency"]["avg_ms"]

theirs, pairs = globals()[asked["tool"]], []
for number in range(asked["pairs"] + 1):
    steps = [ours, theirs] if number % 2 else [theirs, ours]
    means = {step: step() for step in steps}
    pairs.append((means[ours], means[theirs]))
print(json.dumps(pairs[1:]))
"""


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Let tool and device program take turns in several processes; the ratio is the median over all turns."""
    began, niceness = time.monotonic(), favoured()
    figures: dict[str, Any] = {"niceness": niceness}
    bars = {}
    with tempfile.TemporaryDirectory() as name:
        subprocess.run([sys.executable, "-c", NETWORK, name], check=True, capture_output=True, timeout=300)
        for tool, asked in _asked(Path(name)).items():
            pairs = _pairs(tool, asked)
            ratios = [ours / theirs for ours, theirs in pairs]
            low, high = order_statistic_ranks(len(ratios)) or (1, len(ratios))
            ordered, ratio = sorted(ratios), statistics.median(ratios)
            figures |= {f"{tool}_ratio": ratio, f"{tool}_95": [ordered[low - 1], ordered[high - 1]]}
            figures |= {f"{tool}_ours_ms": statistics.median(ours for ours, _ in pairs)}
            figures |= {f"{tool}_theirs_ms": statistics.median(theirs for _, theirs in pairs)}
            figures |= {f"{tool}_pairs": len(pairs)}
            bars[tool] = Bar(abs(ratio - 1), 0.03, f"our mean is that of {tool} within 3 %")
    figures["seconds"] = time.monotonic() - began
    return figures, bars


def _pairs(tool: str, asked: dict[str, Any]) -> list[tuple[float, float]]:
    """Our mean and the tool's, turn after turn; the first turn of a process, which imports, is left out."""
    found: list[tuple[float, float]] = []
    for number in range(PROCESSES):
        sys.stderr.write(f"{tool}: process {number + 1} of {PROCESSES}\n")
        command = [sys.executable, "-P", "-s", "-c", CHILD, str(BENCH), json.dumps(asked)]
        environment = clean_environment(1)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
        found += [(ours, theirs) for ours, theirs in json.loads(done.stdout.splitlines()[-1])]
    return found


def _asked(folder: Path) -> dict[str, dict[str, Any]]:
    """What each process is asked to do, by tool."""
    ort = {"tool": "onnxruntime_test", "iterations": ORT_ITERATIONS, "pairs": PAIRS}
    litert = {"tool": "litert_benchmark", "iterations": LITERT_ITERATIONS, "pairs": PAIRS}
    return {
        "onnxruntime_test": {**ort, "job": _ort_job(folder)},
        "litert-benchmark": {**litert, "job": _litert_job(folder)},
    }


def _ort_job(folder: Path) -> dict[str, Any]:
    import onnxruntime

    model = folder / "m.onnx"
    spec = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_inputs()[0]
    job = _job(folder, model, name=spec.name, shape=spec.shape)
    limits = _limits(ORT_ITERATIONS, warmup=ORT_WARMUP)
    return {**job, "runtime": "onnxruntime", "threads": DEFAULT_THREADS, **limits}


def _litert_job(folder: Path) -> dict[str, Any]:
    from ai_edge_litert.interpreter import Interpreter

    model = folder / "m.tflite"
    spec = Interpreter(str(model)).get_input_details()[0]
    job = _job(folder, model, name=spec["name"], shape=spec["shape"])
    return {**job, "runtime": "ai_edge_litert", **_limits(LITERT_ITERATIONS, warmup=LITERT_WARMUP)}


def _job(folder: Path, model: Path, *, name: str, shape: Any) -> dict[str, Any]:
    """Our job for a file, with seeded noise as both tools have it."""
    place = folder / f"{model.suffix[1:]}.npy"
    np.save(place, np.random.default_rng(0).random(tuple(shape), np.float32))
    return {"mode": "time", "model": str(model), "inputs": [{name: str(place)}]}


def _limits(iterations: int, *, warmup: int) -> dict[str, Any]:
    timed = {"iterations": iterations, "seconds": 0, "cap_iterations": iterations}
    return {"warmup": {"iterations": warmup}, "timed": timed}
