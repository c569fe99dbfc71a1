"""Benchmark: models and bundles measured on devices, kept as records, compared with records, and tuned.

The rule: it composes what `validation` measures and `records` keeps; how a number comes about is decided there.
"""

from __future__ import annotations

from edgeexport.benchmark.gating import gate
from edgeexport.benchmark.run import bench
from edgeexport.benchmark.storage import append, raw_launches, read_records
from edgeexport.benchmark.subjects import opened
from edgeexport.benchmark.tuning import tune

__all__ = ["append", "bench", "gate", "opened", "raw_launches", "read_records", "tune"]
