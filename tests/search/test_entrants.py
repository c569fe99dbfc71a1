"""Which students enter a search, and what is asked of those that are cut."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from edgeexport.pipeline.layer_times import Place
from edgeexport.records.pruning import PlannedGoal, PruningGroup, PruningPlan
from edgeexport.records.recipe import Distill, Limits
from edgeexport.records.shrink import HeadStart
from edgeexport.records.students import Student
from edgeexport.records.target import load_target
from edgeexport.search.entrants import MOST, Entrant, Field, Ground, _able, _asked, _drawn, suffices
from edgeexport.search.reasons import none_reaches


def ground(**limits):
    return Ground(None, None, None, Place(load_target("linux-arm64"), "int8"), Limits(**limits), Distill())


def entrant(mix, *, kept, width=16, times=2.0):
    goal = PlannedGoal("macs", "MACs", "predicted", kept, 2.0, 1.0)
    plan = PruningPlan("l2", 16, 4, 2, (PruningGroup("layer", "Conv2d", width, (0,)),), goals=(goal,))
    return Entrant(mix, Student(mix, plan, kept=(kept, kept), bytes=1000, cost=1.0, times=times), times)


def test_a_size_alone_is_scaled_and_beside_a_speed_it_stays():
    alone = _asked(ground(max_size_mb=0.5), None, factor=1.25)
    both = _asked(ground(max_size_mb=0.5, speedup=5.0), 2.0, factor=1.25)
    assert (alone.speedup, alone.max_size_mb) == (None, 0.4)
    assert (both.speedup, both.max_size_mb) == (2.5, 0.5)


def test_a_speed_that_the_shipped_form_has_by_itself_is_not_asked_of_a_cut():
    step = _asked(ground(max_size_mb=0.5, speedup=2.0), 0.8, factor=1.0)
    assert (step.speedup, step.max_size_mb) == (None, 0.5)


@pytest.mark.parametrize(
    ("limits", "enough"),
    [({"speedup": 2.0}, True), ({"speedup": 2.5}, False), ({"max_size_mb": 0.1}, False), ({"max_size_mb": 0.3}, True)],
)
def test_the_uncut_network_suffices_only_where_it_holds_every_limit(limits, enough):
    assert suffices(HeadStart(2.2, "measured", 200_000), Limits(**limits)) == enough


def test_each_mix_enters_with_the_student_that_keeps_most_and_no_plan_enters_twice():
    able = [
        entrant("width", kept=0.5, width=16),
        entrant("width", kept=0.6, width=32),
        entrant("depth", kept=0.3, width=48),
        entrant("free", kept=0.59, width=32),
    ]
    assert _drawn(able) == (able[1], able[2], able[0])
    assert len(_drawn([entrant("width", kept=0.1, width=16 * n) for n in range(1, 20)])) == MOST


def test_only_the_limit_that_all_students_miss_is_told_and_both_where_each_misses_one():
    quick, small = entrant("width", kept=0.5, times=3.0), entrant("depth", kept=0.5, times=1.2)
    quick = replace(quick, student=msgspec.structs.replace(quick.student, bytes=9000))
    start, found = HeadStart(1.0, "measured", 9000), Field((), (quick, small), "measured", "ms", ())
    assert [each[:2] for each in none_reaches(ground(speedup=4.0, max_size_mb=0.002), found, start=start)] == ["4×"]
    assert [each[:5] for each in none_reaches(ground(speedup=2.0, max_size_mb=5e-4), found, start=start)] == ["0.000"]
    assert len(none_reaches(ground(speedup=2.0, max_size_mb=0.002), found, start=start)) == 2


def test_a_student_that_just_reaches_the_goal_enters_only_where_none_does_by_a_margin():
    close, sure, slow = entrant("width", kept=0.5), entrant("depth", kept=0.5, times=2.1), entrant("free", kept=0.5)
    assert _able([close, sure], 2.0, margin=1.04, max_size_mb=None) == [sure]
    assert _able([close, slow], 2.0, margin=1.04, max_size_mb=None) == [close, slow]
    assert _able([close, slow], 2.1, margin=1.04, max_size_mb=None) == []
