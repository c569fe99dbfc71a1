"""The trainer: repeatable to the bit, exact in its steps, honest when it diverges."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from edgeexport.errors import DataError, ModelError, RecipeError
from edgeexport.records.base import to_json
from edgeexport.records.recipe import Training
from edgeexport.training import (
    Batch,
    TrainingData,
    crop_flip,
    one_cycle,
    resolve_augment,
    resolve_loss,
    time_steps,
    timing,
    train,
)
from edgeexport.training.batches import batches_of
from tests.training.nets import network, pictures, same

CROSS_ENTROPY = resolve_loss("cross_entropy")


def trained(settings, **changes):
    module = network()
    record = train(module, pictures(), loss=CROSS_ENTROPY, settings=settings, **changes)
    return module, record


@pytest.mark.parametrize(("optimizer", "threads"), [("sgd", 1), ("sgd", 2), ("adamw", 2)])
def test_two_trainings_give_the_same_bits(optimizer, threads):
    torch.set_num_threads(threads)
    settings = Training(epochs=2, batch_size=16, optimizer=optimizer, learning_rate=0.02, augment="crop-flip")
    (one, record), (other, again) = trained(settings), trained(settings)
    assert same(one, other)
    assert to_json(record) == to_json(again)


def test_another_seed_gives_other_weights():
    (one, _), (other, _) = (trained(Training(batch_size=16, seed=seed)) for seed in (0, 1))
    assert not same(one, other)


def test_the_random_state_of_the_caller_stays():
    module = network()
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    train(module, pictures(), loss=CROSS_ENTROPY, settings=Training(epochs=0.2, batch_size=16))
    assert torch.equal(torch.rand(3), wanted)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_training_learns(name):
    module, record = trained(Training(epochs=8, batch_size=20, optimizer=name, learning_rate=0.03))
    data = pictures()
    with torch.no_grad():
        guesses = module(torch.from_numpy(data.arrays[0])).argmax(1).numpy()
    assert (guesses == data.labels).mean() > 0.9
    assert record.final_loss < 0.5
    assert not module.training


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 3), (1.0, 6), (2.0, 12), (0.001, 1)])
def test_fractional_epochs_become_an_exact_number_of_steps(epochs, steps):
    settings = Training(epochs=epochs, batch_size=16)
    assert train(network(), pictures(96), loss=CROSS_ENTROPY, settings=settings).steps == steps


def test_a_budget_becomes_steps_once_and_the_record_replays_it():
    settings = Training(budget_minutes=0.003, batch_size=16)
    first, record = trained(settings)
    again, replayed = trained(msgspec.structs.replace(settings, steps=record.steps))
    assert record.from_budget
    assert not replayed.from_budget
    assert record.steps == replayed.steps >= 1
    assert same(first, again)


def test_views_come_again_as_they_were_in_another_order():
    settings = Training(batch_size=16, views=2, augment="crop-flip")
    batches = batches_of(pictures(), settings)
    first, second, third = ([batches.at(time * 13 + place) for place in range(13)] for time in range(3))
    assert [one.number for one in first] == list(range(13))
    assert len({one.inputs[0].numpy().tobytes() for one in first}) == 13
    for later in (second, third):
        assert sorted(one.number for one in later) == list(range(13))
        assert all(same_batch(one, first[one.number]) for one in later)
    orders = [[one.number for one in later] for later in (first, second, third)]
    assert orders[0] != orders[1] != orders[2]
    new = batches_of(pictures(), msgspec.structs.replace(settings, views=None))
    assert all(same_batch(one, new.at(place)) for place, one in enumerate(first))
    assert new.at(13).number is None


def same_batch(one, other):
    return torch.equal(one.inputs[0], other.inputs[0]) and torch.equal(one.labels, other.labels)


def test_a_budget_counts_views_that_come_again_at_what_they_cost(monkeypatch):
    costs = iter([0.125, 0.03125])
    monkeypatch.setattr(timing, "_middle_seconds", lambda *_: next(costs))
    settings = Training(batch_size=16, views=2, budget_minutes=(13 * 0.125 + 40.5 * 0.03125) / 60)
    assert train(network(), pictures(), loss=CROSS_ENTROPY, settings=settings).steps == 13 + 40


def test_timing_a_budget_leaves_the_module_alone():
    module = network()
    before = copy.deepcopy(module)
    time_steps(module, pictures(), loss=CROSS_ENTROPY, settings=Training())
    assert same(module, before)
    assert module.training


def test_the_record_says_what_was_done():
    _, record = trained(Training(epochs=0.5, batch_size=16, learning_rate=0.01, seed=3))
    assert (record.steps, record.epochs, record.samples, record.batch_size) == (3, 0.48, 100, 16)
    assert (record.learning_rate, record.seed, record.threads) == (0.01, 3, torch.get_num_threads())


def test_a_batch_larger_than_the_data_is_the_data():
    _, record = trained(Training(epochs=1, batch_size=1000))
    assert (record.steps, record.batch_size) == (1, 100)


def test_a_loss_that_is_not_finite_is_an_error_naming_the_step():
    data = pictures()
    data.arrays[0][37] = np.inf
    with pytest.raises(ModelError, match=r"nan at step \d of 6"):
        train(network(), data, loss=CROSS_ENTROPY, settings=Training(batch_size=16))


def test_progress_speaks_at_the_first_and_the_last_step():
    said = []
    trained(Training(epochs=1, batch_size=16), progress=lambda text, fraction: said.append((text, fraction)))
    assert said[0][0].startswith("step 1/6, loss ")
    assert said[0][0].endswith(" left")
    assert said[-1][1] == 1.0


def test_weights_decay_and_biases_and_norms_do_not():
    module = network()
    before = copy.deepcopy(module.state_dict())

    def nothing(outputs, batch):
        return outputs.sum() * 0

    settings = Training(batch_size=100, weight_decay=0.5, learning_rate=0.1, steps=3)
    train(module, pictures(), loss=nothing, settings=settings)
    after = module.state_dict()
    assert after["0.weight"].norm() < before["0.weight"].norm()
    assert all(torch.equal(after[name], before[name]) for name in ("0.bias", "1.weight", "1.bias", "6.bias"))


class Viewer(nn.Module):
    """Says `view` where only `reshape` would allow channels last."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.linear = nn.Linear(4 * 16, 2)

    def forward(self, x):
        return self.linear(self.conv(x).view(len(x), -1))


