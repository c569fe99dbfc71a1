"""Which weights a training ends with: the best ones on samples held out, a moving average, or simply the last."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeexport.errors import DataError, RecipeError
from edgeexport.records.recipe import Training
from edgeexport.training import Batch, TrainingData, distillation, resolve_loss, time_steps, timing, train
from edgeexport.training.distillation import Taught, distillation_loss
from edgeexport.training.keeping import LOOKS, Average, hold_out, is_look
from tests.training.nets import network, pictures, same

CROSS_ENTROPY = resolve_loss("cross_entropy")
BEST = Training(keep="best", batch_size=16, epochs=4, held_out=0.3, precision="float32")


def loss_on(module, data):
    with torch.no_grad():
        outputs = module(torch.from_numpy(data.arrays[0]))
        return float(torch.nn.functional.cross_entropy(outputs, torch.from_numpy(data.labels)))


def test_the_weights_kept_are_those_whose_loss_the_record_tells():
    module = network()
    record = train(module, pictures(), loss=CROSS_ENTROPY, settings=BEST)
    _, held_out = hold_out(pictures(), BEST)
    assert record.held_out == len(held_out)
    assert loss_on(module, held_out) == pytest.approx(record.best_loss, abs=1e-6)
    assert 1 <= record.best_step <= record.steps


def test_what_is_held_out_is_not_trained_on():
    seen = []

    def watching(batch, generator):
        seen.append(batch.copy())
        return batch

    data = pictures()
    train(network(), pictures(augment=watching), loss=CROSS_ENTROPY, settings=BEST)
    _, held_out = hold_out(data, BEST)
    fed = {row.tobytes() for batch in seen for row in batch}
    assert len(fed) == len(data) - len(held_out)
    assert not fed & {row.tobytes() for row in held_out.arrays[0]}


def test_copies_of_a_sample_stay_on_one_side():
    rows = np.repeat(np.arange(40, dtype=np.float32), 5)[:, None]
    kept, held_out = hold_out(TrainingData(rows), BEST)
    assert not set(kept.arrays[0].flat) & set(held_out.arrays[0].flat)
    assert len(kept) + len(held_out) == 200


def test_another_seed_holds_out_other_samples():
    one, other = (hold_out(pictures(), Training(keep="best", seed=seed))[1] for seed in (0, 1))
    assert {row.tobytes() for row in one.arrays[0]} != {row.tobytes() for row in other.arrays[0]}


def test_samples_that_are_all_alike_cannot_be_held_out():
    with pytest.raises(DataError, match="too few"):
        hold_out(TrainingData(np.zeros((5, 2), np.float32)), BEST)


def test_patience_ends_a_training_that_gains_nothing():
    looks: list[int] = []

    def worse(outputs, batch):
        if not outputs.requires_grad:
            looks.append(1)
        return outputs.sum() * 0 + len(looks)

    settings = Training(keep="best", patience=2, batch_size=16, steps=100)
    module = network()
    record = train(module, pictures(), loss=worse, settings=settings)
    assert record.stopped_at == 100 * 3 // LOOKS
    assert record.best_step == 100 // LOOKS


def test_patience_without_samples_to_look_at_is_refused():
    with pytest.raises(RecipeError, match="patience"):
        Training(patience=3)


def test_there_are_twenty_looks_the_last_one_at_the_end():
    looks = [step for step in range(1, 251) if is_look(step, 250)]
    assert len(looks) == LOOKS
    assert looks[-1] == 250


def test_an_average_lies_between_what_it_has_seen():
    module = network()
    average = Average(module, 0.9)
    before = module[6].weight.detach().clone()
    module[6].weight.data += 1
    average.take(100)
    assert torch.allclose(average.tensors["6.weight"], before + 0.1)


def test_an_average_is_what_a_training_with_one_ends_in():
    with_one, without = network(), network()
    settings = {"batch_size": 16, "epochs": 2, "learning_rate": 0.02}
    train(with_one, pictures(), loss=CROSS_ENTROPY, settings=Training(ema=0.99, **settings))
    train(without, pictures(), loss=CROSS_ENTROPY, settings=Training(**settings))
    assert not same(with_one, without)
    assert loss_on(with_one, pictures()) < 0.69


def test_the_time_of_looks_comes_out_of_the_budget(monkeypatch):
    """20 looks of 2 s each: of a minute, 20 s are left for steps of a tenth of a second."""
    monkeypatch.setattr(timing, "_middle_seconds", lambda *_: 0.1)
    monkeypatch.setattr(timing, "_look_seconds", lambda *_: 2.0)
    steps = {
        keep: time_steps(
            network(), pictures(), loss=CROSS_ENTROPY, settings=Training(batch_size=10, keep=keep)
        ).steps_in(60)
        for keep in ("last", "best")
    }
    assert steps == {"last": 600, "best": 200}


def test_answers_that_no_memory_holds_are_paid_for_again(monkeypatch):
    """Of 10 batches that come again for a tenth of the time, half are remembered."""
    seconds = iter([1.0, 0.1])
    monkeypatch.setattr(timing, "_middle_seconds", lambda *_: next(seconds))
    monkeypatch.setattr(Taught, "remembered", lambda *_: 0.5)
    loss = distillation_loss(network(), temperature=4.0, soft_share=0.9, hard=None)
    times = time_steps(network(), pictures(), loss=loss, settings=Training(batch_size=10, views=1))
    assert times.steps_in(60) == 10 + int(50 / 0.55)


def test_a_teacher_tells_how_much_of_an_epoch_it_remembers(monkeypatch):
    monkeypatch.setattr(distillation, "MOST_REMEMBERED", 3 * 4 * 2 * 4)  # three answers of 4 samples, 2 floats each
    loss = distillation_loss(network(), temperature=4.0, soft_share=0.9, hard=None)
    assert loss.remembered(6) == 0.0
    with torch.no_grad():
        loss(torch.zeros(4, 2), Batch((torch.zeros(4, 3, 16, 16),), None, number=0))
    assert (loss.remembered(6), loss.remembered(2)) == (0.5, 1.0)
