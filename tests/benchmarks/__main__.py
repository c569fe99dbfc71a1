"""`python -m tests.benchmarks --list`, or `NAME`: last on stdout one JSON object; exit 1 if a bar fails."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from edgeexport.workspace import version_of
from tests.benchmarks.bar import Bar
from tests.benchmarks.part import choose

BENCHMARKS = {
    "calibration": "EfficientNet-Lite0: peak memory at 32, 128, 1000 pictures; time beside onnxruntime's min-max",
    "coverage": "44 architectures with random weights: pruned by 30 %, equal to zero-masked, exported, run, smaller",
    "demo": "edgeexport demo: seconds, bundle sizes, accuracy drops",
    "devices": "a bundle on real devices: behind OpenSSH, behind adbd; each gives a valid record",
    "minilm-int8": "MiniLM in int8: cosine, latency ratio, STS-B Spearman drop, beside onnxruntime's quantize_dynamic",
    "distil-gain": "a ResNet-8 with and without its teacher, three seeds, equal CPU time: gain with its interval",
    "cli": "start-up of --help, targets and verify against bare Python; a second identical run against the first",
    "fusion": "ResNet-20/56 and EfficientNet-Lite0: convolutions in integers on x86-64 and Armv8.2, float islands",
    "peers": "quantize_static, Olive, NNCF and edgeexport side by side: accuracy, size, speed, memory, lines",
    "resnet56-ptq": "ResNet-56 in int8: size and speed against fp32 and the best peer",
    "lite0": "EfficientNet-Lite0 in int8: agreement and speed beside onnxruntime's own int8 and NNCF's",
    "lite0-per-tensor": "the same with one scale for each weight",
    "keyword": "spoken digits: a DS-CNN distilled and in int8, beside itself and a small net trained alone as long",
    "qat-rescue": "EfficientNet-Lite0 with one scale for each weight: what min-max and QAT lose",
    "minilm-depth": "MiniLM with half its layers: STS-B Spearman and int8 latency beside the full model, tuned alike",
    "resnet56": "ResNet-56 cut, distilled, in int8: accuracy against a control of the same CPU time, size, speed",
    "resnet44": "the same of a ResNet-44, where its checkpoint lies beside the data",
    "resnet32": "the same of a ResNet-32",
    "never-worse": "six real models down the whole road: nothing ships slower or worse than allowed",
    "timing-truth": "our mean against onnxruntime_test and litert-benchmark on the same files",
    "aa": "200 comparisons of a model with itself under changing load: differences claimed",
    "planted": "planted slow-downs of 5 and 10 %: how often they are found",
    "throttle": "simulated steady and throttling machines, and spinning processes: what is flagged",
    "memory-truth": "known allocations of 10 to 500 MB under a fat parent",
    "emulated": "every emulated Arm CPU x (onnxruntime, LiteRT) x (fp32, int8) on two networks, against this machine",
    "icount": "instructions of one inference, counted 5 times in two processes each: largest deviation",
}
PACKAGES = ("torch", "onnx", "onnxruntime", "ai-edge-litert", "litert-torch", "ai-edge-quantizer", "numpy")

Benchmark = Callable[[], tuple[dict[str, Any], dict[str, Bar]]]


def main() -> int:
    """Run one benchmark, or list them all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("name", nargs="?", choices=sorted(BENCHMARKS))
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    parser.add_argument("--part", default="1/1", help="of `aa` and `planted`: 2/5 is the second of five parts")
    arguments = parser.parse_args()
    choose(arguments.part)
    if arguments.list or arguments.name is None:
        for name, what in BENCHMARKS.items():
            sys.stdout.write(f"{name:18}{what}\n")
        return 0
    run: Benchmark = importlib.import_module(f"tests.benchmarks.{arguments.name.replace('-', '_')}").run
    figures, bars = run()
    record = {
        "name": arguments.name,
        "part": arguments.part,
        "figures": figures,
        "bars": {key: {**asdict(bar), "holds": bar.holds} for key, bar in bars.items()},
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
    }
    sys.stdout.write(json.dumps(record) + "\n")
    return 0 if all(bar.holds for bar in bars.values()) else 1


def machine() -> dict[str, Any]:
    """Return what the figures were seen on."""
    import os

    from edgeexport.devices.local import host_features

    vector = [
        name for name in sorted(host_features()) if name in {"avx2", "avx512_vnni", "avx_vnni", "asimddp", "i8mm"}
    ]
    return {"arch": platform.machine(), "cores": os.cpu_count(), "features": vector, "system": platform.system()}


if __name__ == "__main__":
    sys.exit(main())
