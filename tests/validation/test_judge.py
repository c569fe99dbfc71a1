"""Bounds are right as often as they say, and limits hold, fail or stay unproven for the stated reason."""

from __future__ import annotations

import dataclasses
import math
from itertools import product

import msgspec
import numpy as np
import pytest

from edgeexport.errors import ModelError, RecipeError
from edgeexport.records.measurement import Comparison, Conditions, Interval, Latency, Measurement, Memory
from edgeexport.records.recipe import Limits
from edgeexport.records.target import Target, TargetLimits
from edgeexport.records.verdict import Drop
from edgeexport.validation import paired
from edgeexport.validation.evaluate import resolve_metric
from edgeexport.validation.judge import (
    Evidence,
    bars_in_force,
    drop,
    limits,
    samples_to_prove,
    shipping,
)
from edgeexport.validation.misses import nearest_miss

TARGET = Target("phone", "A phone", "ort", "onnx", "aarch64", features=("asimddp",), lacks=("i8mm",),
                limits=TargetLimits(max_drop=None))  # fmt: skip
CONDITIONS = Conditions("local", "aarch64", ("asimd", "asimddp"), "cpu", 4, "ort", "1.32", 1, "quick", "sha256:0")
TOP1 = resolve_metric("top1", ".")


def logits(hits, targets, classes=2):
    """Scores whose argmax is the target where `hits`, another class elsewhere."""
    targets = np.asarray(targets)
    chosen = np.where(hits, targets, (targets + 1) % classes)
    return {"y": np.eye(classes)[chosen]}


def exact_coverage(pairs, rates):
    """Probability that the upper bound covers the true drop, over all outcomes of a trinomial."""
    lost_rate, gained_rate = rates
    logs = (math.log(lost_rate), math.log(gained_rate) if gained_rate else -math.inf)
    rest = math.log(1 - lost_rate - gained_rate)
    covered = 0.0
    for lost, gained in product(range(pairs + 1), range(pairs + 1 if gained_rate else 1)):
        kept = pairs - lost - gained
        if kept < 0 or lost > 8 + 4 * pairs * lost_rate or gained > 8 + 4 * pairs * gained_rate:
            continue
        ways = math.lgamma(pairs + 1) - math.lgamma(lost + 1) - math.lgamma(gained + 1) - math.lgamma(kept + 1)
        chance = math.exp(ways + lost * logs[0] + (gained * logs[1] if gained else 0.0) + kept * rest)
        if paired.upper_limit(lost, gained, pairs=pairs, z=paired.ONE_SIDED) >= lost_rate - gained_rate:
            covered += chance
    return covered


@pytest.mark.parametrize("pairs", [50, 100, 400])
@pytest.mark.parametrize("rates", [(0.007, 0.0), (0.02, 0.001), (0.01, 0.01), (0.03, 0.02), (0.1, 0.05)])
def test_the_paired_bound_covers_the_true_drop_at_least_19_times_in_20(pairs, rates):
    """No simulation: the exact probability. The last digit leaves room for outcomes too rare to be summed."""
    assert exact_coverage(pairs, rates) >= 0.949


def test_the_paired_bound_is_not_simply_wide():
    assert exact_coverage(400, (0.1, 0.05)) <= 0.975
    assert 100 * paired.upper_limit(4, 4, pairs=400, z=paired.ONE_SIDED) == pytest.approx(1.39, abs=0.01)


def test_the_bootstrap_bound_covers_the_true_mean_in_simulation():
    generator = np.random.default_rng(5)
    covered = 0
    for trial in range(400):
        sample = generator.gamma(2.0, 0.5, size=80) - 1.0
        draws = paired.mean_draws(sample, draws=500, seed=trial)
        covered += paired.percentile_interval(float(sample.mean()), draws, samples=80)[2] >= 0.0
    assert 0.91 <= covered / 400 <= 0.985


def test_a_drop_of_hits_counts_what_was_lost_and_gained():
    targets = np.arange(200) % 2
    before, after = np.ones(200, bool), np.ones(200, bool)
    before[:4], after[4:10] = False, False
    found = drop(TOP1, logits(before, targets), candidate=logits(after, targets), targets=targets)
    assert (found.value, found.lost, found.gained, found.samples) == (1.0, 6, 4, 200)
    assert (found.method, found.agreement) == ("mcnemar", 0.95)
    assert found.low < 0 < found.value < found.bound < found.high


