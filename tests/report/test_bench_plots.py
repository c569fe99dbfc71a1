"""Plots of a bench: an interrupted launch does not press the others into a line, and is not left out either."""

from __future__ import annotations

import re
from typing import Any

from edgeexport.report.bench_plots import FAR, WIDTH, launches_plot, time_plot
from edgeexport.validation.launches import Launch, read_launch
from tests.validation.test_launches import answer


def _launch(slowest_ns: int) -> Launch:
    times: Any = [1_000_000 + 1_000 * (index % 7) for index in range(60)] + [slowest_ns] * 4
    return read_launch(answer(iterations_ns=times))


def test_an_axis_that_ends_before_the_slowest_says_so() -> None:
    plain, disturbed = (launches_plot([_launch(1_010_000), _launch(slowest)]) for slowest in (1_010_000, 90_000_000))
    assert "≥" not in plain
    assert re.search(r"≥ 3\.0", disturbed)
    assert disturbed.count('class="box"') == 2
    assert f'x2="{WIDTH - 90}' in disturbed


def test_the_slow_iterations_stay_in_sight_over_time() -> None:
    drawn = time_plot([_launch(90_000_000)])
    assert drawn.count("<circle") == 64
    assert f"≥ {FAR:.0f}.0" in drawn
