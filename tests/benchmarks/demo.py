"""`edgeexport demo` from an empty folder: seconds, bundle sizes, drops."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.bar import Bar
from tests.benchmarks.commands import seconds

SECONDS = 90.0
MAX_DROP = 1.0


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Run the demo once and read its record."""
    with tempfile.TemporaryDirectory() as folder:
        took, stdout = seconds([sys.executable, "-m", "edgeexport", "demo", "--json"], cwd=Path(folder))
    targets = json.loads(stdout)["targets"]
    figures: dict[str, Any] = {"seconds": took}
    bars = {"seconds": Bar(took, SECONDS, "at most 90 s after installation on 2 cores")}
    for target in targets:
        name = target["target"]
        comparison = target["comparison"]
        figures[name] = {
            "shipped": target["shipped"],
            "bundle_bytes": target["bundle_bytes"],
            "size_ratio": target["size_ratio"],
            "drop": target["drop"] and target["drop"]["value"],
            "latency_ratio": comparison and comparison["ratio"]["value"],
        }
        drop = target["drop"]["value"] if target["drop"] else 0.0
        bars[f"{name} drop"] = Bar(drop, MAX_DROP, "the same threshold as everywhere: 1 point")
    bundles = sum(target["bundle"] is not None for target in targets)
    bars["bundles"] = Bar(bundles, 3, "ONNX int8, ORT format and LiteRT int8, one bundle each", "min")
    return figures, bars