def test_swapping_source_and_candidate_mirrors_the_interval():
    targets = np.zeros(100, int)
    before, after = np.arange(100) >= 2, np.arange(100) < 93
    one = drop(TOP1, logits(before, targets), candidate=logits(after, targets), targets=targets)
    other = drop(TOP1, logits(after, targets), candidate=logits(before, targets), targets=targets)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))


def test_a_better_candidate_has_a_negative_drop():
    targets = np.zeros(100, int)
    found = drop(TOP1, logits(np.arange(100) > 9, targets), candidate=logits(np.ones(100), targets), targets=targets)
    assert found.value == -10
    assert found.high < 0


def test_the_worst_class_is_found_with_a_corrected_p_and_small_classes_are_left_out():
    targets = np.repeat([0, 1, 2], [200, 200, 49])
    after = np.ones(449, bool)
    after[200:220] = False
    after[400:] = False
    found = drop(TOP1, logits(np.ones(449), targets, 3), candidate=logits(after, targets, 3), targets=targets)
    name, value, p = found.worst_class
    assert (name, value) == ("1", 10.0)
    assert p == pytest.approx(2 * 0.5**21)


@pytest.mark.parametrize("metric", ["mse", "mae"])
def test_a_larger_error_is_a_positive_drop(metric):
    targets = np.random.default_rng(0).normal(size=(300, 1))
    noise = np.random.default_rng(1).normal(size=(300, 1))
    source, worse = {"y": targets + 0.1 * noise}, {"y": targets + 0.2 * noise}
    found = drop(resolve_metric(metric, "."), source, candidate=worse, targets=list(targets))
    assert found.method == "bootstrap"
    assert 0 < found.low < found.value < found.bound < found.high
    assert drop(resolve_metric(metric, "."), source, candidate=worse, targets=list(targets)) == found


def test_auc_drops_are_paired_and_resampled_within_each_class():
    generator = np.random.default_rng(2)
    labels = np.repeat([0, 1], [290, 10])
    scores = labels * 1.5 + generator.normal(size=300)
    worse = scores + generator.normal(size=300) * 2
    found = drop(resolve_metric("auc", "."), {"y": scores[:, None]}, candidate={"y": worse[:, None]}, targets=labels)
    same = drop(resolve_metric("auc", "."), {"y": scores[:, None]}, candidate={"y": scores[:, None]}, targets=labels)
    assert found.low < found.value < found.bound < found.high
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_the_interval_of_an_auc_drop_is_that_of_resampling_everything():
    generator = np.random.default_rng(6)
    labels = np.repeat([0, 1], [150, 60])
    scores = labels + generator.normal(size=210)
    worse = np.round(scores + generator.normal(size=210))
    metric = resolve_metric("auc", ".")
    found = drop(metric, {"y": scores[:, None]}, candidate={"y": worse[:, None]}, targets=labels)

    def whole(indices):
        sides = (metric.whole({"y": side[indices, None]}, labels[indices]) for side in (scores, worse))
        return next(sides) - next(sides)

    groups = [np.flatnonzero(labels == label) for label in (0, 1)]
    draws = [whole(np.concatenate([generator.choice(group, group.size) for group in groups])) for _ in range(1500)]
    assert found.high - found.low == pytest.approx(np.diff(np.quantile(draws, [0.025, 0.975]))[0], rel=0.12)


def test_label_free_drops_are_against_the_source_itself():
    source = {"y": np.random.default_rng(3).normal(size=(200, 5))}
    candidate = {"y": source["y"] + np.random.default_rng(4).normal(size=(200, 5)) * 0.1}
    agreement = drop(resolve_metric("agreement", "."), source, candidate=candidate)
    cosine = drop(resolve_metric("cosine", "."), source, candidate=candidate)
    assert agreement.value == pytest.approx(100 * (1 - agreement.agreement))
    assert (agreement.method, cosine.method) == ("mcnemar", "bootstrap")
    assert 0 < cosine.low < cosine.value


