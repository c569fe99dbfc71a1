"""Judge: bar against figure. How much is lost against the source, and which limits hold.

The rule: a limit fails on the estimate. When the estimate is fine but its bound is not, the limit is unproven and says
how many samples would prove it. What was measured on another kind of machine, or not validly, is never judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgeexport.devices.protocol import feature_gap
from edgeexport.errors import ModelError, RecipeError
from edgeexport.records.measurement import Comparison, Conditions, Interval, Measurement
from edgeexport.records.recipe import Limits
from edgeexport.records.target import Target
from edgeexport.records.verdict import Drop, LimitVerdict, State, Verdict
from edgeexport.validation import paired
from edgeexport.validation.evaluate import per_sample, rows
from edgeexport.validation.metrics import Metric, agreement, auc_inputs, placements
from edgeexport.validation.statistics import LEAST_EFFECT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgeexport.runtimes.protocol import Outputs

DRAWS = 2000
DRAWS_OF_USER_METRIC = 400
CLASS_SAMPLES = 50
BOOTSTRAP_SAMPLES = 50
SIGNIFICANT = 0.05
LARGEST_SEARCH = 10**9
MB = 1e6
POINTS = "points"
UNITS = {"max_size_mb": " MB", "max_latency_ms": " ms", "max_memory_mb": " MB", "never_larger": " bytes"}


@dataclass(frozen=True)
class Evidence:
    """What is known of one candidate on one target.

    candidate: its digest. model_bytes: its model file; source_bytes: the fp32 source's, in the same format.
    drop: against the source on `split`. measurement, comparison: None when nothing was measured or compared;
    `unmeasured` and `uncompared` say why.
    """

    candidate: str
    split: Literal["selection", "evaluation"]
    model_bytes: int
    source_bytes: int | None = None
    drop: Drop | None = None
    measurement: Measurement | None = None
    comparison: Comparison | None = None
    unmeasured: str = "it was not measured"
    uncompared: str = "it was not compared with the fp32 source"


@dataclass(frozen=True)
class _Pair:
    """Two models' stored outputs on the same samples, with the metric and the targets."""

    metric: Metric
    source: Outputs
    candidate: Outputs
    targets: Sequence[Any]


def drop(metric: Metric, source: Outputs, *, candidate: Outputs, targets: Sequence[Any] = (), seed: int = 0) -> Drop:
    """Return how much worse `candidate` is than `source`: stored outputs on the same samples, in the same order.

    Right-or-wrong metrics: Tango's interval, McNemar's p per class. Others: paired bootstrap of 2,000 draws (AUC within
    each class), 400 for a user's metric, which may be slow.
    Raises DataError or ModelError where outputs and targets do not fit.
    """
    if rows(source) != rows(candidate):
        raise ValueError(f"paired outputs of {rows(source)} and {rows(candidate)} samples")
    pair = _Pair(metric, source, candidate, targets)
    before = per_sample(metric, source, targets=targets, reference=source)
    after = per_sample(metric, candidate, targets=targets, reference=source)
    if before is None or after is None:
        return _drop_of_whole(pair, seed)
    if metric.binary:
        return _drop_of_hits(before, after, pair=pair)
    worse = (before - after) * (metric.factor if metric.higher_is_better else -metric.factor)
    draws = paired.mean_draws(worse, draws=DRAWS, seed=seed)
    return _bootstrapped(float(worse.mean()), draws, samples=worse.size)


def samples_to_prove(found: Drop, bar: float) -> int | None:
    """Return how many samples would bring the bound to the bar if the rates stayed as they are.

    None when more samples cannot: the drop itself is at the bar or above it.
    """
    if found.bound <= bar:
        return found.samples
    if found.value >= bar:
        return None
    if found.lost is None or found.gained is None:
        return math.ceil(found.samples * ((found.bound - found.value) / (bar - found.value)) ** 2)
    low, high = found.samples, LARGEST_SEARCH
    while low < high:
        middle = (low + high) // 2
        scale = middle / found.samples
        lost, gained = found.lost * scale, found.gained * scale
        if 100 * paired.upper_limit(lost, gained, pairs=middle, z=paired.ONE_SIDED) <= bar:
            high = middle
        else:
            low = middle + 1
    return low


