"""The latency table as arithmetic: what is asked of it, what it says between its points, and plans made from it."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import nn

from edgeexport.compression.candidates import find_candidates
from edgeexport.compression.latency import Times, grids, latency_price, layer_shapes, predicted_table
from edgeexport.compression.macs import positions
from edgeexport.compression.price import Ledger, size_price
from edgeexport.compression.prune import Means, plan_pruning
from edgeexport.errors import ModelError, RecipeError
from edgeexport.records.latency import LatencyTable, LayerCost, LayerShape, ShapeCosts
from edgeexport.records.recipe import Prune
from tests.compression import nets

LINEAR = LayerShape("linear", (1,))
STEP = Prune(speedup=1.5, round_to=8)


def table(*costs, shape=LINEAR):
    points = tuple(LayerCost(*point) for point in costs)
    return LatencyTable("here", "int8", "measured", "ms", (ShapeCosts(shape, points),))


def wanted(module, example, step=8):
    return grids(module, example, groups=find_candidates(module, example, step=STEP).groups, step=step)


def priced(module, example, cost):
    """A price whose table says `cost(shape, inputs, outputs)` of every point that a plan may ask for."""
    grid = wanted(module, example)
    shapes = tuple(
        ShapeCosts(each.shape, tuple(LayerCost(*point, cost(each.shape, *point)) for point in each.points))
        for each in grid
    )
    return latency_price(module, example, table=LatencyTable("here", "int8", "measured", "ms", shapes))


def kept(plan):
    return {group.layer: group.width - len(group.removed) for group in plan.groups}


def test_costs_between_the_points_are_interpolated_and_stay_level_beyond_them():
    times = Times(table((8, 8, 1.0), (8, 16, 3.0), (16, 8, 5.0), (16, 16, 7.0)))
    assert times.cost(LINEAR, inputs=8, outputs=12) == 2.0
    assert times.cost(LINEAR, inputs=12, outputs=12) == 4.0
    assert times.cost(LINEAR, inputs=4, outputs=4) == times.cost(LINEAR, inputs=8, outputs=8)


def test_only_widths_that_may_change_are_asked_for():
    grid = {each.shape.size + each.shape.stride: each for each in wanted(nets.settled(nets.OptionA), nets.PICTURE)}
    assert grid[16, 16, 1, 1].inputs == (3, 8, 16, 24, 32)
    assert grid[16, 16, 2, 2].inputs == (32,)
    assert grid[16, 16, 2, 2].outputs == (8, 16, 24, 32, 40, 48, 56, 64)


def test_a_wide_layer_is_asked_for_at_few_widths_all_of_them_aligned():
    module = nn.Sequential(nn.Linear(12, 1000), nn.ReLU(), nn.Linear(1000, 2))
    first = next(each for each in wanted(module.eval(), nets.TABLE) if each.inputs[0] == 12 or 12 in each.inputs)
    assert len(first.outputs) <= 11
    assert all(width % 8 == 0 for width in first.outputs if width not in (2, 1000))


@pytest.mark.parametrize("padding", ["same", 1])
def test_shapes_are_read_as_they_are_called(padding):
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=padding), nn.Conv2d(8, 8, 3, 2, 1, groups=8)).eval()
    shapes = layer_shapes(module, nets.PICTURE)
    assert shapes["0"] == (LayerShape("conv", (16, 16), (3, 3), (1, 1), (1, 1), (1, 1)),)
    assert shapes["1"] == (LayerShape("depthwise", (16, 16), (3, 3), (2, 2), (1, 1), (1, 1)),)


def test_what_the_table_does_not_explain_falls_with_what_a_layer_writes():
    module = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
    points = table((12, 16, 1.0), (16, 16, 1.0), (12, 8, 1.0), (16, 8, 1.0))
    price = latency_price(module, nets.TABLE, table=points, total=6.0)
    ledger = Ledger(module, positions(module, nets.TABLE), prices=[price])
    assert ledger.totals == pytest.approx((6.0,))
    assert price.layer("0", (8, 12)) == pytest.approx(1.0 + 1.0)


def test_a_table_that_explains_too_much_is_scaled_down():
    module = nn.Sequential(nn.Linear(12, 16)).eval()
    price = latency_price(module, nets.TABLE, table=table((12, 16, 4.0)), total=1.0)
    assert Ledger(module, positions(module, nets.TABLE), prices=[price]).totals == pytest.approx((1.0,))


def test_time_goes_where_the_table_says_it_is_spent_and_not_where_the_multiplications_are():
    module = nets.settled(nets.mlp)
    slow = priced(module, nets.TABLE, lambda _, inputs, outputs: outputs * (10.0 if inputs == 12 else 0.01))
    plan = plan_pruning(module, nets.TABLE, step=STEP, means=Means([slow]))
    assert set(kept(plan)) == {"0"}
    assert plan.goals[0].ratio >= 1.5
    assert plan.goals[0].basis == "measured"


def test_widths_that_are_no_faster_are_not_chosen():
    module = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 2)).eval()

    def cost(_, inputs, outputs):
        unaligned = (inputs % 16 and inputs != 12) or (outputs % 16 and outputs != 2)
        return (inputs + outputs) * (3.0 if unaligned else 1.0)

    plan = plan_pruning(module, nets.TABLE, step=STEP, means=Means([priced(module, nets.TABLE, cost)]))
    assert kept(plan)["0"] % 16 == 0


def test_a_goal_that_no_width_reaches_is_an_error_that_says_what_is_reached():
    module = nets.settled(nets.mlp)
    flat = priced(module, nets.TABLE, lambda *_: 1.0)
    with pytest.raises(ModelError, match=r"cannot reach .* ms"):
        plan_pruning(module, nets.TABLE, step=STEP, means=Means([flat]))


def test_without_a_table_a_speedup_is_refused():
    with pytest.raises(ModelError, match="latency table"):
        plan_pruning(nets.settled(nets.mlp), nets.TABLE, step=STEP)


def test_a_predicted_table_says_so_and_rounds_widths_up():
    module = nets.settled(nets.mlp)
    found = predicted_table(wanted(module, nets.TABLE), target="board", form="int8", reason="no board")
    times = Times(found)
    shape = found.shapes[0].shape
    assert (found.basis, found.reason) == ("predicted", "no board")
    assert times.cost(shape, inputs=64, outputs=40) == times.cost(shape, inputs=64, outputs=48) == 64 * 48 / 1e6


def test_several_goals_are_all_reached():
    module = nets.settled(nets.plain)
    step = Prune(macs=1.5, max_size_mb=0.09, round_to=8)
    plan = plan_pruning(module, nets.PICTURE, step=step)
    reached = {goal.goal: goal.after for goal in plan.goals}
    assert reached["macs"] <= plan.macs_before / 1.5
    assert reached["max_size_mb"] <= 0.09


def test_a_size_is_that_of_the_weights():
    module = nets.plain()
    parameters = sum(value.numel() for value in module.parameters())
    names = list(positions(module, nets.PICTURE))
    floats = Ledger(module, names, prices=[size_price(module, nets.PICTURE, int8=False)]).totals[0]
    bytes_ = Ledger(module, names, prices=[size_price(module, nets.PICTURE, int8=True, total_mb=0.07)]).totals[0]
    assert floats == pytest.approx(4 * parameters / 1e6, rel=0.01)
    assert bytes_ == 0.07


def test_a_layer_in_float_costs_what_floats_cost():
    module = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
    quick, slow = LINEAR, msgspec.structs.replace(LINEAR, in_float=True)
    assert {each.shape for each in grids(module, nets.TABLE, groups=(), step=8, floats={"2"})} == {quick, slow}
    shapes = (ShapeCosts(quick, (LayerCost(12, 16, 1.0),)), ShapeCosts(slow, (LayerCost(16, 16, 5.0),)))
    known = LatencyTable("here", "int8", "measured", "ms", shapes)
    time = latency_price(module, nets.TABLE, table=known, floats={"2"})
    size = size_price(module, nets.TABLE, int8=True, floats={"2"})
    assert [time.layer("0", (16, 12)), time.layer("2", (16, 16))] == [1.0, 5.0]
    assert [size.layer("0", (16, 12)), size.layer("2", (16, 16))] == pytest.approx([336e-6, 1088e-6])


def test_a_prune_step_without_a_goal_or_parts_is_refused():
    for wrong in ({}, {"macs": 1.5, "parts": ()}, {"speedup": 1.0}, {"max_size_mb": 0.0}):
        with pytest.raises(RecipeError, match="prune"):
            Prune(**wrong)


def test_scope_per_layer_takes_alike_from_all():
    module = nets.settled(nets.mlp)
    with torch.no_grad():
        module[0].weight[:40] *= 1e-6
    step = msgspec.structs.replace(STEP, speedup=None, macs=1.8)
    everywhere = kept(plan_pruning(module, nets.TABLE, step=msgspec.structs.replace(step, scope="per-layer")))
    anywhere = kept(plan_pruning(module, nets.TABLE, step=step))
    shares = [everywhere["0"] / 64, everywhere["3"] / 48]
    assert abs(shares[0] - shares[1]) <= 8 / 48 + 1e-9
    assert everywhere != anywhere
