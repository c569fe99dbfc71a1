"""What the table and the page show: a run's figures, arranged in one ladder for each target.

The rule: figures are taken from the record as they are; here they only become ratios and text. A MB is 10^6 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeexport.records.artifact import Artifact
from edgeexport.records.parity import Parity
from edgeexport.records.run import Rung, RunRecord, TargetResult
from edgeexport.records.verdict import Drop, LimitVerdict, Score

MB = 1e6
LIMIT_NAMES = {
    "max_drop": "accuracy lost",
    "max_size_mb": "size",
    "max_latency_ms": "latency",
    "max_memory_mb": "memory",
    "speedup": "faster than fp32",
    "never_larger": "not larger than fp32",
    "never_slower": "not slower than fp32",
}
_UNITS = {"max_size_mb": " MB", "max_latency_ms": " ms", "max_memory_mb": " MB", "never_slower": "×", "speedup": "×"}


@dataclass(frozen=True)
class Span:
    """A figure with the ends of its interval; the ends equal the value when no interval is known."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One rung as it is shown. size_ratio, latency_ratio: how many times smaller and faster than the source."""

    rung: Rung
    score: Span | None
    size_mb: float
    size_ratio: float | None
    latency: Span | None
    latency_ratio: float | None
    memory_mb: float | None

    @property
    def shared(self) -> bool:
        """Whether all targets have this rung."""
        return self.rung.target is None


@dataclass(frozen=True)
class Ladder:
    """All rungs that lead to one target, in the order in which they were climbed. result: None before any target."""

    result: TargetResult | None
    rows: tuple[Row, ...]


def ladders(run: RunRecord) -> list[Ladder]:
    """Return one ladder per target, the shared rungs first; a run without targets has one with the shared rungs."""
    shared = [rung for rung in run.rungs if rung.target is None]
    if not run.targets:
        return [Ladder(None, _rows(shared, shared))]
    found = []
    for result in run.targets:
        own = [rung for rung in run.rungs if rung.target == result.target]
        found.append(Ladder(result, (*_rows(shared, shared), *_rows(own, shared))))
    return found


def _rows(rungs: Sequence[Rung], shared: Sequence[Rung]) -> tuple[Row, ...]:
    base = _base_bytes(rungs, shared)
    return tuple(_row(rung, base) for rung in rungs)


def _base_bytes(rungs: Sequence[Rung], shared: Sequence[Rung]) -> int | None:
    """Size of the fp32 source in the same format: the target's own rung of the source, or else the source's file."""
    if not shared:
        return rungs[0].artifact.bytes if rungs else None
    source = shared[0]
    names = (source.name, f"{source.name} fp32")
    return next((rung.artifact.bytes for rung in rungs if rung.name in names), source.artifact.bytes)


def _row(rung: Rung, base: int | None) -> Row:
    measured = rung.measurement if rung.measurement is not None and rung.measurement.valid else None
    latency = measured.latency.median_ms if measured is not None and measured.latency is not None else None
    memory = measured.memory if measured is not None else None
    ratio = rung.comparison.ratio.value if rung.comparison is not None else 0.0
    return Row(
        rung=rung,
        score=score_span(rung.score, rung.drop),
        size_mb=rung.artifact.bytes / MB,
        size_ratio=base / rung.artifact.bytes if base and rung.artifact.bytes else None,
        latency=None if latency is None else _span(latency.value, low=latency.low, high=latency.high),
        latency_ratio=1 / ratio if ratio else None,
        memory_mb=None if memory is None else memory.peak_bytes / MB,
    )


def _span(value: float, *, low: float | None, high: float | None) -> Span:
    return Span(value, value if low is None else low, value if high is None else high)


def score_span(score: Score | None, drop: Drop | None) -> Span | None:
    """Return a score with the interval that its drop against the source has, as it falls on the score."""
    if score is None:
        return None
    if drop is None:
        return Span(score.value, score.value, score.value)
    sign = 1.0 if score.higher_is_better else -1.0
    ends = sorted(score.value + sign * (drop.value - end) for end in (drop.low, drop.high))
    return Span(score.value, ends[0], ends[1])


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure with `digits` significant ones, never in scientific notation between 0.0001 and a billion."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else str(value)
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}" if places <= 6 else f"{value:.{digits}g}"


def score_text(score: Score | None) -> str:
    """Return e.g. "83.20 %" (a score in points is a share in %), or a dash."""
    if score is None:
        return "–"
    value = f"{score.value:.2f}" if abs(score.value) >= 10 or score.unit == "points" else number(score.value, 4)
    return f"{value} {'%' if score.unit == 'points' else score.unit}".rstrip()


def drop_text(drop: Drop | None) -> str:
    """Return e.g. "0.40 [-0.20, 1.00]": what was lost against the source, with its 95 % interval."""
    return "–" if drop is None else " ".join(drop_parts(drop))


