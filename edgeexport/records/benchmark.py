"""BenchRecord: one `bench`, as one line of an append-only file; and what `tune` tried.

The rule: a line names the digest of the line before it, so a line that was changed or taken out is noticed. The schema
is published in `benchmark.schema.json` beside this file.
"""

from __future__ import annotations

from typing import Any

from edgeexport.records.base import Record
from edgeexport.records.emulation import InstructionCounts
from edgeexport.records.measurement import Claim, Comparison, Interval, Measurement, Mode
from edgeexport.records.verdict import State

SCHEMA_VERSION = 1
# How the warning begins that the figures of a bundle do not speak for what it was made for.
NOT_FOR_TARGET = "not for its target"


class Rail(Record):
    """What one energy counter showed: watts at rest and at work, and joules of one inference net of rest."""

    name: str
    idle_w: float
    busy_w: float
    j_per_inference: float
    seconds: float


class Energy(Record):
    """Energy by the machine's own counters; without any, `reason` says "not measured" and why."""

    rails: tuple[Rail, ...] = ()
    reason: str = ""


class NodeTime(Record):
    """One node of the model: microseconds of one inference, in a launch of its own under the runtime's profiler."""

    name: str
    op: str
    provider: str
    us: float


class Throughput(Record):
    """Samples in a second: the median of the launches, and their least and most."""

    threads: int
    batch: int
    samples_per_second: float
    least: float
    most: float


class Replication(Record):
    """Whether the figure came out again: within 5 % in 5 tries, 5 minutes apart (MLPerf Mobile's rule).

    tries: like measurements in the same file, this one and at most four before it, each 5 minutes or more apart.
    spread: slowest / fastest - 1 of their medians. fails: it is not replicable; unproven: too few tries to say.
    """

    state: State = "unproven"
    tries: int = 0
    spread: float | None = None
    reason: str = ""


class Entry(Record):
    """One model on one device. raw: digest of the file that holds every launch with all its iterations.

    counts: instructions of one inference on an emulated CPU, which has no times.
    """

    device: str
    model_bytes: int
    measurement: Measurement
    energy: Energy
    nodes: tuple[NodeTime, ...] = ()
    nodes_reason: str = ""
    throughput: tuple[Throughput, ...] = ()
    raw: str = ""
    replicable: Replication = Replication()
    counts: InstructionCounts | None = None


class Compared(Record):
    """Two labels on one device, and their ratio from interleaved launches."""

    device: str
    baseline: str
    candidate: str
    comparison: Comparison


class BenchRecord(Record):
    """One bench. prev_digest: of the bytes of the line before this one in its file; empty for the first."""

    schema_version: int
    created_utc: str
    tool_version: str
    mode: Mode
    seed: int
    entries: tuple[Entry, ...]
    compared: tuple[Compared, ...]
    prev_digest: str = ""


class Gated(Record):
    """One figure against the same figure of a stored record: new / old, and whether it keeps within what is allowed.

    what: "latency", "peak memory" or "instructions". allowed: 0.05 is 5 % more. unproven: the noise is larger than the
    answer.
    """

    label: str
    device: str
    what: str
    ratio: Interval
    allowed: float
    state: State
    reason: str = ""


class Trial(Record):
    """Settings that `tune` tried beside those in force then. No ratio: `reason` says why it was not measured."""

    setting: str
    value: str
    ratio: Interval | None
    claim: Claim | None
    kept: bool
    reason: str = ""


class Tuning(Record):
    """What `tune` tried, and the settings that it ended with. changed: whether any beat the bundle's own.

    bundle, out: paths as given; in the bundle's own copy just the names.
    """

    bundle: str
    device: str
    trials: tuple[Trial, ...]
    threads: int
    session_options: dict[str, Any]
    changed: bool
    out: str = ""