def bars_in_force(recipe: Limits, target: Target, *, unit: str) -> Limits:
    """Return the bars in force: of size, latency and memory the smaller one when both give it, of speed-ups the larger.

    How much accuracy may be lost belongs to the task: the recipe's `max_drop` stands, a target's is for recipes that
    say nothing. unit: the metric's. A target's `max_drop` is in points and counts for a metric in points only; for any
    other the recipe must give its own, else RecipeError.
    """
    if unit != POINTS and recipe.max_drop is None and target.limits.max_drop is not None:
        raise RecipeError(
            f"the metric is in {f'the unit {unit!r}' if unit else 'a unit of its own'}, and the `max_drop` of target "
            f"{target.name!r} ({target.limits.max_drop:g}) is in points",
            next_step="say how much may be lost: [limits] max_drop = ... in the recipe, in the metric's own unit",
        )

    def least(name: str) -> float | None:
        given = (getattr(recipe, name), getattr(target.limits, name))
        return min((bar for bar in given if bar is not None), default=None)

    usual = target.limits.max_drop if unit == POINTS else None
    drop = usual if recipe.max_drop is None else recipe.max_drop
    faster = max((bar for bar in (recipe.speedup, target.limits.speedup) if bar is not None), default=None)
    return Limits(drop, least("max_size_mb"), least("max_latency_ms"), least("max_memory_mb"), faster)


def limits(evidence: Evidence, target: Target, *, recipe: Limits, unit: str) -> Verdict:
    """Judge every limit in force, and that the candidate is never larger or slower than the fp32 source.

    unit: the metric's, which says whether the target's `max_drop` counts. MB are millions of bytes of the model file
    (size) or of resident memory at its peak (memory).
    """
    bars = bars_in_force(recipe, target, unit=unit)
    judged: list[LimitVerdict] = []
    if bars.max_drop is not None:
        judged.append(_judge_drop(bars.max_drop, evidence.drop))
    if bars.max_size_mb is not None:
        judged.append(_judge_exact("max_size_mb", evidence.model_bytes / MB, bar=bars.max_size_mb))
    if bars.max_latency_ms is not None:
        judged.append(_judge_latency(target, evidence, bar=bars.max_latency_ms))
    if bars.max_memory_mb is not None:
        judged.append(_judge_memory(target, evidence, bar=bars.max_memory_mb))
    if bars.speedup is not None:
        judged.append(_judge_speedup(target, evidence, bar=bars.speedup))
    judged.append(_judge_larger(evidence))
    judged.append(_judge_slower(target, evidence))
    return Verdict(target=target.name, candidate=evidence.candidate, split=evidence.split, limits=tuple(judged))


def shipping(verdict: Verdict, *, require_proof: bool = False) -> bool:
    """Return whether a candidate may ship: nothing fails and, if proof is required, nothing is unproven."""
    return verdict.state == "holds" or (verdict.state == "unproven" and not require_proof)


def _drop_of_hits(before: NDArray[Any], after: NDArray[Any], *, pair: _Pair) -> Drop:
    lost, gained = _discordant(before, after)
    size, metric = before.size, pair.metric
    return Drop(
        value=100.0 * (lost - gained) / size,
        low=-100.0 * paired.upper_limit(gained, lost, pairs=size, z=paired.TWO_SIDED),
        high=100.0 * paired.upper_limit(lost, gained, pairs=size, z=paired.TWO_SIDED),
        bound=100.0 * paired.upper_limit(lost, gained, pairs=size, z=paired.ONE_SIDED),
        method="mcnemar",
        samples=size,
        agreement=float(agreement(metric.pick(pair.candidate), metric.pick(pair.source)).mean()),
        worst_class=_worst_class(before, after, targets=pair.targets) if metric.classes else None,
        lost=lost,
        gained=gained,
    )


def _discordant(before: NDArray[Any], after: NDArray[Any]) -> tuple[int, int]:
    return int(((before > 0) & (after == 0)).sum()), int(((before == 0) & (after > 0)).sum())


def _worst_class(
    before: NDArray[Any], after: NDArray[Any], *, targets: Sequence[Any]
) -> tuple[str, float, float] | None:
    """The class with the largest drop; one whose Holm-corrected p is significant comes before those without."""
    import numpy as np

    labels = np.asarray(targets).astype(np.int64).ravel()
    found: list[tuple[str, float, float]] = []
    for label in np.unique(labels):
        mask = labels == label
        if mask.sum() >= CLASS_SAMPLES:
            lost, gained = _discordant(before[mask], after[mask])
            found.append((str(label), 100.0 * (lost - gained) / int(mask.sum()), paired.mcnemar_p(lost, gained)))
    corrected = paired.holm([p for _, _, p in found])
    classes = [(name, value, p) for (name, value, _), p in zip(found, corrected, strict=True)]
    return max(classes, key=lambda row: (row[2] < SIGNIFICANT, row[1]), default=None)