@pytest.mark.parametrize("factory", [network, Viewer])
def test_a_module_keeps_the_plain_layout_whatever_its_code_says(factory):
    module = factory()
    train(module, pictures(), loss=CROSS_ENTROPY, settings=Training(batch_size=16))
    assert all(parameter.is_contiguous() for parameter in module.parameters())


def test_the_learning_rate_rises_once_and_falls_to_near_zero():
    rates = [one_cycle(step, steps=50, peak=1.0) for step in range(50)]
    assert rates.index(max(rates)) == 10
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == 1.0
    assert rates[-1] < 0.01


def test_crop_flip_keeps_the_shape_and_shifts_with_zeros():
    batch = np.ones((64, 1, 32, 32), np.float32)
    result = crop_flip(batch, np.random.default_rng(0))
    assert result.shape == batch.shape
    assert result.dtype == np.float32
    assert set(np.unique(result)) == {0.0, 1.0}
    assert result.mean(axis=(1, 2, 3)).min() >= (28 / 32) ** 2


def test_crop_flip_mirrors_about_every_second_picture():
    batch = np.tile(np.arange(16, dtype=np.float32), (1000, 1, 16, 1))
    result = crop_flip(batch, np.random.default_rng(0))
    assert 430 < (result[:, 0, 8, 4] > result[:, 0, 8, 11]).sum() < 570


def test_crop_flip_refuses_what_is_no_picture():
    with pytest.raises(DataError, match=r"\(4, 12\)"):
        crop_flip(np.zeros((4, 12), np.float32), np.random.default_rng(0))


def test_augmentations_and_losses_of_the_user_are_found_by_reference(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def twice(batch, generator):\n    return batch * 2\n\n\n"
        "def loss(outputs, batch):\n    return outputs.sum() * 0 + 3\n"
    )
    augment = resolve_augment("mine:twice", str(tmp_path))
    loss = resolve_loss("mine:loss", str(tmp_path))
    assert augment(np.ones(2), np.random.default_rng(0)).tolist() == [2, 2]
    assert train(network(), pictures(), loss=loss, settings=Training(batch_size=50)).final_loss == 3


@pytest.mark.parametrize("settings", [{"optimizer": "lion"}, {"loss": "focal"}, {"augment": "mixup"}])
def test_an_unknown_name_is_an_error(settings):
    with pytest.raises(RecipeError, match=next(iter(settings.values()))):
        Training(**settings)


def test_an_augmentation_of_samples_is_told_if_it_is_unknown():
    with pytest.raises(RecipeError, match="mixup"):
        resolve_augment("mixup")


def test_smooth_cross_entropy_spreads_a_tenth_of_the_target_over_all_classes():
    outputs, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    targets = nn.functional.one_hot(labels, 4) * 0.9 + 0.1 / 4
    wanted = -(targets * outputs.log_softmax(1)).sum(1).mean()
    given = resolve_loss("smooth_cross_entropy")(outputs, Batch((outputs,), labels))
    assert float(given) == pytest.approx(float(wanted), rel=1e-5)


def test_a_wrong_class_is_told_with_the_name_of_the_loss():
    data = TrainingData(pictures().arrays[0], np.full(100, 0.5))
    with pytest.raises(DataError, match="the loss 'smooth_cross_entropy' needs"):
        train(network(), data, loss=resolve_loss("smooth_cross_entropy"), settings=Training())


def test_an_unknown_loss_is_an_error():
    with pytest.raises(RecipeError, match="focal"):
        resolve_loss("focal")


@pytest.mark.parametrize("name", ["cross_entropy", "mse", "bce"])
def test_a_loss_on_labels_says_when_there_are_none(name):
    data = TrainingData(pictures().arrays[0])
    with pytest.raises(DataError, match="none"):
        train(network(), data, loss=resolve_loss(name), settings=Training())


def test_data_of_unequal_lengths_is_refused():
    with pytest.raises(DataError, match=r"\[3, 2\]"):
        TrainingData(np.zeros((3, 1), np.float32), np.zeros(2, np.int64))


def test_no_data_is_refused():
    with pytest.raises(DataError, match="no training samples"):
        TrainingData(np.zeros((0, 1), np.float32))


def test_a_frozen_module_is_refused():
    with pytest.raises(ModelError, match="requires_grad"):
        train(network().requires_grad_(False), pictures(), loss=CROSS_ENTROPY, settings=Training())


def test_a_training_of_no_epochs_is_refused():
    with pytest.raises(RecipeError, match="`epochs` = 0"):
        trained(Training(epochs=0))
