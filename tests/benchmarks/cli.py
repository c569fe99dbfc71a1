"""Start-up of the light verbs as ratios to bare Python, and a second identical `run` as a ratio to the first."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.bar import Bar
from tests.benchmarks.commands import interleaved, seconds

ROUNDS = 7
# A bare interpreter takes about 0.02 s on the machine of record; --help must stay under 0.25 s there.
HELP_RATIO = 10.0
VERIFY_RATIO = 25.0
SECOND_RUN_SECONDS = 3.0
SECOND_RUN_RATIO = 0.2

MODELS = """
from torch import nn


def net():
    return nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, 10))
"""
RECIPE = """
[model]
factory = "models:net"
inputs = { image = [1, 1, 8, 8] }

[data]
pool = "digits"
metric = "agreement"

[[step]]
do = "quantize"
"""


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Time a small run twice, then the light verbs on its bundle."""
    tool = [sys.executable, "-m", "edgeexport"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "models.py").write_text(MODELS, encoding="utf-8")
        (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
        job = [*tool, "run", "recipe.toml", "--target", "linux-arm64"]
        first, _ = seconds(job, cwd=folder)
        second, _ = seconds(job, cwd=folder)
        bundle = "edgeexport-out/linux-arm64.bundle"
        commands = {
            "python": [sys.executable, "-c", "pass"],
            "help": [*tool, "--help"],
            "targets": [*tool, "targets"],
            "verify": [*tool, "verify", bundle],
        }
        medians = interleaved(commands, cwd=folder, rounds=ROUNDS)
    ratios = {f"{name}_ratio": medians[name] / medians["python"] for name in ("help", "targets", "verify")}
    figures = {"first_run_s": first, "second_run_s": second, "second_run_ratio": second / first, **ratios}
    figures |= {f"{name}_s": value for name, value in medians.items()}
    source = "no outside bar; light verbs load neither torch nor onnx"
    bars = {
        "help_ratio": Bar(ratios["help_ratio"], HELP_RATIO, "--help under 0.25 s in a bare install"),
        "targets_ratio": Bar(ratios["targets_ratio"], VERIFY_RATIO, source),
        "verify_ratio": Bar(ratios["verify_ratio"], VERIFY_RATIO * 2, "verify re-runs the goldens in onnxruntime"),
        "second_run_s": Bar(second, SECOND_RUN_SECONDS, "a second identical run takes under 3 s"),
        "second_run_ratio": Bar(second / first, SECOND_RUN_RATIO, "and does no work"),
    }
    return figures, bars