def _drop_of_whole(pair: _Pair, seed: int) -> Drop:
    """The drop of a metric of all samples together: AUC, or a user's."""
    import numpy as np

    metric = pair.metric
    sign = 1.0 if metric.higher_is_better else -1.0
    value = sign * (metric.whole(pair.source, pair.targets) - metric.whole(pair.candidate, pair.targets))
    draws = _auc_draws(pair, seed) if metric.function is None else sign * _user_draws(pair, seed)
    finite = draws[np.isfinite(draws)]
    if finite.size < 0.9 * draws.size:
        raise ModelError(
            f"metric {metric.name!r} is not a number on {draws.size - finite.size} of {draws.size} resamples",
            next_step="let it return a finite number for any samples, or evaluate on more",
        )
    return _bootstrapped(value, finite, samples=rows(pair.source))


def _auc_draws(pair: _Pair, seed: int) -> NDArray[Any]:
    """Draws of the difference of two areas, each class resampled within itself: DeLong's components, first order."""
    metric = pair.metric
    scores, labels = auc_inputs(metric.pick(pair.source), pair.targets)
    others, _ = auc_inputs(metric.pick(pair.candidate), pair.targets)
    before, after = placements(scores, labels), placements(others, labels)
    positive, negative = (metric.factor * (first - second) for first, second in zip(before, after, strict=True))
    ups = paired.mean_draws(positive, draws=DRAWS, seed=seed)
    downs = paired.mean_draws(negative, draws=DRAWS, seed=seed + 1)
    draws: NDArray[Any] = ups + downs - float(negative.mean())
    return draws


def _user_draws(pair: _Pair, seed: int) -> NDArray[Any]:
    function = pair.metric.function
    assert function is not None

    def score_of(outputs: Outputs, indices: NDArray[Any]) -> float:
        drawn = {name: values[indices] for name, values in outputs.items()}
        return float(function(drawn, [pair.targets[index] for index in indices]))

    def statistic(indices: NDArray[Any]) -> float:
        return score_of(pair.source, indices) - score_of(pair.candidate, indices)

    return paired.statistic_draws(statistic, rows(pair.source), draws=DRAWS_OF_USER_METRIC, seed=seed)


def _bootstrapped(value: float, draws: NDArray[Any], *, samples: int) -> Drop:
    low, high, bound = paired.percentile_interval(value, draws, samples=samples)
    return Drop(value=value, low=low, high=high, bound=bound, method="bootstrap", samples=samples)


def _judge_drop(bar: float, found: Drop | None) -> LimitVerdict:
    if found is None:
        return _unproven("max_drop", "there are no samples to judge it on", bar=bar)
    notes = []
    state: State = "holds"
    if found.value > bar:
        state = "fails"
        notes.append(f"{found.value:.3g} lost on {found.samples} samples, {bar:g} allowed")
    elif found.method == "bootstrap" and found.samples < BOOTSTRAP_SAMPLES:
        state = "unproven"
        notes.append(f"{found.samples} samples are too few for a bound, at least {BOOTSTRAP_SAMPLES} are needed")
    elif found.bound > bar:
        state = "unproven"
        notes.append(_proof_text(found, bar))
    if found.worst_class is not None and found.worst_class[2] < SIGNIFICANT:
        name, value, p = found.worst_class
        notes.append(f"class {name} lost {value:.3g} (p = {p:.2g}, Holm-corrected)")
    return LimitVerdict("max_drop", bar, found.value, found.bound, state, "; ".join(notes))


def _proof_text(found: Drop, bar: float) -> str:
    needed = samples_to_prove(found, bar)
    more = "no number of samples would prove it" if needed is None else f"about {needed} samples would prove it"
    return f"up to {found.bound:.3g} may be lost (95 % bound from {found.samples} samples); {more}"


def _judge_exact(limit: str, value: float, *, bar: float) -> LimitVerdict:
    if value > bar:
        return LimitVerdict(limit, bar, value, value, "fails", f"{value:.4g}{UNITS[limit]}, {bar:.4g} allowed")
    return LimitVerdict(limit, bar, value, value, "holds")


def _judge_latency(target: Target, evidence: Evidence, *, bar: float) -> LimitVerdict:
    measurement, reason = evidence.measurement, _not_judged(target, evidence)
    if reason or measurement is None or measurement.latency is None:
        return _unproven("max_latency_ms", reason or "no latency was measured", bar=bar)
    interval = measurement.latency.median_ms
    if interval.value > bar:
        text = f"{interval.value:.4g} ms, {bar:g} allowed"
        return LimitVerdict("max_latency_ms", bar, interval.value, interval.high, "fails", text)
    if interval.high is not None and interval.high <= bar:
        return LimitVerdict("max_latency_ms", bar, interval.value, interval.high, "holds")
    text = _launches_text(interval, bar, launches=len(measurement.latency.launch_medians_ms))
    return LimitVerdict("max_latency_ms", bar, interval.value, interval.high, "unproven", text)


