"""EfficientNet-Lite0 with one scale for each weight, as some NPUs need it, beside onnxruntime's own int8."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.bar import Bar
from tests.benchmarks.lite0 import compared

AGREEMENT, DROP = 96.0, 1.0


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Quantize per tensor, without labels or training data, and judge as `lite0` does."""
    with tempfile.TemporaryDirectory() as name:
        rows = compared(Path(name), per_channel=False)
    return rows, {
        "agreement": Bar(rows["ours"]["agreement"], AGREEMENT, "onnxruntime per tensor: 84.4 %", "min"),
        "drop": Bar(rows["ours"]["drop"], DROP, "points of top-1; onnxruntime per tensor: 9.6"),
    }
