"""Criteria: each finds the channels that count by its own evidence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeexport.compression.channels import find_groups
from edgeexport.compression.criteria import gradient_batches, importance, taylor_scores
from edgeexport.compression.prune import plan_pruning
from edgeexport.errors import DataError, ModelError
from edgeexport.records.recipe import Prune, Training
from edgeexport.training import TrainingData, resolve_loss
from tests.compression import nets

ROWS = np.random.default_rng(0).standard_normal((64, 12)).astype(np.float32)


def hidden(module):
    return find_groups(module, nets.TABLE)[0]


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def scores(module, criterion, evidence=None):
    step = Prune(macs=1.5, criterion=criterion)
    return importance(module, hidden(module), step=step, order=0, evidence=evidence or {})


def taylor(module, labels=None):
    settings = Training(batch_size=16)
    batches = gradient_batches(TrainingData(ROWS, labels), settings, count=4)
    return taylor_scores(module, batches, loss=resolve_loss("cross_entropy", "."))


def test_group_norm_sees_what_reads_a_channel_and_l2_does_not():
    module = two_layers()
    with torch.no_grad():
        module[2].weight[:, 5] = 0
    assert scores(module, "group_norm").argmin() == 5
    assert scores(module, "l2").argmin() != 5


@pytest.mark.parametrize("labels", [None, np.arange(64) % 3])
def test_taylor_finds_a_channel_that_changes_nothing(labels):
    module = two_layers()
    with torch.no_grad():
        module[2].weight[:, 5] = 0
        module[0].weight[5] *= 100
    found = scores(module, "taylor", taylor(module, labels))
    assert found.argmin() == 5
    assert scores(module, "l2").argmax() == 5


def test_taylor_is_the_squared_change_of_the_loss_to_first_order():
    module = two_layers()
    rows, labels = torch.from_numpy(ROWS[:16]), torch.from_numpy(np.arange(16) % 3)
    (batch,) = gradient_batches(TrainingData(ROWS[:16], labels.numpy()), Training(batch_size=16), count=1)
    found = taylor_scores(module, [batch], loss=resolve_loss("cross_entropy", "."))["0"]
    losses = []
    for factor in (1.0, 1.0 - 1e-3):
        with torch.no_grad():
            hidden_rows = nn.functional.linear(
                rows, module[0].weight * torch.tensor([1.0] * 7 + [factor] + [1.0] * 8)[:, None], module[0].bias
            )
            losses.append(nn.functional.cross_entropy(module[2](torch.relu(hidden_rows)).double(), labels).item())
    assert found[7] == pytest.approx(((losses[0] - losses[1]) / 1e-3) ** 2, rel=0.05)


def test_without_classes_taylor_asks_for_the_size_of_the_outputs():
    module = two_layers()
    (batch,) = gradient_batches(TrainingData(ROWS[:16]), Training(batch_size=16), count=1)
    scores = taylor_scores(module, [batch], loss=None, classes=False)["0"]
    weight = module[0].weight
    (gradient,) = torch.autograd.grad(module(*batch.inputs).square().mean(), [weight])
    assert scores == pytest.approx((gradient * weight).sum(1).square().detach().numpy(), rel=1e-4)


def test_taking_gradients_leaves_the_network_as_it_was():
    module = two_layers().train()
    module[0].weight.requires_grad_(False)
    taylor(module)
    assert module.training
    assert [value.requires_grad for value in module.parameters()] == [False, True, True, True]
    assert all(value.grad is None for value in module.parameters())


def test_taylor_without_samples_is_refused():
    with pytest.raises(ModelError, match="taylor"):
        taylor_scores(two_layers(), [], loss=None)


def test_a_norm_without_factors_is_no_norm_to_judge_by():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, affine=False), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    example = {"image": np.zeros((1, 3, 8, 8), np.float32)}
    chosen = [plan_pruning(module, example, step=Prune(macs=1.5, criterion=name)) for name in ("bn_scale", "l2")]
    assert chosen[0].groups == chosen[1].groups
    assert plan_pruning(module, example, step=Prune(macs=1.5, criterion="group_norm")).groups


def removed(module, criterion, *, seed=0):
    step = Prune(macs=1.5, criterion=criterion, round_to=8, training=Training(seed=seed))
    return {group.layer: group.removed for group in plan_pruning(module, nets.TABLE, step=step).groups}


def test_the_scale_of_the_batch_norm_says_which_channels_go():
    module = nets.settled(nets.mlp)
    chosen = np.random.default_rng(3).permutation(64)[:8]
    with torch.no_grad():
        module[1].weight[chosen] *= torch.tensor([-1e-3, 1e-3] * 4)
        module[0].weight[chosen] *= 100.0
    step = Prune(macs=1.5, criterion="bn_scale")
    found = importance(module, hidden(module), step=step, order=0)
    assert set(np.argsort(found)[:8]) == set(chosen)
    assert list(np.argsort(found)) == list(np.argsort(module[1].weight.detach().abs().numpy()))
    assert set(chosen.tolist()) <= set(removed(module, "bn_scale")["0"])
    assert not set(chosen.tolist()) & set(removed(module, "l1").get("0", ()))


def test_chance_takes_other_channels_than_weights_do_and_others_with_another_seed():
    module = nets.settled(nets.mlp)
    first, again, other = (removed(module, "random", seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["0"] != other["0"]
    assert first["0"] != removed(module, "l1")["0"]
    orders = [importance(module, hidden(module), step=Prune(macs=1.5, criterion="random"), order=n) for n in (0, 1)]
    assert list(np.argsort(orders[0])) != list(np.argsort(orders[1]))


def test_labels_that_are_no_classes_are_refused_before_gradients_are_taken():
    data = TrainingData(np.zeros((4, 3), np.float32), np.array([0, 1, 9, 0]))
    batches = gradient_batches(data, Training(), count=1)
    with pytest.raises(DataError, match="training sample 2 has class 9"):
        taylor_scores(nn.Linear(3, 2), batches, loss=resolve_loss("cross_entropy"))


def test_taylor_leaves_parameters_that_are_whole_numbers_alone():
    module = two_layers()
    module.table = nn.Parameter(torch.arange(3), requires_grad=False)
    assert taylor(module)["0"].shape == (16,)
    assert not module.table.requires_grad