def _launches_text(interval: Interval, bar: float, *, launches: int) -> str:
    if interval.high is None:
        return f"{launches} launches are too few for an interval"
    if interval.value >= bar:
        return f"up to {interval.high:.4g} ms (95 % interval); no number of launches would prove it"
    needed = math.ceil(launches * ((interval.high - interval.value) / (bar - interval.value)) ** 2)
    return f"up to {interval.high:.4g} ms (95 % interval from {launches} launches); about {needed} would prove it"


def _judge_memory(target: Target, evidence: Evidence, *, bar: float) -> LimitVerdict:
    measurement, reason = evidence.measurement, _not_judged(target, evidence)
    if reason or measurement is None or measurement.memory is None:
        return _unproven("max_memory_mb", reason or "no memory was measured", bar=bar)
    return _judge_exact("max_memory_mb", measurement.memory.peak_bytes / MB, bar=bar)


def _judge_speedup(target: Target, evidence: Evidence, *, bar: float) -> LimitVerdict:
    """How many times faster than the fp32 source; the source itself is as fast as itself, whatever was measured."""
    comparison = evidence.comparison
    if comparison is not None and comparison.candidate == comparison.baseline:
        return LimitVerdict("speedup", bar, 1.0, 1.0, "fails", f"1 times the fp32 source's speed, {bar:g} asked for")
    reason = _not_judged(target, evidence)
    if reason or comparison is None:
        return _unproven("speedup", reason or evidence.uncompared, bar=bar)
    ratio = comparison.ratio
    value, bound = 1 / ratio.value, None if ratio.high is None else 1 / ratio.high
    if value < bar:
        text = f"{value:.3g} times the fp32 source's speed, {bar:g} asked for"
        return LimitVerdict("speedup", bar, value, bound, "fails", text)
    if bound is not None and bound >= bar:
        return LimitVerdict("speedup", bar, value, bound, "holds")
    least = "too few launches for a bound" if bound is None else f"it may be {bound:.3g} times only (95 % interval)"
    return LimitVerdict("speedup", bar, value, bound, "unproven", least)


def _judge_larger(evidence: Evidence) -> LimitVerdict:
    if evidence.source_bytes is None:
        return _unproven("never_larger", "the size of the fp32 source in this format is not known", bar=None)
    return _judge_exact("never_larger", float(evidence.model_bytes), bar=float(evidence.source_bytes))


def _judge_slower(target: Target, evidence: Evidence) -> LimitVerdict:
    """A slowdown fails only when it is claimed; it is excluded when the interval ends below its least effect."""
    comparison = evidence.comparison
    if comparison is not None and comparison.candidate == comparison.baseline:
        return LimitVerdict("never_slower", 1.0, 1.0, 1.0, "holds")
    reason = _not_judged(target, evidence)
    if reason or comparison is None:
        return _unproven("never_slower", reason or evidence.uncompared, bar=1.0)
    ratio = comparison.ratio
    state: State = "unproven"
    if comparison.claim == "slower":
        state, reason = "fails", f"{ratio.value:.3g} times the fp32 source's latency"
    elif comparison.claim == "faster":
        state = "holds"
    elif ratio.high is None:
        reason = "too few launches to compare it with the fp32 source"
    elif ratio.high <= 1 + LEAST_EFFECT:
        state = "holds"
    else:
        reason = f"no difference shown: {ratio.value:.3g} times the fp32 source's latency, at most {ratio.high:.3g}"
    return LimitVerdict("never_slower", 1.0, ratio.value, ratio.high, state, reason)


def _not_judged(target: Target, evidence: Evidence) -> str:
    """Why this measurement says nothing about the target; empty when it does."""
    measurement = evidence.measurement
    if measurement is None:
        return evidence.unmeasured
    if not measurement.valid:
        return "the measurement is invalid: " + "; ".join(measurement.reasons or ("no reason given",))
    return machine_gap(target, measurement.conditions)


def machine_gap(target: Target, conditions: Conditions) -> str:
    """Return why figures of this machine do not count for the target; empty when they do."""
    if conditions.arch != target.arch:
        return f"measured on {conditions.arch}, the target is {target.arch}"
    lacking, more = feature_gap(conditions.features, target)
    if lacking:
        return f"measured on a machine without {', '.join(lacking)}, which the target has"
    if more:
        return f"measured on a machine with {', '.join(more)}, which the target lacks"
    if (conditions.runtime, conditions.threads) != (target.runtime, target.threads):
        measured = f"{conditions.runtime} with {conditions.threads} threads"
        return f"measured in {measured}, the target says {target.runtime} with {target.threads}"
    return ""


def _unproven(limit: str, reason: str, *, bar: float | None) -> LimitVerdict:
    return LimitVerdict(limit, bar, None, None, "unproven", reason)
