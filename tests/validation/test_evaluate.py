"""Metrics agree with their definitions, and refuse what they cannot judge by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeexport.errors import CorruptFile, DataError, ModelError, RecipeError, RequestError
from edgeexport.validation.evaluate import (
    load_outputs,
    load_targets,
    per_sample,
    predictions,
    resolve_metric,
    save_outputs,
    save_targets,
    score,
)

LOGITS = np.array([[3, 1, 2, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]], np.float32)


class Samples:
    """Ten samples: x = i, target = i % 3."""

    def __len__(self):
        return 10

    def batches(self, size):
        for start in range(0, 10, size):
            rows = list(range(start, min(10, start + size)))
            yield {"x": np.array(rows, np.float32)[:, None]}, [row % 3 for row in rows]


def value(metric, outputs, targets=(), reference=None):
    outputs = outputs if isinstance(outputs, dict) else {"y": np.asarray(outputs)}
    return score(resolve_metric(metric, "."), outputs, targets=targets, reference=reference).value


def test_predictions_do_not_depend_on_the_batch():
    runs = [predictions(lambda feeds: {"y": feeds["x"] * 2}, Samples(), batch=size) for size in (1, 3, 32)]
    for run in runs:
        np.testing.assert_array_equal(run.outputs["y"][:, 0], np.arange(10) * 2)
        assert run.targets == [row % 3 for row in range(10)]


def test_predictions_tell_how_far_they_are():
    told = []
    predictions(lambda feeds: feeds, Samples(), batch=5, progress=lambda *said: told.append(said))
    assert told == [("evaluating", 0.5), ("evaluating", 1.0)]


def test_an_output_without_one_row_for_each_sample_is_refused():
    with pytest.raises(ModelError, match=r"'y' has shape \(1, 1\) for 4 samples"):
        predictions(lambda feeds: {"y": feeds["x"][:1]}, Samples(), batch=4)


def test_no_samples_is_an_error():
    class Empty(Samples):
        def batches(self, size):
            return iter(range(0, 0, size))

    with pytest.raises(DataError, match="no samples"):
        predictions(lambda feeds: feeds, Empty())


def test_top1_counts_a_tie_for_the_lower_class_as_argmax_does():
    assert value("top1", LOGITS, [0, 0, 5]) == pytest.approx(100)
    assert value("top1", LOGITS, [0, 1, 5]) == pytest.approx(200 / 3)


def test_top5_is_true_among_the_five_largest():
    assert value("top5", LOGITS, [4, 4, 1]) == pytest.approx(100)
    assert value("top5", LOGITS, [5, 5, 0]) == pytest.approx(0)


def test_scores_come_per_class_too():
    result = score(resolve_metric("top1", "."), {"y": LOGITS}, targets=[0, 0, 1], samples_digest="sha256:1")
    assert result.per_class == (("0", 2, 100.0), ("1", 1, 0.0))
    assert (result.unit, result.samples, result.samples_digest) == ("points", 3, "sha256:1")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs_in_the_right_order(rows):
    scores, labels = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    if not 0 < labels.sum() < labels.size:
        with pytest.raises(DataError, match="both classes"):
            value("auc", scores[:, None], list(labels))
        return
    positive, negative = scores[labels == 1][:, None], scores[labels == 0][None, :]
    expected = 100 * ((positive > negative).mean() + (positive == negative).mean() / 2)
    assert value("auc", scores[:, None], list(labels)) == pytest.approx(expected)
    assert value("auc", np.stack([-scores, scores], 1), list(labels)) == pytest.approx(expected)


def test_errors_are_means_over_samples_and_lower_is_better():
    outputs, targets = np.array([[1.0, 2.0], [3.0, 4.0]]), [np.array([1.0, 0.0]), np.array([3.0, 3.0])]
    assert value("mse", outputs, targets) == pytest.approx((2 + 0.5) / 2)
    assert value("mae", outputs, targets) == pytest.approx((1 + 0.5) / 2)
    assert not score(resolve_metric("mse", "."), {"y": outputs}, targets=targets).higher_is_better


def test_label_free_metrics_compare_with_the_source():
    source = {"y": LOGITS}
    assert value("agreement", source, reference=source) == 100
    assert value("agreement", LOGITS[::-1], reference=source) == pytest.approx(100 / 3)
    assert value("cosine", {"y": LOGITS * 7}, reference=source) == pytest.approx(100)
    assert value("cosine", {"y": -LOGITS}, reference=source) == pytest.approx(-100)
    with pytest.raises(DataError, match="source's outputs"):
        value("agreement", source)


def test_a_named_output_is_read_instead_of_the_first():
    outputs = {"boxes": np.zeros((3, 7)), "logits": LOGITS}
    assert value("top1:logits", outputs, [0, 0, 5]) == 100
    assert score(resolve_metric("top1:logits", "."), outputs, targets=[0, 0, 5]).metric == "top1:logits"
    with pytest.raises(ModelError, match=r"no output 'nothing'; there are \['boxes', 'logits'\]"):
        value("top1:nothing", outputs, [0, 0, 5])


def test_a_users_metric_gets_outputs_and_targets():
    def shortfall(outputs, targets):
        return float(sum(targets)) - float(outputs["y"].sum())

    shortfall.unit, shortfall.higher_is_better = "kg", False
    result = score(resolve_metric(shortfall, "."), {"y": np.ones((2, 1))}, targets=[3, 4])
    assert (result.metric, result.value, result.unit, result.higher_is_better) == ("shortfall", 5.0, "kg", False)


def test_a_users_metric_is_found_in_the_recipes_folder(tmp_path):
    (tmp_path / "metrics.py").write_text("def count(outputs, targets):\n    return len(targets)\n")
    metric = resolve_metric("metrics:count", tmp_path)
    assert score(metric, {"y": np.ones((2, 1))}, targets=[3, 4]).value == 2
    assert metric.name == "metrics:count"


def test_a_users_metric_that_is_no_number_is_an_error():
    with pytest.raises(ModelError, match="nan"):
        value(lambda *_: float("nan"), LOGITS, [0, 0, 0])


def test_an_unknown_metric_lists_the_known():
    with pytest.raises(RecipeError) as caught:
        resolve_metric("top2", ".")
    assert "agreement" in caught.value.next_step


@pytest.mark.parametrize(
    ("metric", "outputs", "targets", "error", "text"),
    [
        ("top1", np.ones((2, 3)), [0], DataError, "2 predictions, but 1 targets"),
        ("top1", np.ones((2, 3)), [0, 3], DataError, "sample 1 has class 3, the output has 3 classes"),
        ("top1", np.ones((2, 3)), [0, -1], DataError, "class -1"),
        ("top1", np.ones((2, 3)), [0.5, 1.0], DataError, "class indices"),
        ("top1", np.ones((2, 3)), ["cat", "dog"], DataError, "class indices"),
        ("top1", np.ones((2, 3, 4)), [0, 1], ModelError, "no class scores"),
        ("top1", np.ones((2, 1)), [0, 1], ModelError, "no class scores"),
        ("auc", np.ones((2, 3)), [0, 1], ModelError, "one score"),
        ("auc", np.ones((2, 1)), [0, 2], DataError, "class 2"),
        ("auc", np.array([[np.nan], [1]]), [0, 1], ModelError, "NaN or Inf, first that of sample 0"),
        ("mse", np.array([[1.0], [np.inf]]), [0.0, 1.0], ModelError, "sample 1"),
        ("mse", np.ones((2, 3)), [[1.0], [2.0]], DataError, "1 values a sample, the output has 3"),
        ("mse", np.ones((2, 1)), [np.nan, 1.0], DataError, "target of sample 0"),
        ("mse", np.ones((2, 1)), [1.0, "cat"], DataError, "target of sample 1 is str 'cat', expected 1"),
        ("mae", np.ones((2, 1)), ["cat", "dog"], DataError, "target of sample 0 is str"),
        ("mae", np.ones((2, 2)), [[1.0, 2.0], [1.0]], DataError, r"the output has 2 \(sample 1\)"),
        ("top1", np.ones((2, 2)), [[1], [1, 0]], DataError, "values of several shapes"),
    ],
)
def test_what_a_metric_cannot_judge_is_refused_by_name(metric, outputs, targets, error, text):
    with pytest.raises(error, match=text):
        value(metric, outputs, targets)


USERS = """
def raises(outputs, targets):
    return targets["mine"]


