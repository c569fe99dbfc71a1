"""Rounds of successive halving, and the budget they come from."""

from __future__ import annotations

import math

import pytest

from edgeexport.errors import RequestError
from edgeexport.search.budget import LEAST_STEPS, minutes, rounds, steps_in_all
from edgeexport.search.halving import Halving
from edgeexport.training import StepTimes


def test_the_best_third_goes_on_whatever_the_order_of_telling():
    lost = {0: 3.0, 1: 1.0, 2: 2.0, 3: 5.0, 4: 0.5, 5: 4.0}
    names = [str(index) for index in lost]
    assert Halving(names).tell(lost, steps=10) == [4, 1]
    assert Halving(names).tell(dict(reversed(lost.items())), steps=10) == [4, 1]


def test_those_that_lose_alike_are_not_all_kept():
    assert Halving(["a", "b", "c"]).tell({0: 1.0, 1: 1.0, 2: 1.0}, steps=10) == [0]


def test_the_last_one_stands_even_where_every_training_failed():
    study = Halving(["a", "b"])
    (left,) = study.tell({0: float("inf"), 1: float("inf")}, steps=10)
    assert study.tell({left: float("inf")}, steps=30) == [left]


@pytest.mark.parametrize("total", [63, 210, 1000])
def test_all_rounds_together_take_no_more_than_the_budget(total):
    plan = rounds(6, total)
    assert [each.students for each in plan][-1] == 1
    assert 0.8 * total < sum(each.students * each.steps for each in plan) <= total


def test_a_small_budget_trains_fewer_students_rather_than_all_for_nothing():
    assert [each.students for each in rounds(6, 1000)] == [6, 2, 1]
    assert rounds(6, 4 * LEAST_STEPS + 2)[0].students < 6
    assert [(each.students, each.steps) for each in rounds(6, 1)] == [(1, 1)]


@pytest.mark.parametrize(
    "times",
    [StepTimes(1.0, 1.0, math.inf), StepTimes(1.0, 0.25, 100), StepTimes(1.0, 1.0, math.inf, looks=20.0)],
    ids=["plain", "views", "looks"],
)
def test_trainings_of_a_search_take_the_budget_together_each_with_its_new_batches_and_looks(times):
    plan = rounds(6, steps_in_all(6, seconds=1000.0, one=times.seconds))
    assert [each.students for each in plan] == [6, 2, 1]
    taken = sum(each.students * times.seconds(each.steps) for each in plan)
    assert 950 < taken <= 1000


def test_a_budget_too_small_for_any_training_trains_one_step():
    assert steps_in_all(6, seconds=0.5, one=StepTimes(1.0, 1.0, math.inf).seconds) == 1


@pytest.mark.parametrize(("text", "value"), [("90m", 90.0), ("1.5h", 90.0), ("45s", 0.75), ("20", 20.0)])
def test_a_budget_is_read(text, value):
    assert minutes(text) == value


@pytest.mark.parametrize("text", ["soon", "0m", "-3m", "3d", ""])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(RequestError, match="is no budget"):
        minutes(text)
