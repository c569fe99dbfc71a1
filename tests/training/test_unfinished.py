"""A training that is killed goes on where it was, and ends in the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edgeexport.records.base import to_json
from edgeexport.records.recipe import Training
from edgeexport.training import resolve_loss, train, unfinished
from tests.training.nets import network, pictures, same

pytestmark = pytest.mark.faults
CROSS_ENTROPY = resolve_loss("cross_entropy")
KILLED_AT = 7
EVERYTHING = {
    "augment": "crop-flip",
    "ema": 0.9,
    "keep": "best",
    "clip_norm": 1.0,
    "batch_size": 16,
    "steps": 15,
    "views": 1,
}
KILLED = f"""
import os, signal, sys
import torch
from pathlib import Path
from edgeexport.records.base import from_json
from edgeexport.records.recipe import Training
from edgeexport.training import crop_flip, resolve_loss, train, unfinished
from tests.training.nets import network, pictures

torch.set_num_threads(1)
unfinished.SAVE_SECONDS = unfinished.SAVE_RATIO = 0.0
calls = []


def killing(batch, generator):
    calls.append(1)
    if len(calls) == {KILLED_AT}:
        os.kill(os.getpid(), signal.SIGKILL)
    return crop_flip(batch, generator)


settings = from_json(sys.argv[1].encode(), Training, origin="argument")
loss, state = resolve_loss("cross_entropy"), Path(sys.argv[2])
train(network(), pictures(augment=killing), loss=loss, settings=settings, state=state)
"""


@pytest.fixture
def saving_always(monkeypatch):
    monkeypatch.setattr(unfinished, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(unfinished, "SAVE_RATIO", 0.0)


def killed(settings: Training, state: Path) -> None:
    """Start a training in a process of its own, which ends by SIGKILL in the middle of a step."""
    command = [sys.executable, "-c", KILLED, to_json(settings).decode(), str(state)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (state / unfinished.NAME).is_file()


def counted(calls):
    from edgeexport.training import crop_flip

    def augment(batch, generator):
        calls.append(1)
        return crop_flip(batch, generator)

    return pictures(augment=augment)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adamw-relative"])
def test_a_killed_training_ends_in_the_same_bits(optimizer, tmp_path):
    settings = Training(optimizer=optimizer, learning_rate=0.02, **EVERYTHING)
    killed(settings, tmp_path)
    calls: list[int] = []
    resumed, whole = network(), network()
    again = train(resumed, counted(calls), loss=CROSS_ENTROPY, settings=settings, state=tmp_path)
    record = train(whole, counted([]), loss=CROSS_ENTROPY, settings=settings)
    assert len(calls) == 15 - (KILLED_AT - 1)
    assert same(resumed, whole)
    assert to_json(again) == to_json(record)
    # Killed after its end, while its network is exported, it is not trained again.
    calls.clear()
    over = network()
    assert to_json(train(over, counted(calls), loss=CROSS_ENTROPY, settings=settings, state=tmp_path)) == to_json(
        record
    )
    assert same(over, whole)
    assert not calls


@pytest.mark.usefixtures("saving_always")
def test_the_steps_of_a_budget_are_worked_out_once(tmp_path):
    settings = Training(batch_size=16, budget_minutes=0.01)

    def failing(batch, generator):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return batch

    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        train(network(), pictures(augment=failing), loss=CROSS_ENTROPY, settings=settings, state=tmp_path)
    said: list[str] = []
    calls.clear()
    data = pictures(augment=lambda batch, _: batch)
    train(
        network(), data, loss=CROSS_ENTROPY, settings=settings, state=tmp_path,
        progress=lambda text, _=None: said.append(text),
    )  # fmt: skip
    assert said
    assert not any("timing" in text for text in said)


def stopped(settings, state, *, at=5):
    """A training that its user stopped before step `at`, and what it had learnt by then was saved."""

    def stopping(batch, generator):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return batch

    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        train(network(), pictures(augment=stopping), loss=CROSS_ENTROPY, settings=settings, state=state)


SETTINGS = Training(batch_size=16, steps=8)


@pytest.mark.usefixtures("saving_always")
@pytest.mark.parametrize("changed", ["settings", "samples", "weights", "file"])
def test_a_state_of_another_training_is_ignored(changed, tmp_path):
    stopped(SETTINGS, tmp_path)
    settings = msgspec.structs.replace(SETTINGS, learning_rate=0.04) if changed == "settings" else SETTINGS
    module = network()
    if changed == "weights":
        module[6].bias.data += 1
    if changed == "file":
        content = (tmp_path / unfinished.NAME).read_bytes()
        (tmp_path / unfinished.NAME).write_bytes(content[:-100])
    calls: list[int] = []
    data = counted(calls)
    if changed == "samples":
        data.arrays[0][3] += 1
    train(module, data, loss=CROSS_ENTROPY, settings=settings, state=tmp_path)
    assert len(calls) == 8


@pytest.mark.usefixtures("saving_always")
def test_what_fits_is_gone_on_with(tmp_path):
    stopped(SETTINGS, tmp_path)
    calls: list[int] = []
    train(network(), counted(calls), loss=CROSS_ENTROPY, settings=SETTINGS, state=tmp_path)
    assert len(calls) == 4


@pytest.mark.usefixtures("saving_always")
def test_states_of_users_optimizers_survive(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\ndef adagrad(groups, learning_rate):\n    return torch.optim.Adagrad(groups, learning_rate)\n"
    )
    settings = Training(batch_size=16, steps=8, optimizer="mine:adagrad")

    def data(at):
        def stopping(batch, generator):
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return batch

        calls: list[int] = []
        return pictures(augment=stopping, folder=str(tmp_path))

    with pytest.raises(KeyboardInterrupt):
        train(network(), data(5), loss=CROSS_ENTROPY, settings=settings, state=tmp_path)
    resumed, whole = network(), network()
    train(resumed, data(-1), loss=CROSS_ENTROPY, settings=settings, state=tmp_path)
    train(whole, data(-1), loss=CROSS_ENTROPY, settings=settings)
    assert same(resumed, whole)