def text(outputs, targets):
    return "0.9"


def nothing(outputs, targets):
    pass


def several(outputs, targets):
    return outputs["y"].mean(axis=1)


def one_argument(outputs):
    return 1.0


def good(outputs, targets):
    return outputs["y"].mean()
"""


@pytest.mark.parametrize(
    ("name", "line", "text"),
    [
        ("raises", 3, "TypeError"),
        ("text", 6, "returned str '0.9', expected a finite number"),
        ("nothing", 10, "returned NoneType"),
        ("several", 14, "returned ndarray"),
        ("one_argument", 18, r"takes \(outputs\), and is called with 2 arguments"),
    ],
)
def test_a_metric_of_the_user_that_is_none_is_named_with_file_and_line(name, line, text, tmp_path):
    (tmp_path / "mine.py").write_text(USERS)
    metric = resolve_metric(f"mine:{name}", tmp_path)
    with pytest.raises(RequestError, match=text) as caught:
        score(metric, {"y": LOGITS}, targets=[0, 0, 0])
    assert f"the metric 'mine:{name}'" in str(caught.value)
    assert f"{tmp_path / 'mine.py'}:{line}" in str(caught.value)


def test_a_number_of_any_library_is_a_number(tmp_path):
    (tmp_path / "mine.py").write_text(USERS)
    assert score(resolve_metric("mine:good", tmp_path), {"y": LOGITS}, targets=[0] * 3).value == LOGITS.mean()
    assert value(lambda *_: np.array(3), LOGITS, [0] * 3) == 3.0


def test_a_live_metric_that_raises_is_named_with_its_own_line():
    with pytest.raises(RequestError, match=r"the metric '<lambda>': .*test_evaluate.py:\d+: KeyError"):
        value(lambda *_: {}["mine"], LOGITS, [0] * 3)


def test_a_row_with_nan_is_wrong_not_right():
    outputs = {"y": np.array([[np.nan, 0.0], [1.0, np.nan]])}
    assert per_sample(resolve_metric("top1", "."), outputs, targets=[0, 0]).tolist() == [0.0, 0.0]


def test_stored_outputs_come_back_in_order_and_with_the_same_bytes(tmp_path):
    outputs = {"z/odd name:0": LOGITS, "a": np.arange(3, dtype=np.int8), "file": np.zeros((3, 0))}
    save_outputs(tmp_path / "a.npz", outputs)
    save_outputs(tmp_path / "b.npz", outputs)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back = load_outputs(tmp_path / "a.npz")
    assert list(back) == list(outputs)
    for name, values in outputs.items():
        assert back[name].dtype == values.dtype
        np.testing.assert_array_equal(back[name], values)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + b"\0" * 18 + b"x", b"no zip at all"])
def test_damaged_stored_outputs_are_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(CorruptFile, match="stored predictions"):
        load_outputs(tmp_path / "a.npz")


def test_outputs_of_nothing_but_float_noise_agree() -> None:
    quiet, other = {"y": np.full((1, 8), 1e-8, np.float32)}, {"y": np.tile(np.float32([1e-8, -1e-8]), (1, 4))}
    assert value("cosine", quiet, reference=other) == pytest.approx(100, abs=0.1)
    loud, far = {"y": quiet["y"] * 1e6}, {"y": other["y"] * 1e6}
    assert value("cosine", loud, reference=far) == pytest.approx(0, abs=0.1)


TARGETS = {
    "ints": [3, 0, -7],
    "floats": [0.5, float("inf"), 1e-300],
    "bools": [True, False],
    "numpy ints": [np.int64(3), np.int64(4)],
    "numpy float32": [np.float32(0.1), np.float32(2)],
    "arrays": [np.arange(6).reshape(2, 3), np.ones((2, 3), int)],
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_come_back_equal_and_of_the_same_types(name, tmp_path):
    save_targets(tmp_path / "t.npz", TARGETS[name])
    back = load_targets(tmp_path / "t.npz")
    assert [type(target) for target in back] == [type(target) for target in TARGETS[name]]
    for ours, theirs in zip(back, TARGETS[name], strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert getattr(ours, "dtype", None) == getattr(theirs, "dtype", None)


@pytest.mark.parametrize(
    "targets",
    [[1, 2.0], [2**70], ["a"], [None], [{"box": 1}], [np.ones(2), np.ones(3)], [np.array([None])], [np.array(1)]],
    ids=str,
)
def test_targets_that_would_come_back_changed_are_not_written(targets, tmp_path):
    save_targets(tmp_path / "t.npz", targets)
    assert load_targets(tmp_path / "t.npz") is None


def test_cosine_is_that_of_the_worst_output_unless_one_is_named() -> None:
    source = {"boxes": LOGITS, "scores": LOGITS}
    found = {"boxes": LOGITS, "scores": -LOGITS}
    assert value("cosine", found, reference=source) == pytest.approx(-100)
    assert value("cosine:boxes", found, reference=source) == pytest.approx(100)
