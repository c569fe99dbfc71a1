"""Run: what one `run` did, rung by rung. The report, the terminal table and `--json` are drawn from it alone."""

from __future__ import annotations

from typing import Literal

from edgeexport.records.artifact import Artifact
from edgeexport.records.base import Record
from edgeexport.records.emulation import EmulationRecord
from edgeexport.records.measurement import Comparison, Measurement
from edgeexport.records.parity import Parity
from edgeexport.records.verdict import Drop, Score, Verdict


class Rung(Record):
    """One step of the ladder.

    name: e.g. "source", "distilled", "pruned 1", "int8 minmax". form: "torch", "fp32", "int8" (layers left in
    float included), "fp16". target: None for rungs
    that all targets share. status: "kept", "rolled back" (its gate failed), "shipped" (in the target's bundle),
    "not chosen" (held, but another rung is better). reason: one sentence for everything but "kept".
    parity: against the rung below. score, drop: on the selection split, against the source. emulation: outputs and
    instructions on emulated CPUs like the target's, where no device ran it.
    """

    name: str
    form: Literal["torch", "fp32", "int8", "fp16"]
    target: str | None
    artifact: Artifact
    status: Literal["kept", "rolled back", "shipped", "not chosen"]
    reason: str = ""
    parity: Parity | None = None
    score: Score | None = None
    drop: Drop | None = None
    measurement: Measurement | None = None
    comparison: Comparison | None = None
    emulation: EmulationRecord | None = None
    notes: tuple[str, ...] = ()


class TargetResult(Record):
    """What came out for one target: a bundle, or the nearest miss.

    score, drop, source_score: on the evaluation set, opened once. bundle: path of the packed file, None if infeasible;
    exit_code then says what is at fault: a limit that is not met (1), the request (2), this machine (3), a device (4).
    """

    target: str
    title: str
    runtime: str
    shipped: str | None
    verdict: Verdict | None
    bundle: str | None
    bundle_bytes: int | None
    score: Score | None
    source_score: Score | None
    drop: Drop | None
    measurement: Measurement | None
    source_measurement: Measurement | None
    comparison: Comparison | None
    size_ratio: float | None
    nearest_miss: str = ""
    exit_code: int = 1


class RunRecord(Record):
    """A whole run. `warnings` are sentences for the user; `splits` are sample counts by name."""

    recipe: str
    recipe_digest: str
    tool_version: str
    metric: str
    splits: dict[str, int]
    rungs: tuple[Rung, ...]
    targets: tuple[TargetResult, ...]
    warnings: tuple[str, ...] = ()
    host: str = ""
