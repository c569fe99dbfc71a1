"""Bench records as they might have been measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from edgeexport.records.benchmark import BenchRecord, Energy, Entry
from edgeexport.records.measurement import Conditions, Interval, Latency, Measurement, Memory

MEDIANS = (1.00, 1.01, 0.99, 1.02, 1.00, 0.98)


def entry(medians: Sequence[float] = MEDIANS, **changes: Any) -> Entry:
    """A valid entry; `changes` are fields of its measurement, `peak_bytes`, or of its conditions."""
    conditions = Conditions("local", "x86_64", ("avx2",), "a cpu", 2, "ort", "1.32.0", 1, "quick", "sha256:22")
    own = {name: changes.pop(name) for name in list(changes) if name in Conditions.__struct_fields__}
    latency = Latency(Interval(1.0, 0.9, 1.1), tuple(medians), 640, 5.0, 1.5)
    memory = Memory(changes.pop("peak_bytes", 30_000_000), 20_000_000)
    measurement = Measurement(
        "sha256:33", "m.onnx", msgspec.structs.replace(conditions, **own), True,
        latency=latency, memory=memory, sentinel_ms=1.0,
    )  # fmt: skip
    found = msgspec.structs.replace(measurement, **changes)
    return Entry(found.conditions.device, 1000, found, Energy(reason="not measured: a test"))


def record(*entries: Entry) -> BenchRecord:
    """A record of these entries."""
    return BenchRecord(1, "2026-01-01T00:00:00+00:00", "0.1.0", "quick", 0, entries or (entry(),), ())