def test_a_users_metric_is_bootstrapped_and_may_not_fail_on_resamples():
    def accuracy(outputs, targets):
        return float((outputs["y"].argmax(1) == np.asarray(targets)).mean())

    def fragile(outputs, targets):
        return 1.0 if len(np.unique(outputs["i"])) == len(targets) else float("nan")

    targets = np.zeros(60, int)
    before = logits(np.ones(60), targets) | {"i": np.arange(60)}
    after = logits(np.arange(60) > 5, targets) | {"i": np.arange(60)}
    found = drop(resolve_metric(accuracy, "."), before, candidate=after, targets=list(targets))
    assert found.value == pytest.approx(0.1)
    assert 0 < found.low < found.value < found.bound
    with pytest.raises(ModelError, match="400 of 400 resamples"):
        drop(resolve_metric(fragile, "."), before, candidate=after, targets=list(targets))


def test_outputs_on_other_samples_are_not_paired():
    with pytest.raises(ValueError, match="10 and 9"):
        drop(TOP1, {"y": np.zeros((10, 2))}, candidate={"y": np.zeros((9, 2))}, targets=[0] * 10)


def hits_drop(lost, gained, samples):
    bound = 100 * paired.upper_limit(lost, gained, pairs=samples, z=paired.ONE_SIDED)
    value = 100 * (lost - gained) / samples
    return Drop(value, value - 1, bound + 0.2, bound, "mcnemar", samples, lost=lost, gained=gained)


def test_that_many_samples_prove_it_indeed():
    found = hits_drop(4, 4, 400)
    needed = samples_to_prove(found, 1.0)
    scale = needed / 400
    at = paired.upper_limit(4 * scale, 4 * scale, pairs=needed, z=paired.ONE_SIDED)
    before = paired.upper_limit(4 * scale, 4 * scale, pairs=needed - 5, z=paired.ONE_SIDED)
    assert 100 * at <= 1.0 < 100 * before
    assert 400 < needed < 1000


def test_no_number_of_samples_proves_a_drop_at_the_bar():
    assert samples_to_prove(hits_drop(8, 4, 400), 1.0) is None
    assert samples_to_prove(Drop(1.0, 0.5, 2.0, 1.8, "bootstrap", 100), 1.0) is None


def test_a_bootstrap_bound_shrinks_with_the_root_of_the_samples():
    assert samples_to_prove(Drop(0.5, 0.0, 1.6, 1.5, "bootstrap", 100), 1.0) == 400


def measured(**changes):
    latency = Latency(Interval(4.0, 3.8, 4.3), (3.9, 4.0, 4.1), 192, 5.0, 4.5)
    plain = Measurement("b", "m", CONDITIONS, True, latency=latency, memory=Memory(40_000_000, 20_000_000))
    return msgspec.structs.replace(plain, **changes)


def compared(claim, ratio=(0.5, 0.4, 0.6)):
    return Comparison("a", "b", Interval(*ratio), claim)


GOOD = Evidence(
    "b", "evaluation", 900_000, 3_500_000, hits_drop(2, 2, 4000), measured(), compared("faster")
)  # fmt: skip
ALL = Limits(max_drop=1.0, max_size_mb=1.0, max_latency_ms=5.0, max_memory_mb=50.0)


def states(evidence=GOOD, recipe=ALL, target=TARGET, **changes):
    verdict = limits(dataclasses.replace(evidence, **changes), target, recipe=recipe, unit="points")
    return verdict, {limit.limit: limit for limit in verdict.limits}


def test_a_good_candidate_holds_every_limit():
    verdict, by_name = states()
    assert verdict.state == "holds"
    assert list(by_name) == [
        "max_drop", "max_size_mb", "max_latency_ms", "max_memory_mb", "never_larger", "never_slower",
    ]  # fmt: skip
    assert all(limit.reason == "" for limit in verdict.limits)


def conditions(**changes):
    return measured(conditions=msgspec.structs.replace(CONDITIONS, **changes))


