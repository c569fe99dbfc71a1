"""A run record with everything a report may show: for its tests, and for looking at it."""

from __future__ import annotations

from typing import Any, Literal

from edgeexport.records.artifact import Artifact
from edgeexport.records.measurement import Comparison, Conditions, Interval, Latency, Measurement, Memory
from edgeexport.records.parity import Divergence, OutputParity, Parity
from edgeexport.records.run import Rung, RunRecord, TargetResult
from edgeexport.records.verdict import Drop, LimitVerdict, Score, Verdict

Status = Literal["kept", "rolled back", "shipped", "not chosen"]
HERE = Conditions(
    device="local", arch="x86_64", features=("avx2", "avx512_vnni"), cpu="A CPU of this machine", cores=2,
    runtime="ort", runtime_version="1.32.0", threads=1, mode="quick", bench_digest="sha256:" + "b" * 64,
)  # fmt: skip


def artifact(name: str, size: int, *, parent: str = "", form: Any = "onnx") -> Artifact:
    digest = "sha256:" + name.encode().hex().ljust(64, "0")[:64]
    return Artifact(path=f"{name}.{form}", format=form, digest=digest, bytes=size, parent=parent, maker="stage")


def score(value: float, samples: int = 360) -> Score:
    rows = (("cat", samples // 2, value + 1), ("dog", samples // 2, value - 1))
    return Score("top1", value, "points", samples, "sha256:" + "5" * 64, per_class=rows)


def drop(value: float, half: float = 0.8) -> Drop:
    return Drop(value, value - half, value + half, value + 0.8 * half, "mcnemar", 360, agreement=0.981)


def measured(median: float, memory: int = 31_000_000) -> Measurement:
    latency = Latency(Interval(median, 0.95 * median, 1.06 * median), (median,) * 5, 200, 3.2, 1.1)
    return Measurement(
        "sha256:a", "candidate", HERE, valid=True, latency=latency, memory=Memory(memory, 25_000_000),
        sentinel_drift=0.012, warnings=("the governor is not `performance`",),
    )  # fmt: skip


def parity(sqnr: float, *, holds: bool = True) -> Parity:
    found = None if holds else Divergence("layer3.0.relu", "Conv_17", "Conv", 4.2)
    rows = (OutputParity("logits", 0.31, 0.02, sqnr, 0.999),)
    return Parity("a", "b", 8, rows, holds=holds, first_divergence=found)


def rung(name: str, size: int, *, value: float, status: Status = "kept", **fields: Any) -> Rung:
    form = "int8" if "int8" in name else "fp32"
    kind = fields.pop("kind", "onnx")
    parent = fields.pop("parent", "")
    return Rung(
        name=name, form=form, target=fields.pop("target", None), status=status,
        artifact=artifact(name, size, parent=parent, form=kind), score=score(value), drop=drop(98.3 - value), **fields,
    )  # fmt: skip


def target_rungs(target: str, *, timed: bool) -> tuple[Rung, ...]:
    faster = Comparison("fp32", "int8", Interval(0.36, 0.34, 0.39), "faster")
    times: dict[str, Any] = {"measurement": measured(0.112), "comparison": faster} if timed else {}
    base: dict[str, Any] = {"measurement": measured(0.311, 38_000_000)} if timed else {}
    return (
        rung("source fp32", 1_204_000, value=98.3, status="not chosen", target=target,
             reason="the source itself, for comparison", **base),
        rung("pruned 1 int8 minmax", 92_000, value=93.1, status="rolled back", target=target,
             reason="int8 differs from float: 6.1 dB at logits, at least 10 dB are asked for; see layer3.0.relu",
             parity=parity(6.1, holds=False)),
        rung("pruned 1 int8 percentile", 92_000, value=97.8, status="shipped", target=target,
             reason="the best rung that holds; 1 before it did not", parity=parity(31.5), kind="ort", parent="sha256:q",
             **times),
    )  # fmt: skip


def verdict(target: str, *, proven: bool) -> Verdict:
    where = "measured on x86_64, the target is aarch64"
    state = "holds" if proven else "unproven"
    latency = (0.39, "") if proven else (None, where)
    return Verdict(target, "sha256:c", "evaluation", (
        LimitVerdict("max_drop", 1.0, 0.4, 0.92, "holds"),
        LimitVerdict("max_size_mb", 0.5, 0.092, 0.092, "holds"),
        LimitVerdict("never_larger", 1_204_000.0, 92_000.0, 92_000.0, "holds"),
        LimitVerdict("never_slower", 1.0, latency[0], latency[0], state, latency[1]),  # type: ignore[arg-type]
    ))  # fmt: skip


def result(target: str, *, proven: bool) -> TargetResult:
    found = measured(0.112) if proven else None
    return TargetResult(
        target=target, title=f"A board like {target}", runtime="ort", shipped="pruned 1 int8 percentile",
        verdict=verdict(target, proven=proven), bundle=f"{target}.bundle", bundle_bytes=141_000,
        score=score(97.9, 1078), source_score=score(98.3, 1078), drop=drop(0.4),
        measurement=found, source_measurement=found,
        comparison=Comparison("fp32", "int8", Interval(0.36, 0.34, 0.39), "faster") if proven else None,
        size_ratio=92_000 / 1_204_000,
    )  # fmt: skip


def infeasible(target: str) -> TargetResult:
    return TargetResult(
        target=target, title="", runtime="litert", shipped=None, verdict=None, bundle=None, bundle_bytes=None,
        score=None, source_score=None, drop=None, measurement=None, source_measurement=None,
        comparison=None, size_ratio=None,
        nearest_miss="nearest is pruned 1 int8 mse: max_drop fails, 1.4 lost on 360 samples, 1 allowed",
    )  # fmt: skip


def sample_run(**fields: Any) -> RunRecord:
    shared = (
        rung("source", 1_210_000, value=98.3, parity=parity(120.0), notes=("exporter: dynamo",)),
        rung("distilled", 402_000, value=98.1, parity=parity(118.0)),
        rung("pruned 1", 201_000, value=97.9, parity=parity(121.0)),
        rung("pruned 2", 120_000, value=92.0, status="rolled back",
             reason="6.3 points lost on the selection split, 1 allowed", parity=parity(119.0)),
    )  # fmt: skip
    why = "max_drop: 1.4 lost on 360 samples, 1 allowed (selection split)"
    miss = rung(
        "pruned 1 int8 mse", 96_000, value=96.9, status="rolled back", target="phone", kind="tflite", reason=why
    )
    boards = (*target_rungs("x86-64-vnni", timed=True), *target_rungs("raspberry-pi-5", timed=False))
    whole: dict[str, Any] = {
        "recipe": "digits", "recipe_digest": "sha256:" + "e" * 64, "tool_version": "0.1.0", "metric": "top1",
        "splits": {"train": 359, "calibration": 128, "selection": 360, "evaluation": 1078},
        "rungs": (*shared, *boards, miss),
        "targets": (result("x86-64-vnni", proven=True), result("raspberry-pi-5", proven=False), infeasible("phone")),
        "warnings": ("2 of 361 train samples are also evaluation samples and were left out",),
        "host": "x86_64, Linux",
    }  # fmt: skip
    return RunRecord(**(whole | fields))
