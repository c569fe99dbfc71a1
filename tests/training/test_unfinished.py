"""A training that is killed goes on where it was, and ends in the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edgeexport.errors import RequestError
from edgeexport.records.base import to_json
from edgeexport.records.recipe import Training
from edgeexport.training import resolve_loss, train, unfinished
from edgeexport.training.timing import TIMING_STEPS
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
        if len(calls) == TIMING_STEPS + 2:
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

    with pytest.raises(KeyboardInterrupt):
        train(network(), stopping(at, state)[0], loss=CROSS_ENTROPY, settings=settings, state=state)


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


RICH = """
import numpy as np
import torch


def adagrad(groups, learning_rate):
    return torch.optim.Adagrad(groups, learning_rate)


class Rich(torch.optim.Optimizer):
    def __init__(self, groups, learning_rate):
        own = {"betas": (0.9, 0.5), "scale": torch.tensor(1.5), "floor": np.float32(0.1), "names": {("a", 1): None}}
        super().__init__(groups, {"lr": learning_rate, **own})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            first, second = {group["betas"]: group["betas"]}[0.9, 0.5]  # a list would be no key
            assert group["names"] == {("a", 1): None} and type(group["floor"]) is np.float32
            for parameter in group["params"]:
                state = self.state[parameter]
                count = state["count"] = state.get("count", np.int16(0)) + np.int16(1)
                assert type(count) is np.int16
                kept = state.setdefault("kept", torch.zeros_like(parameter)).mul_(first).add_(parameter.grad)
                rate = group["lr"] * (second + float(group["floor"])) / int(count)
                parameter.sub_(kept * group["scale"] * rate)


def rich(groups, learning_rate):
    return Rich(groups, learning_rate)


def careless(groups, learning_rate):
    made = torch.optim.SGD(groups, learning_rate)
    made.param_groups[0]["seen"] = {1, 2}
    return made


class Later(torch.optim.SGD):
    def step(self):
        super().step()
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["when"] = torch.eye(2).to_sparse()


def later(groups, learning_rate):
    return Later(groups, learning_rate)


class Forgetful(torch.optim.SGD):
    def load_state_dict(self, state):
        raise KeyError("mine")


def forgetful(groups, learning_rate):
    return Forgetful(groups, learning_rate)
"""


@pytest.fixture
def own(tmp_path):
    """A folder with optimizers of a user's own."""
    (tmp_path / "mine.py").write_text(RICH)
    return tmp_path


def stopping(at, folder):
    """Samples of which batch `at` ends the training; with them, the list of batches so far."""

    def augment(batch, generator):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return batch

    calls: list[int] = []
    return pictures(augment=augment, folder=str(folder)), calls


@pytest.mark.usefixtures("saving_always")
@pytest.mark.parametrize("optimizer", ["adagrad", "rich"])
def test_states_of_users_optimizers_survive(optimizer, own):
    settings = Training(batch_size=16, steps=8, optimizer=f"mine:{optimizer}", learning_rate=0.01)
    with pytest.raises(KeyboardInterrupt):
        train(network(), stopping(5, own)[0], loss=CROSS_ENTROPY, settings=settings, state=own)
    resumed, whole = network(), network()
    data, calls = stopping(-1, own)
    train(resumed, data, loss=CROSS_ENTROPY, settings=settings, state=own)
    train(whole, stopping(-1, own)[0], loss=CROSS_ENTROPY, settings=settings)
    assert len(calls) == 4
    assert same(resumed, whole)


@pytest.mark.parametrize(
    ("optimizer", "batches", "complaint"),
    [
        ("careless", 0, r"'mine:careless': state_dict\(\)\['param_groups'\]\[0\]\['seen'\] is of type set, which"),
        ("later", 1, r"'mine:later': state_dict\(\)\['state'\]\[0\]\['when'\] is of type Tensor \(.*torch.sparse_coo"),
    ],
    ids=["groups", "state"],
)
@pytest.mark.parametrize("budget", [{"steps": 8}, {"budget_minutes": 0.001}], ids=["steps", "minutes"])
def test_an_optimizer_that_could_not_be_saved_is_refused_as_soon_as_that_is_seen(
    optimizer, batches, complaint, budget, own, monkeypatch
):
    monkeypatch.setattr("edgeexport.training.timing.TIMING_STEPS", 2)
    settings = Training(batch_size=16, optimizer=f"mine:{optimizer}", **budget)
    data, calls = stopping(-1, own)
    with pytest.raises(RequestError, match=complaint):
        train(network(), data, loss=CROSS_ENTROPY, settings=settings, state=own)
    assert len(calls) == batches + 2 * bool(batches and "budget_minutes" in budget)
    # Where nothing is to be kept, nothing is asked of it.
    train(network(), stopping(-1, own)[0], loss=CROSS_ENTROPY, settings=settings)


@pytest.mark.usefixtures("saving_always")
def test_an_optimizer_that_does_not_take_its_state_back_is_told_as_the_users(own):
    settings = Training(batch_size=16, steps=8, optimizer="mine:forgetful")
    with pytest.raises(KeyboardInterrupt):
        train(network(), stopping(5, own)[0], loss=CROSS_ENTROPY, settings=settings, state=own)
    with pytest.raises(RequestError, match=r"'mine:forgetful', given back its state: .*mine.py:\d+: KeyError: 'mine'"):
        train(network(), stopping(-1, own)[0], loss=CROSS_ENTROPY, settings=settings, state=own)
