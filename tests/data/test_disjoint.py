from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeexport.data import check_labels, class_names, open_samples, open_split, read_raw, sample_digest, splits
from edgeexport.errors import DataError, RecipeError
from edgeexport.records.base import from_json, to_json
from edgeexport.records.recipe import DataSpec, Distill, ModelSpec, Recipe, Train
from edgeexport.records.splits import SplitIndices
from tests.data.conftest import MakeRecipe, picture, pictures, signature, write_zip

Rows = list[tuple[Any, int]]


def rows(*values: int) -> Rows:
    return [(np.full(3, value, np.float32), value % 2) for value in values]


def digests(found: SplitIndices, recipe: Recipe, name: Any) -> set[str]:
    split = found.get(name)
    samples = open_samples(getattr(recipe.data, split.source), recipe, labelled=False)
    return {sample_digest(read_raw(samples, index)[0]) for index in split.indices}


def check_disjoint(found: SplitIndices, recipe: Recipe) -> None:
    sets = {name: digests(found, recipe, name) for name in ("train", "calibration", "selection", "evaluation")}
    assert not sets["evaluation"] & (sets["train"] | sets["calibration"] | sets["selection"])
    assert not sets["selection"] & (sets["train"] | sets["calibration"])


def test_train_and_evaluate_are_split_disjointly(recipe: MakeRecipe) -> None:
    chosen = recipe(train=rows(*range(200)), evaluate=rows(*range(1000, 1050)), calibration_count=16)
    found = splits(chosen)
    assert found.counts() == {"train": 180, "calibration": 16, "selection": 20, "evaluation": 50}
    assert set(found.calibration.indices) <= set(found.train.indices)
    check_disjoint(found, chosen)


def test_a_pool_is_split_in_shares(recipe: MakeRecipe) -> None:
    chosen = recipe(pool=rows(*range(100)), calibration_count=8, split=(0.5, 0.2, 0.3))
    found = splits(chosen)
    assert found.counts() == {"train": 50, "calibration": 8, "selection": 20, "evaluation": 30}
    check_disjoint(found, chosen)


def test_one_source_for_both_is_a_pool(recipe: MakeRecipe) -> None:
    assert splits(recipe(train="digits", evaluate="digits")) == splits(recipe(pool="digits"))


def test_duplicates_stay_on_one_side(recipe: MakeRecipe) -> None:
    chosen = recipe(pool=rows(*range(40), *range(40), *range(40)))
    found = splits(chosen)
    assert sum(found.counts().values()) - len(found.calibration.indices) == 120
    check_disjoint(found, chosen)


def test_the_choice_depends_on_content_not_on_order(recipe: MakeRecipe) -> None:
    data = rows(*range(60))
    one, other = recipe(pool=data), recipe(pool=data[::-1])
    for name in ("calibration", "selection", "evaluation"):
        assert digests(splits(one), one, name) == digests(splits(other), other, name)


def test_the_seed_changes_the_choice_and_nothing_else_does(recipe: MakeRecipe) -> None:
    chosen = recipe(pool=rows(*range(60)))
    assert splits(chosen) == splits(chosen)
    other = msgspec.structs.replace(chosen, data=msgspec.structs.replace(chosen.data, seed=1))
    assert splits(chosen).selection.indices != splits(other).selection.indices


def test_a_few_shared_samples_are_left_out_with_a_warning(recipe: MakeRecipe) -> None:
    chosen = recipe(train=rows(*range(300)), evaluate=rows(7, 8, *range(1000, 1050)))
    found = splits(chosen)
    assert found.counts()["train"] + found.counts()["selection"] == 298
    assert "2 of 300 train samples" in found.warnings[0]
    assert "train[7]" in found.warnings[0]
    assert "evaluate[0]" in found.warnings[0]
    check_disjoint(found, chosen)


def test_many_shared_samples_are_an_error_naming_both_places(recipe: MakeRecipe) -> None:
    with pytest.raises(DataError, match=r"50 of 100 train samples.*train\[50\].*evaluate\[0\]"):
        splits(recipe(train=rows(*range(100)), evaluate=rows(*range(50, 150))))


def test_own_calibration_that_is_evaluated_is_an_error_naming_both_places(recipe: MakeRecipe) -> None:
    with pytest.raises(DataError, match=r"1 calibration samples.*calibration\[3\].*evaluate\[2\]"):
        splits(recipe(train=rows(*range(50)), evaluate=rows(60, 61, 62), calibration=rows(70, 71, 72, 62)))


def test_own_calibration_yields_to_selection(recipe: MakeRecipe) -> None:
    train = rows(*range(50))
    chosen = recipe(train=train, evaluate=rows(60, 61), calibration=list(train))
    found = splits(chosen)
    assert found.calibration.source == "calibration"
    assert "5 calibration samples" in found.warnings[0]
    check_disjoint(found, chosen)


