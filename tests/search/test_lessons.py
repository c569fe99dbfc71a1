"""The front of a search: which of the trained students no other one beats in loss, speed and size together."""

from __future__ import annotations

from edgeexport.records.shrink import Trial
from edgeexport.records.verdict import Drop
from edgeexport.search.lessons import _on_front


def trial(name, *, lost, times, size):
    drop = None if lost is None else Drop(lost, lost - 1, lost + 1, lost + 1, "mcnemar", 100)
    return Trial(name, "trained", times=times, bytes=size, drop=drop)


def front(*rows):
    return {row.name for row in rows if _on_front(row, rows)}


def test_each_student_that_is_best_in_something_is_on_the_front_and_a_beaten_one_is_not():
    accurate = trial("accurate", lost=0.1, times=2.0, size=300)
    fast = trial("fast", lost=2.0, times=6.0, size=200)
    small = trial("small", lost=2.0, times=3.0, size=100)
    between = trial("between", lost=1.0, times=3.0, size=250)
    beaten = trial("beaten", lost=2.5, times=5.0, size=200)
    assert front(accurate, fast, small, between, beaten) == {"accurate", "fast", "small", "between"}


def test_beaten_in_one_and_equal_in_two_is_beaten_and_twins_stand_together():
    one, other = (trial(name, lost=1.0, times=3.0, size=100) for name in ("one", "other"))
    larger = trial("larger", lost=1.0, times=3.0, size=101)
    assert front(one, other, larger) == {"one", "other"}


def test_a_student_without_a_score_is_not_on_the_front_and_beats_nobody():
    untrained = trial("untrained", lost=None, times=9.0, size=1)
    assert front(untrained, trial("trained", lost=5.0, times=1.0, size=500)) == {"trained"}