SLOW = Latency(Interval(5.1, 4.0, 6.0), (5.1,) * 5, 320, 5.0, 4.5)
CLOSE = Latency(Interval(4.8, 4.5, 5.2), (4.8,) * 5, 320, 5.0, 4.5)
FEW = Latency(Interval(4.0), (4.0,), 10, 5.0, 4.5)
JUDGED = {
    "drop above the bar": ({"drop": hits_drop(60, 10, 4000)}, "max_drop", "fails", "1.25 lost on 4000 samples"),
    "bound above the bar": ({"drop": hits_drop(4, 4, 400)}, "max_drop", "unproven", "samples would prove it"),
    "drop at the bar": ({"drop": hits_drop(4, 0, 400)}, "max_drop", "unproven", "no number of samples"),
    "no samples": ({"drop": None}, "max_drop", "unproven", "no samples"),
    "few for a bootstrap": (
        {"drop": Drop(0.1, 0.1, 0.1, 0.1, "bootstrap", 49)}, "max_drop", "unproven", "49 samples are too few",
    ),
    "too big": ({"model_bytes": 1_000_001}, "max_size_mb", "fails", "1 MB, 1 allowed"),
    "just fits": ({"model_bytes": 1_000_000}, "max_size_mb", "holds", ""),
    "larger than the source": ({"source_bytes": 899_999}, "never_larger", "fails", "bytes"),
    "source size unknown": ({"source_bytes": None}, "never_larger", "unproven", "not known"),
    "too slow": ({"measurement": measured(latency=SLOW)}, "max_latency_ms", "fails", "5.1 ms, 5 allowed"),
    "close": ({"measurement": measured(latency=CLOSE)}, "max_latency_ms", "unproven", "about 20 would prove it"),
    "one launch": ({"measurement": measured(latency=FEW)}, "max_latency_ms", "unproven", "1 launches are too few"),
    "no times": ({"measurement": measured(latency=None)}, "max_latency_ms", "unproven", "no latency"),
    "not measured": ({"measurement": None}, "max_latency_ms", "unproven", "not measured"),
    "invalid": (
        {"measurement": measured(valid=False, reasons=("throttled", "outputs wrong"))},
        "max_latency_ms", "unproven", "invalid: throttled; outputs wrong",
    ),
    "invalid memory": ({"measurement": measured(valid=False)}, "max_memory_mb", "unproven", "invalid"),
    "other machine": ({"measurement": conditions(arch="x86_64")}, "max_latency_ms", "unproven", "measured on x86_64"),
    "memory elsewhere": ({"measurement": conditions(arch="x86_64")}, "max_memory_mb", "unproven", "aarch64"),
    "slower elsewhere": (
        {"measurement": conditions(arch="x86_64"), "comparison": compared("slower", (2.0, 1.9, 2.1))},
        "never_slower", "unproven", "measured on x86_64",
    ),
    "lacks a feature": ({"measurement": conditions(features=("asimd",))}, "max_latency_ms", "unproven", "asimddp"),
    "has what the target lacks": ({"measurement": conditions(features=("dotprod", "i8mm"))}, "max_latency_ms",
        "unproven", "with i8mm, which the target lacks",
    ),
    "other threads": ({"measurement": conditions(threads=4)}, "max_latency_ms", "unproven", "4 threads"),
    "other runtime": ({"measurement": conditions(runtime="litert")}, "max_latency_ms", "unproven", "litert"),
    "too much memory": (
        {"measurement": measured(memory=Memory(60_000_000, 1))}, "max_memory_mb", "fails", "60 MB, 50 allowed",
    ),
    "no memory": ({"measurement": measured(memory=None)}, "max_memory_mb", "unproven", "no memory"),
    "slower": ({"comparison": compared("slower", (1.2, 1.1, 1.3))}, "never_slower", "fails", "1.2 times"),
    "no difference": (
        {"comparison": compared("no difference shown", (1.0, 0.9, 1.1))}, "never_slower", "unproven", "at most 1.1",
    ),
    "as fast": ({"comparison": compared("no difference shown", (1.0, 0.99, 1.01))}, "never_slower", "holds", ""),
    "few launches": (
        {"comparison": compared("no difference shown", (0.9, None, None))}, "never_slower", "unproven", "too few",
    ),
    "not compared": ({"comparison": None}, "never_slower", "unproven", "not compared"),
    "no comparison for a reason": (
        {"comparison": None, "uncompared": "the source's launches drift"}, "never_slower", "unproven", "launches drift",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JUDGED)
def test_a_limit_is_judged_with_its_reason(name):
    changes, limit, state, reason = JUDGED[name]
    verdict, by_name = states(**changes)
    assert by_name[limit].state == state
    assert reason in by_name[limit].reason
    assert (verdict.state == "fails") == ("fails" in {judged.state for judged in verdict.limits})


@pytest.mark.parametrize(("here", "wanted"), [("asimddp", "dotprod"), ("dotprod", "asimddp")])
def test_a_feature_counts_under_any_of_its_names(here, wanted):
    target = msgspec.structs.replace(TARGET, features=(wanted,))
    _, by_name = states(target=target, measurement=conditions(features=("neon", here)))
    assert by_name["max_latency_ms"].state == "holds"


def test_a_class_that_lost_much_is_told_though_the_whole_holds():
    _, by_name = states(drop=msgspec.structs.replace(hits_drop(2, 2, 4000), worst_class=("eel", 9.0, 0.001)))
    assert by_name["max_drop"].state == "holds"
    assert "class eel lost 9 (p = 0.001" in by_name["max_drop"].reason


@pytest.mark.parametrize(
    ("ratio", "state", "reason"),
    [
        ((0.5, 0.4, 0.52), "fails", "2 times the fp32 source's speed, 2.2 asked for"),
        ((0.4, 0.3, 0.45), "holds", ""),
        ((0.4, 0.3, 0.5), "unproven", "it may be 2 times only"),
        ((0.4, None, None), "unproven", "too few launches"),
    ],
)
def test_a_speedup_is_judged_beside_the_fp32_source(ratio, state, reason):
    _, by_name = states(recipe=Limits(speedup=2.2), comparison=compared("faster", ratio))
    assert (by_name["speedup"].state, reason in by_name["speedup"].reason) == (state, True)


def test_the_source_is_no_faster_than_itself_wherever_it_runs_and_other_machines_prove_no_speedup():
    _, itself = states(recipe=Limits(speedup=2.0), measurement=None, comparison=Comparison("a", "a", Interval(1.0), ""))
    _, elsewhere = states(recipe=Limits(speedup=2.0), measurement=conditions(arch="x86_64"))
    assert (itself["speedup"].state, elsewhere["speedup"].state) == ("fails", "unproven")


def test_limits_that_nobody_set_are_not_judged_but_larger_and_slower_always_are():
    _, by_name = states(recipe=Limits())
    assert list(by_name) == ["never_larger", "never_slower"]


def test_the_stricter_budget_is_in_force_and_the_recipes_word_on_accuracy():
    target = msgspec.structs.replace(TARGET, limits=TargetLimits(max_drop=0.5, max_latency_ms=9.0, max_memory_mb=70.0))
    assert bars_in_force(ALL, target, unit="points") == Limits(1.0, 1.0, 5.0, 50.0)
    silent = msgspec.structs.replace(ALL, max_drop=None)
    assert bars_in_force(silent, target, unit="points") == Limits(0.5, 1.0, 5.0, 50.0)


def test_points_of_a_target_mean_nothing_to_a_metric_in_another_unit():
    target = msgspec.structs.replace(TARGET, limits=TargetLimits(max_latency_ms=9.0))
    assert bars_in_force(Limits(max_drop=3.0), target, unit="") == Limits(max_drop=3.0, max_latency_ms=9.0)
    with pytest.raises(RecipeError, match=r"'metres'.* 'phone' \(1\) is in points"):
        bars_in_force(Limits(), target, unit="metres")
    assert bars_in_force(Limits(), TARGET, unit="metres") == Limits()


def test_what_ships():
    holds, fails = states()[0], states(model_bytes=2_000_000)[0]
    unproven = states(measurement=None)[0]
    assert [shipping(verdict) for verdict in (holds, unproven, fails)] == [True, True, False]
    assert [shipping(verdict, require_proof=True) for verdict in (holds, unproven, fails)] == [True, False, False]


def test_the_nearest_miss_is_the_one_with_fewest_and_then_smallest_failures():
    far, near = states(model_bytes=2_000_000)[0], states(model_bytes=1_100_000)[0]
    both = states(model_bytes=1_050_000, drop=hits_drop(60, 10, 4000))[0]
    assert nearest_miss({"int8": far, "mixed": near, "pruned": both}) == (
        "nearest is mixed: max_size_mb fails, 1.1 MB, 1 allowed"
    )
    assert nearest_miss({}) == "no candidate was built"
    assert nearest_miss({"int8": states()[0]}) == "no candidate fails a limit"


def test_mcnemar_and_holm_give_textbook_values():
    assert paired.mcnemar_p(0, 0) == 1.0
    assert paired.mcnemar_p(5, 0) == pytest.approx(0.5**6)
    assert paired.mcnemar_p(3, 1) == pytest.approx((1 + 4 / 2) / 16)
    assert paired.mcnemar_p(3000, 3000) == pytest.approx(0.5)
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
