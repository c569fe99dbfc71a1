"""Measurement: how fast and how big, under which conditions. Immutable; an invalid one carries reasons, no number."""

from __future__ import annotations

from typing import Literal

from edgeexport.records.base import Record


class Conditions(Record):
    """What must be equal for two measurements to be comparable."""

    device: str
    arch: str
    features: tuple[str, ...]
    cpu: str
    cores: int
    runtime: str
    runtime_version: str
    threads: int
    mode: Literal["smoke", "quick", "official"]
    bench_digest: str


class Interval(Record):
    """A point estimate with a 95 % interval; low and high are None where too few launches allow none."""

    value: float
    low: float | None = None
    high: float | None = None


class Latency(Record):
    """Milliseconds of one inference, batch 1. `launch_medians_ms` one for each fresh process, in order."""

    median_ms: Interval
    launch_medians_ms: tuple[float, ...]
    iterations: int
    load_ms: float
    first_ms: float
    p90_ms: float | None = None
    p99_ms: float | None = None
    outliers: int = 0


class Memory(Record):
    """Peak resident bytes of a launch of its own: the child's VmHWM; `before_load_bytes` is the interpreter's share."""

    peak_bytes: int
    before_load_bytes: int
    method: str = "VmHWM"


class Measurement(Record):
    """One artifact on one device. `valid` is False with `reasons` when the numbers must not be used."""

    artifact: str
    label: str
    conditions: Conditions
    valid: bool
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    latency: Latency | None = None
    memory: Memory | None = None
    sentinel_drift: float | None = None


class Comparison(Record):
    """Candidate / baseline latency from interleaved launches: below 1 is faster."""

    baseline: str
    candidate: str
    ratio: Interval
    claim: Literal["faster", "slower", "no difference shown"]
