"""A pruning plan is printed: what goes, what stays and why, and how its figures are known."""

from __future__ import annotations

from edgeexport.records.pruning import PlannedGoal, PruningGroup, PruningPlan

GOAL = PlannedGoal("speedup", "ms", "measured", 0.8, 1.25, 0.75, "sha256:0123456789abcdef")
REFUSED = {"head": "they are the output", "stem": "locked", "a": "gates", "b": "gates"}
PLAN = PruningPlan(
    "l2",
    16,
    4_000_000,
    1_000_000,
    (PruningGroup("conv1", "Conv2d", 64, tuple(range(16))), PruningGroup("query", "heads", 4, (1,))),
    refused=REFUSED,
    blocks=("layer3.1",),
    goals=(GOAL,),
)


def test_a_plan_prints_every_part_that_goes_or_stays_and_how_its_figures_are_known():
    assert str(PLAN).splitlines() == [
        "pruning plan by l2, widths by 16",
        "  goal     latency 1.25 → 0.75 ms (1.67 times less, measured, table 0123456789ab), asked 0.8",
        "  MACs     4,000,000 → 1,000,000 (4.00 times less)",
        "  narrower `conv1` (Conv2d): 64 → 48",
        "  narrower `query` (heads): 4 → 3",
        "  out      `layer3.1`: the whole block",
        "  stays    `head`: they are the output",
        "  stays    `stem`: locked",
        "  stays    `a`: gates",
        "  stays    `b`: gates",
    ]


def test_what_is_left_alone_is_counted_and_the_first_of_it_named():
    assert (
        PLAN.left_alone == "4 parts are left alone: `head`: they are the output; `stem`: locked; `a`: gates; and 1 more"
    )
    assert PruningPlan("l2", 16, 4, 2, (), refused={"x": "locked"}).left_alone == "1 part is left alone: `x`: locked"
    assert not PruningPlan("l2", 16, 4, 2, ()).left_alone