def drop_parts(drop: Drop) -> tuple[str, str]:
    """Return a drop and its interval as text of the same number of places."""
    places = 2 if max(abs(drop.value), abs(drop.low), abs(drop.high)) >= 0.1 else 4
    value, low, high = (f"{figure + 0.0:.{places}f}" for figure in (drop.value, drop.low, drop.high))
    return value, f"[{low}, {high}]"


def ratio_text(ratio: float | None) -> str:
    """Return e.g. " (3.9×)"; nothing when the ratio is not known."""
    return "" if ratio is None else f" ({number(ratio, 2 if ratio < 100 else 3)}×)"


def latency_text(row: Row) -> str:
    """Return e.g. "1.23 (2.1×)", "unproven" where a target's rung has no valid figure, a dash for shared rungs."""
    if row.latency is not None:
        return number(row.latency.value) + ratio_text(row.latency_ratio)
    return "–" if row.shared or row.rung.status == "rolled back" else "unproven"


def memory_text(row: Row) -> str:
    """Return peak memory in MB, or a dash."""
    return number(row.memory_mb)


def limit_figures(limit: LimitVerdict) -> tuple[str, str, str]:
    """Return (figure, where its interval ends, bar) of a limit as text with units."""
    if limit.limit == "never_larger":
        share, unit = MB, " MB"
    else:
        share, unit = 1.0, _UNITS.get(limit.limit, "")
    value, bound = ("–" if text is None else number(text / share) + unit for text in (limit.value, limit.bound))
    return value, bound, "–" if limit.bar is None else f"{limit.bar / share:.4g}{unit}"


def outcome(result: TargetResult) -> str:
    """Return "holds", "unproven", or "infeasible" (nothing ships)."""
    if result.shipped is None:
        return "infeasible"
    return result.verdict.state if result.verdict is not None else "unproven"


def parity_text(parity: Parity | None) -> str:
    """Return how far a rung is from the one below it, and where the difference begins."""
    if parity is None or not parity.outputs:
        return ""
    error = max(output.relative_error for output in parity.outputs)
    text = f"SQNR {parity.worst_sqnr_db():.1f} dB, largest error {error:.2g} of the largest value"
    if parity.first_divergence is not None:
        place = parity.first_divergence
        text += f"; differs first at {place.tensor} ({place.op}, {place.sqnr_db:.1f} dB)"
    return text


def lineage(run: RunRecord, target: str) -> list[tuple[str, str, str]]:
    """Return (name, what it is, digest) from the source to the file that ships on `target`; empty if nothing does.

    The shared rungs that stand lead up to the one that was lowered; a file between that one and the shipped one, which
    the record knows by digest only, is named as such.
    """
    shipped = next((rung for rung in run.rungs if rung.target == target and rung.status == "shipped"), None)
    if shipped is None:
        return []
    road = _road(run, shipped)
    steps = [(rung.name, _artifact_text(rung.artifact), rung.artifact.digest) for rung in road]
    parent = shipped.artifact.parent
    if parent and parent not in [rung.artifact.digest for rung in road]:
        kind = "quantized ONNX" if shipped.form == "int8" else "ONNX"
        steps.append(("between", f"{kind} file that was converted", parent))
    return [*steps, (shipped.name, _artifact_text(shipped.artifact), shipped.artifact.digest)]


def _road(run: RunRecord, shipped: Rung) -> list[Rung]:
    """The shared rungs that stand, up to the one that `shipped` was made from (by digest, else by its name)."""
    standing = [rung for rung in run.rungs if rung.target is None and rung.status != "rolled back"]
    for index, rung in enumerate(standing):
        if rung.artifact.digest == shipped.artifact.parent:
            return standing[: index + 1]
    named = [index for index, rung in enumerate(standing) if shipped.name.startswith(f"{rung.name} ")]
    return standing[: max(named, key=lambda index: len(standing[index].name)) + 1] if named else standing


def _artifact_text(artifact: Artifact) -> str:
    return f"{artifact.maker}: {artifact.format}, {number(artifact.bytes / MB)} MB"


def samples(run: RunRecord) -> list[tuple[str, int, str]]:
    """Return (split, count, digest) in the order of the road; the digest where a score names it, else empty."""
    order = {name: place for place, name in enumerate(("train", "calibration", "selection", "evaluation"))}
    digests = {
        "selection": next((rung.score.samples_digest for rung in run.rungs if rung.score), ""),
        "evaluation": next((found.score.samples_digest for found in run.targets if found.score), ""),
    }
    names = sorted(run.splits, key=lambda name: (order.get(name, len(order)), name))
    return [(name, run.splits[name], digests.get(name, "")) for name in names]


def classes(result: TargetResult) -> list[tuple[str, int, float, float | None]]:
    """Return (class, samples, value, the source's value) on the evaluation set."""
    if result.score is None:
        return []
    source = {name: value for name, _, value in (result.source_score.per_class if result.source_score else ())}
    return [(name, count, value, source.get(name)) for name, count, value in result.score.per_class]
