"""The page of a search draws what was trained, marks the front and the limits, and escapes what a record says."""

from __future__ import annotations

import msgspec

from edgeexport.records.recipe import Limits
from edgeexport.records.shrink import HalvingRound, HeadStart, ShrinkRecord, Trial
from edgeexport.records.verdict import Drop, Score
from edgeexport.report.shrink import shrink_lines, trial_rows
from edgeexport.report.shrink_page import front_plot, shrink_html


def trial(name, *, times, lost, size=100_000, **more):
    drop = Drop(lost, lost - 1, lost + 1, lost + 1, "mcnemar", 100)
    score = Score("top1", 90 - lost, "points", 100, "sha256:0")
    return Trial(name, "trained", "", times, 0.5, size, (0.4, 0.5), 90, score, drop, **more)


RECORD = ShrinkRecord(
    recipe="<net>",
    target="phone",
    limits=Limits(max_drop=1.0, max_size_mb=0.5, speedup=5.0),
    metric="top1",
    basis="predicted",
    unit="ms",
    head_start=HeadStart(2.0, "predicted", 300_000, "no device"),
    budget_minutes=30,
    rounds=(HalvingRound(3, 30), HalvingRound(1, 90)),
    trials=(
        trial("depth <1>", times=5.0, lost=0.5, front=True),
        trial("width", times=4.0, lost=1.5),
        Trial("free", "not trained", times=3.0, bytes=5),
    ),
)


def test_the_front_is_drawn_with_limits_and_nothing_untrained():
    plot = front_plot(RECORD)
    assert plot.count("<circle") == 2
    assert plot.count('class="dot front"') == 1
    assert plot.count('class="limit"') == 2
    assert "depth &lt;1&gt;" in plot


def test_without_times_sizes_are_drawn_and_without_training_nothing():
    untimed = tuple(msgspec.structs.replace(row, times=None) for row in RECORD.trials)
    assert ">MB<" in front_plot(msgspec.structs.replace(RECORD, trials=untimed))
    assert front_plot(msgspec.structs.replace(RECORD, trials=RECORD.trials[2:])) == ""


def test_a_student_that_was_dropped_early_is_marked_in_plot_and_table():
    early, late = (
        msgspec.structs.replace(row, steps=steps, front=True)
        for row, steps in zip(RECORD.trials[:2], (30, 90), strict=True)
    )
    record = msgspec.structs.replace(RECORD, trials=(early, late))
    plot = front_plot(record)
    assert (plot.count('class="dot front early"'), plot.count('class="dot front"')) == (1, 1)
    assert "trained after 30 steps" in plot
    assert {row[0]: row[8] for row in trial_rows(record)} == {"depth <1>": "○", "width": "●"}


def test_the_page_is_whole_offline_and_escaped():
    page = shrink_html(RECORD)
    assert "&lt;net&gt;" in page
    assert "<net>" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "infeasible" in page


def test_rows_and_lines_hold_the_figures():
    rows = trial_rows(RECORD)
    assert [row[0] for row in rows] == ["depth <1>", "width", "free"]
    assert rows[0][1:6] == ("5.00×", "0.500 ms", "0.100", "40%", "90")
    lines = shrink_lines(msgspec.structs.replace(RECORD, explanation=("too slow",)))
    assert lines[0].startswith("asked for at least 5× faster than fp32, at most 0.5 MB, at most 1 lost on phone")
    assert "students: 3 for 30 steps, 1 for 90 steps" in lines
    assert "figures are predicted, not measured: no device" in lines
    assert lines[-1] == "infeasible: too slow"
