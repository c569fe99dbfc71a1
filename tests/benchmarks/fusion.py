"""Do all convolutions run in integers: kernels of the graph as it runs on x86-64, dot products counted on Armv8.2.

A 128-bit dot product does 16 multiply-accumulates. Depthwise convolutions have kernels without any, so the expected
count is that of all other layers.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from edgeexport import graph, quantization, runtimes
from edgeexport.errors import MachineError
from edgeexport.quantization.audit import audit
from edgeexport.quantization.placement import attribute
from edgeexport.records.base import file_digest
from edgeexport.records.target import load_target
from edgeexport.runtimes.protocol import Conversion, Converted
from edgeexport.validation.measure import Subject, run_on_device
from tests.benchmarks.bar import Bar
from tests.benchmarks.host import host_target
from tests.needs import DATA
from tests.quantization.real_nets import exported

NETS = ("resnet20", "resnet56", "lite0")
ARM, PRESET = "raspberry-pi-5", "armv8.2"
MACS_PER_DOT_PRODUCT = 16
LEAST_SHARE = 0.9
INFERENCES = 4


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Export, quantize with a few samples, convert, and look."""
    figures: dict[str, Any] = {}
    bars: dict[str, Bar] = {}
    for name in NETS:
        with tempfile.TemporaryDirectory() as folder:
            spine, samples = exported(DATA, name, Path(folder) / "spine.onnx")
            x86, arm = on_x86(spine, samples), on_arm(spine, samples)
        figures[name] = {host_target(): x86, PRESET: arm}
        total = x86["convolutions"]
        bars[f"{name} x86"] = Bar(x86["in_integers"], total, "all convolutions in integer kernels", "min")
        share = arm.get("dot_products", float("nan")) / arm["expected"]
        bars[f"{name} {PRESET}"] = Bar(share, LEAST_SHARE, "dot products of the layers that are not depthwise", "min")
    return figures, bars


def on_x86(spine: Path, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Kernels and islands of the graph as it runs."""
    target = host_target()
    sys.stderr.write(f"{spine.parent.name}: {target}\n")
    out, converted = built(spine, samples, target)
    found = audit(out, feeds=samples, options=converted.session_options)
    return {
        "convolutions": found.convolutions,
        "in_integers": found.integer_convolutions,
        "kernels": found.counts,
        "islands": [[list(island.origin), round(island.share or 0.0, 4), list(island.causes)] for island in found.lost],
        "transposes": found.transposes,
    }


def on_arm(spine: Path, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Dot products of one inference of the int8 and of the fp32 file, and how many there should be."""
    from edgeexport.devices import emulated

    expected = dense_macs(spine) / MACS_PER_DOT_PRODUCT
    out, converted = built(spine, samples, ARM)
    found: dict[str, Any] = {"expected": round(expected)}
    try:
        machine = emulated.counting(PRESET)
    except MachineError as error:
        return {**found, "missing": str(error)}
    inputs = [samples[index % len(samples)] for index in range(INFERENCES)]
    for key, file, options in (("", out, converted.session_options), ("float_", spine, {})):
        subject = Subject(file.name, file, file_digest(file), "ort", inputs, options=options)
        with tempfile.TemporaryDirectory() as folder:
            run_on_device(subject, device=machine, folder=Path(folder))
        counts = machine.counts
        if counts is None:
            return {**found, "missing": "nothing was counted"}
        found |= {f"{key}dot_products": counts.dot_product, f"{key}instructions": counts.total}
    return found


def built(spine: Path, samples: list[dict[str, Any]], target: str) -> tuple[Path, Converted]:
    """Write the int8 file of a target, as a run would."""
    place, int8, out = load_target(target), spine.with_name("int8.onnx"), spine.with_name("runs.onnx")
    ranges = quantization.calibrate(spine, samples, samples_digest="sha256:0")
    plan = quantization.plan_quantization(spine, ranges, numbers=place.numbers())
    quantization.quantize(spine, plan, out=int8)
    job = Conversion(spine, int8, ranges, plan, lambda: iter(samples), place)
    return out, runtimes.get("ort").convert(job, out)


def dense_macs(spine: Path) -> int:
    """Multiply-accumulates of all layers but depthwise convolutions."""
    model = graph.load(spine)
    counts = Counter(graph.macs(model) or {})
    for node in model.graph.node:
        if node.op_type == "Conv" and attribute(node, "group", default=1) > 1:
            del counts[node.output[0]]
    return sum(counts.values())