def test_own_calibration_of_a_pool_may_not_be_evaluated(recipe: MakeRecipe) -> None:
    pool = rows(*range(50))
    assert splits(recipe(pool=pool, calibration=rows(90, 91))).calibration.indices == (0, 1)
    with pytest.raises(DataError, match="are also evaluation samples"):
        splits(recipe(pool=pool, calibration=list(pool)))


def test_without_train_the_calibration_source_stands_in(recipe: MakeRecipe) -> None:
    chosen = recipe(calibration=rows(*range(50)), evaluate=rows(60, 61))
    found = splits(chosen)
    assert found.selection.source == found.train.source == "calibration"
    check_disjoint(found, chosen)


def test_a_set_that_only_names_a_preprocessing_calibrates_on_train(recipe: MakeRecipe) -> None:
    found = splits(recipe(train=rows(*range(50)), evaluate=rows(60, 61), calibration="cifar10"))
    assert found.calibration.source == "train"


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"train": rows(1, 2)}, RecipeError, "`data.evaluate` is missing"),
        ({"pool": rows(1), "train": rows(2)}, DataError, "no samples are left"),
        ({"evaluate": rows(1, 2)}, RecipeError, "nothing to calibrate"),
        ({"pool": rows(1, 2, 3), "split": (0.5, 0.5, 0.5)}, RecipeError, "sum of at most 1"),
        ({"pool": rows(1, 2, 3), "selection_share": 1.5}, RecipeError, "selection_share"),
        ({"pool": rows(1, 2)}, DataError, "no samples are left for calibration"),
        ({"train": rows(1), "evaluate": rows(2)}, DataError, "no samples are left for calibration"),
        ({"train": rows(1, 2), "evaluate": []}, DataError, "holds no samples"),
    ],
)
def test_what_cannot_be_split_is_refused(
    recipe: MakeRecipe, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        splits(recipe(**fields))


def test_a_nan_in_any_source_is_named(recipe: MakeRecipe) -> None:
    bad = [*rows(1, 2, 3), (np.array([0.0, np.nan, 0.0]), 1)]
    with pytest.raises(DataError, match="sample 3: nan"):
        splits(recipe(train=rows(*range(10, 50)), evaluate=bad))


def test_sources_with_unlike_classes_are_refused(tmp_path: Path, recipe: MakeRecipe) -> None:
    write_zip(tmp_path / "a.zip", pictures("a", range(10)))
    write_zip(tmp_path / "b.zip", {name: data for name, data in pictures("b", range(20, 24)).items() if "cat" in name})
    with pytest.raises(DataError, match="train has 2 classes, evaluate 1; only one has dog"):
        splits(recipe(train="a.zip", evaluate="b.zip"))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert splits(recipe(train="a.zip", evaluate="b.zip", classes="classes.txt")).counts()["evaluation"] == 2


def test_the_digest_of_a_split_is_the_digest_of_its_samples(recipe: MakeRecipe) -> None:
    chosen = recipe(pool=rows(*range(40)))
    found = splits(chosen)
    prepared = open_split(chosen, found, name="evaluation", signature=signature("batch", 3))
    assert prepared.digest() == found.evaluation.digest
    assert found.evaluation.digest != found.selection.digest


def test_swapped_or_changed_samples_change_the_digest(recipe: MakeRecipe) -> None:
    data = rows(*range(20))
    swapped = [data[1], data[0], *data[2:]]
    changed = [(np.array([0.0, 0.0, 1e-7], np.float32), 0), *data[1:]]
    base = {"train": rows(*range(100, 140))}
    found = {splits(recipe(evaluate=some, **base)).evaluation.digest for some in (data, swapped, changed)}
    assert len(found) == 3


def test_a_sample_digest_sees_shape_dtype_name_and_not_memory_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    same = [array, np.asfortranarray(array), array.astype(">f4")]
    assert len({sample_digest({"": each}) for each in same}) == 1
    others = [array, array.T, array.reshape(3, 2), array.astype(np.int32), array.astype(np.float64)]
    assert len({sample_digest({"": each}) for each in others} | {sample_digest({"x": array})}) == 6


def test_the_record_survives_json(recipe: MakeRecipe) -> None:
    found = splits(recipe(pool=rows(*range(40))))
    assert from_json(to_json(found), SplitIndices, origin="x") == found


@pytest.mark.real
def test_real_train_and_test_pictures_are_disjoint(real_data: Path, recipe: MakeRecipe) -> None:
    found = splits(recipe(pool=str(real_data / "cifar10" / "test.zip"), calibration="cifar10"))
    assert found.counts() == {"train": 1000, "calibration": 128, "selection": 1000, "evaluation": 3000}


def test_train_beside_a_pool_leaves_the_judging_to_the_pool(recipe: MakeRecipe) -> None:
    chosen = recipe(train=rows(*range(60)), pool=rows(*range(1000, 1100)), calibration_count=8, split=(0.2, 0.2, 0.6))
    found = splits(chosen)
    assert found.counts() == {"train": 60, "calibration": 8, "selection": 25, "evaluation": 75}
    assert found.selection.source == found.evaluation.source == "pool"
    check_disjoint(found, chosen)


def test_a_pool_and_evaluate_together_are_refused(recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="pool"):
        splits(recipe(pool=rows(1, 2), evaluate=rows(3)))


def test_a_label_free_metric_needs_no_labels(recipe: MakeRecipe, tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", images=np.arange(60, dtype=np.float32).reshape(20, 3))
    with pytest.raises(DataError, match="label"):
        splits(recipe(pool=str(tmp_path / "plain.npz"), metric="top1"))
    free = recipe(pool=str(tmp_path / "plain.npz"), metric="cosine")
    assert sum(splits(free).counts().values()) >= 20


def lesson(data: dict[str, Any], tmp_path: Path, *, step: Train | Distill) -> Recipe:
    """A recipe with a step of training."""
    model = ModelSpec(factory="models:net", inputs={"x": (1, 3)})
    return Recipe(model=model, data=DataSpec(**data), step=(step,), folder=str(tmp_path))


def test_files_without_labels_train_under_a_teacher_and_are_refused_by_what_learns_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", images=np.arange(60, dtype=np.float32).reshape(20, 3))
    data = {"train": "plain.npz", "pool": rows(*range(100, 150)), "metric": "top1"}
    found = splits(lesson(data, tmp_path, step=Distill()))
    assert (found.train.unlabelled, found.selection.unlabelled) == (20, 0)
    with pytest.raises(DataError, match=r"step 1 `train` learns labels by .*plain\.npz: has no labels") as raised:
        splits(lesson(data, tmp_path, step=Train()))
    assert "give every training sample its label (name the array of labels" in raised.value.next_step


def test_pictures_in_no_class_folder_train_under_a_teacher(tmp_path: Path) -> None:
    bare = {f"{number:02}.png": content for number, content in enumerate(pictures("a", range(10)).values())}
    write_zip(tmp_path / "a.zip", bare)
    write_zip(tmp_path / "b.zip", pictures("b", range(20, 30)))
    data = {"train": "a.zip", "evaluate": "b.zip", "metric": "agreement"}
    chosen = lesson(data, tmp_path, step=Distill())
    found = splits(chosen)
    assert found.train.unlabelled == 9
    assert class_names(chosen) == ("cat", "dog")
    check_labels(chosen, found)
    with pytest.raises(DataError, match=r"step 1 `train` learns labels by .*00\.png has no label"):
        splits(lesson(data, tmp_path, step=Train()))


def test_pictures_of_which_some_have_labels_are_refused_by_name(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {**pictures("a", range(10)), "stray.png": picture(77)})
    data = {"train": "a.zip", "pool": rows(*range(100, 150)), "metric": "agreement"}
    chosen = lesson(data, tmp_path, step=Distill())
    with pytest.raises(DataError, match=r"1 of 11 training samples \(`data.train`\) have no label, first .*stray\.png"):
        check_labels(chosen, splits(chosen))


def test_a_metric_of_the_users_may_take_samples_without_labels(recipe: MakeRecipe) -> None:
    bare = [(inputs, None) for inputs, _ in rows(*range(60))]
    for metric in ("metrics:own", "top1"):
        chosen = recipe(pool=bare, metric=metric)
        found = splits(chosen)
        if metric == "metrics:own":
            check_labels(chosen, found)
            continue
        with pytest.raises(DataError, match="the metric 'top1' judges by labels, and 12 of 12 selection samples"):
            check_labels(chosen, found)


def test_what_each_metric_takes_outputs_for_is_known() -> None:
    from edgeexport.records.labels import answers_of
    from edgeexport.validation.metrics import METRICS

    assert all(answers_of(f"{name}:output") is not None for name in METRICS)
    assert {name for name in METRICS if answers_of(name) == "classes"} >= {n for n, m in METRICS.items() if m.classes}
    assert answers_of("metrics:own") is None


def test_the_label_free_metrics_are_those_that_say_so() -> None:
    from edgeexport.records.recipe import LABEL_FREE_METRICS
    from edgeexport.validation.metrics import METRICS

    assert set(LABEL_FREE_METRICS) == {name for name, metric in METRICS.items() if metric.label_free}
