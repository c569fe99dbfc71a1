"""Pruning: equal to the zero-masked network, aligned, repeatable, and silent about nothing it leaves alone."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

import edgeexport
from edgeexport.compression.channels import Removal, disproof
from edgeexport.compression.macs import count_macs, tensors
from edgeexport.compression.prune import Means, apply_pruning, plan_pruning, retrain
from edgeexport.compression.rounds import round_asked
from edgeexport.errors import ModelError, RecipeError
from edgeexport.records.base import from_json, to_json
from edgeexport.records.pruning import PlannedGoal, PruningPlan
from edgeexport.records.recipe import Prune, Training
from edgeexport.training import TrainingData
from tests.compression import nets


def run(module, example):
    with torch.no_grad():
        return module(*tensors(example))


@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        ("option-A", "l2"),
        ("mobile", "bn_scale"),
        ("plain", "l1"),
        ("mlp", "l2"),
        ("mlp", "bn_scale"),
        ("mlp", "random"),
    ],
)
def test_a_pruned_network_equals_the_zero_masked_one(name, criterion):
    factory, example, silence_at = nets.PRUNABLE[name]
    module = nets.settled(factory)
    plan = plan_pruning(module, example, step=Prune(macs=1.7, criterion=criterion))
    pruned = apply_pruning(copy.deepcopy(module), plan, example=example)
    wanted = nets.silenced(module, plan, example, silence_at)
    assert plan.groups
    assert torch.allclose(run(pruned, example), wanted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(run(module, example), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["option-A", "plain", "mlp"])
def test_multiply_accumulates_fall_as_asked_and_as_the_plan_says(name):
    factory, example, _ = nets.PRUNABLE[name]
    module = nets.settled(factory)
    plan = plan_pruning(module, example, step=Prune(macs=1.7))
    assert plan.macs_before == count_macs(module, example)
    assert (
        count_macs(apply_pruning(module, plan, example=example), example) == plan.macs_after <= plan.macs_before / 1.7
    )


@pytest.mark.parametrize("round_to", [8, 16])
def test_kept_widths_are_multiples_of_round_to_and_never_below_it(round_to):
    plan = plan_pruning(nets.settled(nets.OptionA), nets.PICTURE, step=Prune(macs=1.5, round_to=round_to))
    kept = [group.width - len(group.removed) for group in plan.groups]
    assert plan.round_to == round_to
    assert all(width % round_to == 0 and width >= round_to for width in kept)


def test_a_layer_narrower_than_round_to_goes_by_eight():
    linear = torch.nn.Linear
    module = torch.nn.Sequential(linear(12, 24), torch.nn.ReLU(), linear(24, 64), torch.nn.ReLU(), linear(64, 2))
    plan = plan_pruning(module, nets.TABLE, step=Prune(macs=3.2, round_to=32))
    kept = {group.layer: group.width - len(group.removed) for group in plan.groups}
    assert kept["0"] in (8, 16)
    assert kept["2"] == 32


def test_layers_as_wide_as_round_to_go_by_eight_only_when_the_goal_asks_for_it():
    module = nets.settled(nets.plain)
    near = plan_pruning(module, nets.PICTURE, step=Prune(macs=1.3, round_to=32))
    far = plan_pruning(module, nets.PICTURE, step=Prune(macs=2.6, round_to=32))
    assert "0" not in {group.layer for group in near.groups}
    assert "0" in {group.layer for group in far.groups}


def test_multiply_accumulates_are_counted_by_hand():
    by_hand = 32 * 3 * 9 * 64 + 48 * 32 * 9 * 16 + 48 * 16 * 64 + 64 * 10
    assert count_macs(nets.plain(), nets.PICTURE) == by_hand


def test_a_plan_stored_and_applied_to_a_fresh_network_gives_the_identical_one():
    module = nets.settled(nets.mobile)
    plan = plan_pruning(module, nets.PICTURE, step=Prune(macs=1.7))
    stored = from_json(to_json(plan), PruningPlan, origin="test")
    one, other = (apply_pruning(nets.settled(nets.mobile), each, example=nets.PICTURE) for each in (plan, stored))
    assert stored == plan
    assert list(one.state_dict()) == list(other.state_dict())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def equals_the_silenced(module, plan):
    pruned = apply_pruning(copy.deepcopy(module), plan, example=nets.PICTURE)
    return torch.allclose(run(pruned, nets.PICTURE), nets.silenced(module, plan, nets.PICTURE, {}), atol=1e-5)


def test_planning_changes_nothing_and_repeats():
    module = nets.settled(nets.mlp)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    plans = [plan_pruning(module, nets.TABLE, step=Prune(macs=1.5, criterion="random")) for _ in range(2)]
    assert plans[0] == plans[1]
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_channels_of_least_importance_go_first():
    module = nets.settled(nets.mlp)
    with torch.no_grad():
        module[0].weight[::2] *= 1e-3
    plan = plan_pruning(module, nets.TABLE, step=Prune(macs=1.3, criterion="l1"))
    removed = next(group.removed for group in plan.groups if group.layer == "0")
    assert all(channel % 2 == 0 for channel in removed)


def test_a_stream_with_option_a_shortcuts_is_named_and_left_alone():
    plan = plan_pruning(nets.settled(nets.OptionA), nets.PICTURE, step=Prune(macs=1.5))
    assert "F.pad" in plan.refused["conv1"]
    assert {group.layer for group in plan.groups} <= {f"blocks.{block}.conv1" for block in range(3)}


def test_a_group_behind_a_channel_shuffle_is_refused_by_name_and_the_rest_is_pruned():
    module = nets.settled(nets.Shuffle)
    plan = plan_pruning(module, nets.PICTURE, step=Prune(macs=1.2))
    assert "reshape" in plan.refused["first"]
    assert equals_the_silenced(module, plan)


def test_slices_that_weigh_each_other_are_refused_by_name_and_the_rest_is_pruned():
    module = nets.settled(nets.Gated)
    plan = plan_pruning(module, nets.PICTURE, step=Prune(macs=1.2))
    refused = {name for name, reason in plan.refused.items() if "mixed with each other" in reason}
    assert refused == {"split", "contexts.0", "contexts.1", "mixed"}
    assert {group.layer for group in plan.groups} == {"first", "wide"}
    assert equals_the_silenced(module, plan)


def test_constants_of_a_front_end_keep_no_layer_from_being_pruned():
    module = nets.settled(nets.LogFront)
    plan = plan_pruning(module, nets.PICTURE, step=Prune(macs=1.5))
    assert set(plan.refused) == {"last"}
    assert equals_the_silenced(module, plan)


def test_code_whose_channels_cannot_be_followed_is_refused_with_the_way_out(monkeypatch):
    import torch_pruning

    def lost(*_, **__):
        raise TypeError("unsupported operand")

    monkeypatch.setattr(torch_pruning.DependencyGraph, "build_dependency", lost)
    with pytest.raises(ModelError, match=r"cannot tell which channels.*unsupported operand") as caught:
        plan_pruning(nets.settled(nets.mlp), nets.TABLE, step=Prune(macs=1.5))
    assert '"width"' in str(caught.value.next_step)


def test_layer_norm_and_grouped_convolutions_are_refused_by_name():
    plan = plan_pruning(nets.settled(nets.Grouped), nets.TABLE, step=Prune(macs=1.1))
    assert "differs from the zero-masked" in plan.refused["first"]
    assert "grouped convolution" in plan.refused["second"]
    assert [group.layer for group in plan.groups] == ["third"]


def test_the_output_layer_stays():
    plan = plan_pruning(nets.settled(nets.mlp), nets.TABLE, step=Prune(macs=1.5))
    assert "output" in plan.refused["5"]


def test_locked_layers_keep_their_channels():
    plan = plan_pruning(nets.settled(nets.mlp), nets.TABLE, step=Prune(macs=1.2, locked=("0",)))
    assert [group.layer for group in plan.groups] == ["3"]
    assert "locked" in plan.refused["0"]


def test_an_unknown_locked_layer_is_an_error_with_the_nearest_name():
    with pytest.raises(RecipeError, match=r"bloks\.1\.conv1") as caught:
        plan_pruning(nets.settled(nets.OptionA), nets.PICTURE, step=Prune(macs=2.0, locked=("bloks.1.conv1",)))
    assert "blocks.1.conv1" in caught.value.next_step


def test_a_goal_out_of_reach_says_how_far_it_goes():
    with pytest.raises(ModelError, match="cannot reach 100") as caught:
        plan_pruning(nets.settled(nets.OptionA), nets.PICTURE, step=Prune(macs=100.0))
    assert "conv1" in caught.value.next_step


def test_a_goal_of_nothing_left_is_refused_without_dividing_by_it():
    with pytest.raises(ModelError, match=r"cannot reach .* \(0 of "):
        plan_pruning(nets.settled(nets.mlp), nets.TABLE, step=Prune(macs=1e12))


def test_a_network_whose_channels_must_all_stay_is_told_to_leave_pruning_out():
    step = Prune(macs=1.5, locked=tuple(name for name, _ in nets.mlp().named_modules() if name))
    with pytest.raises(ModelError, match=r"cannot reach 1\.50") as caught:
        plan_pruning(nets.settled(nets.mlp), nets.TABLE, step=step)
    assert "leave the prune step out" in caught.value.next_step


def test_a_plan_for_another_network_is_refused():
    plan = plan_pruning(nets.settled(nets.mlp), nets.TABLE, step=Prune(macs=1.5))
    with pytest.raises(ModelError, match="does not fit"):
        apply_pruning(nets.settled(nets.plain), plan, example=nets.PICTURE)
    pruned = apply_pruning(nets.settled(nets.mlp), plan, example=nets.TABLE)
    with pytest.raises(ModelError, match="does not fit"):
        apply_pruning(pruned, plan, example=nets.TABLE)


def test_a_plan_whose_cost_is_wrong_is_refused():
    plan = plan_pruning(nets.settled(nets.mlp), nets.TABLE, step=Prune(macs=1.5))
    with pytest.raises(ModelError, match="multiply-accumulates"):
        apply_pruning(nets.settled(nets.mlp), msgspec.structs.replace(plan, macs_after=1), example=nets.TABLE)


def test_the_proof_goes_red_on_a_removal_that_changes_the_result():
    module = nets.settled(nets.Shuffle)
    assert disproof(module, nets.PICTURE, removals=[Removal("first", (0, 1, 5))])
    assert not disproof(module, nets.PICTURE, removals=[Removal("second", (0, 1, 5))])


def test_rounds_go_down_in_equal_ratios_of_what_is_left():
    step = Prune(macs=4.0, max_size_mb=1.0, rounds=2)
    assert round_asked({"macs": 1000, "max_size_mb": 9.0}, step, done=[]) == {"macs": 500, "max_size_mb": 3.0}
    further = PruningPlan("l2", 16, 1000, 400, (), goals=(PlannedGoal("macs", "MACs", "predicted", 500, 1000, 400),))
    assert round_asked({"macs": 400, "max_size_mb": 2.0}, step, done=[further]) == {"macs": 250, "max_size_mb": 1.0}


def test_two_rounds_prune_as_far_as_asked():
    module, step = nets.settled(nets.OptionA), Prune(macs=1.9, rounds=2, round_to=8)
    first, done = count_macs(module, nets.PICTURE), []
    for _ in range(2):
        asked = round_asked({"macs": count_macs(module, nets.PICTURE)}, step, done=done)
        done.append(plan_pruning(module, nets.PICTURE, step=step, means=Means(asked=asked)))
        apply_pruning(module, done[-1], example=nets.PICTURE)
    assert done[0].macs_after > first / 1.9 >= done[1].macs_after == count_macs(module, nets.PICTURE)


@pytest.mark.parametrize("distil", [True, False])
def test_retraining_brings_a_pruned_network_back_towards_its_source(distil):
    source = nets.settled(nets.mlp)
    rows = np.random.default_rng(1).standard_normal((256, 12)).astype(np.float32)
    with torch.no_grad():
        labels = source(torch.from_numpy(rows)).numpy()
    plan = plan_pruning(source, nets.TABLE, step=Prune(macs=2.0))
    pruned = apply_pruning(copy.deepcopy(source), plan, example=nets.TABLE)
    before = np.square(pruned(torch.from_numpy(rows)).detach().numpy() - labels).mean()
    training = Training(epochs=20, batch_size=64, learning_rate=0.02, loss="mse")
    retrain(pruned, source, data=TrainingData(rows, labels), step=Prune(macs=2.0, distil=distil, training=training))
    assert np.square(pruned(torch.from_numpy(rows)).detach().numpy() - labels).mean() < before / 2


def test_layers_inside_a_locked_block_keep_their_channels():
    plan = plan_pruning(nets.settled(nets.OptionA), nets.PICTURE, step=Prune(macs=1.1, locked=("blocks.0",)))
    assert plan.groups
    assert not [group.layer for group in plan.groups if group.layer.startswith("blocks.0.")]
    assert plan.refused["blocks.0.conv1"] == "`blocks.0.conv1` is locked"


def test_the_verb_leaves_a_network_in_training_as_it_was():
    module = nets.settled(nets.OptionA).train()
    before = copy.deepcopy(module.state_dict())
    pruned, _ = edgeexport.prune(module, {"image": (1, 3, 16, 16)}, step=Prune(macs=1.3))
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(pruned.bn1.running_mean, before["bn1.running_mean"])


def test_taylor_without_gradients_is_refused():
    with pytest.raises(ModelError, match="gradients on samples"):
        edgeexport.prune(
            nets.settled(nets.OptionA), {"image": (1, 3, 16, 16)}, step=Prune(criterion="taylor", macs=1.3)
        )


class Upsampling(nn.Module):
    """A learned upsampling, channel by channel, and two layers that hold one weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.up = nn.ConvTranspose2d(32, 32, 4, 2, 1, groups=32)
        self.free, self.after = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.one, self.same = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)
        self.same.weight = self.one.weight
        self.last = nn.Conv2d(32, 4, 1)

    def forward(self, image):
        return self.last(self.same(self.one(self.after(torch.relu(self.free(self.up(self.first(image))))))))


@pytest.mark.parametrize("criterion", ["l2", "group_norm", "random"])
def test_a_transposed_depthwise_layer_and_tied_weights_are_named_and_the_rest_is_pruned(criterion):
    torch.manual_seed(0)
    module = Upsampling().eval()
    plan = plan_pruning(module, nets.PICTURE, step=Prune(macs=1.1, criterion=criterion))
    apply_pruning(module, plan, example=nets.PICTURE)
    assert "grouped transposed convolution" in plan.refused["first"]
    assert "shares its weights" in plan.refused["after"]
    assert [group.layer for group in plan.groups] == ["free"]
    assert module.same.weight is module.one.weight
