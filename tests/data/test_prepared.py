from __future__ import annotations

import numpy as np
import pytest

from edgeexport.data import Prepared, arrays, open_split, splits
from edgeexport.data import prepared as module
from edgeexport.errors import DataError
from tests.data.conftest import MakeRecipe, signature

ROWS = [(np.full(2, value, np.float32), value) for value in range(7)]


def test_positions_count_in_the_chosen_indices() -> None:
    prepared = Prepared(ROWS, (5, 2), None, signature("batch", 2))
    assert len(prepared) == 2
    assert prepared.feeds(0)["x"].tolist() == [[5.0, 5.0]]
    assert prepared.target(1) == 2


def test_batches_cover_all_samples_in_order() -> None:
    prepared = Prepared(ROWS, tuple(range(7)), None, signature("batch", 2))
    batches = list(prepared.batches(3))
    assert [feeds["x"].shape[0] for feeds, _ in batches] == [3, 3, 1]
    assert [target for _, targets in batches for target in targets] == list(range(7))
    assert [feeds["x"][0, 0] for feeds in prepared] == list(range(7))


def test_a_bad_sample_is_named_by_its_place_in_the_source() -> None:
    rows = [*ROWS[:3], (np.array([0.0, np.inf]), 1)]
    prepared = Prepared(rows, (3,), None, signature("batch", 2))
    with pytest.raises(DataError, match=r"sample 3.*inf"):
        prepared.feeds(0)


@pytest.mark.parametrize("free", [10**12, 1])
def test_arrays_are_stacked_in_memory_or_mapped(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(module, "free_memory", lambda: free)
    stacked, targets = arrays(Prepared(ROWS, (6, 0, 3), None, signature("batch", 2)))
    assert isinstance(stacked["x"], np.memmap) == (free == 1)
    assert stacked["x"].tolist() == [[6, 6], [0, 0], [3, 3]]
    assert targets is not None
    assert targets.tolist() == [6, 0, 3]


def test_free_memory_is_told() -> None:
    assert module.free_memory() > 2**20


@pytest.mark.parametrize(("rows", "message"), [([], "no samples"), ([(np.zeros(2), "cat")], "dtype <U3")])
def test_what_cannot_be_trained_on_is_refused(rows: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        arrays(Prepared(rows, tuple(range(len(rows))), None, signature("batch", 2)))  # type: ignore[arg-type]


def test_samples_without_targets_have_none_and_some_without_are_counted() -> None:
    bare = [(inputs, None) for inputs, _ in ROWS]
    assert arrays(Prepared(bare, (0, 1, 2), None, signature("batch", 2)))[1] is None
    with pytest.raises(DataError, match="2 of 4 training samples have no label, first sample 1"):
        arrays(Prepared([*ROWS, *bare], (0, 7, 1, 8), None, signature("batch", 2)))


def test_samples_of_unlike_shape_do_not_stack() -> None:
    rows = [(np.zeros(2), 0), (np.zeros(3), 0)]
    with pytest.raises(DataError, match="sample 1"):
        arrays(Prepared(rows, (0, 1), None, signature("batch", "n")))


def test_the_digits_come_out_as_the_set_prepares_them(recipe: MakeRecipe) -> None:
    chosen = recipe(pool="digits")
    prepared = open_split(chosen, splits(chosen), name="selection", signature=signature("batch", 1, 8, 8))
    stacked, targets = arrays(prepared)
    assert stacked["x"].shape[1:] == (1, 8, 8)
    assert stacked["x"].max() == 1.0
    assert targets is not None
    assert set(targets.tolist()) == set(range(10))
