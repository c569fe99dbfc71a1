"""Two processes of `torchrun` train what one trains, and take a recipe down the road together."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeexport import ranks
from edgeexport.errors import RecipeError
from edgeexport.records.recipe import Training
from edgeexport.training import resolve_loss, train
from edgeexport.training.batches import batches_of
from tests.readme import commands
from tests.training.nets import network, pictures

ROOT = Path(__file__).parents[2]
DOCUMENTED = next(
    command
    for command in commands((ROOT / "edgeexport" / "compression" / "README.md").read_text(encoding="utf-8"))
    if command.startswith("torchrun ")
)
_, *OPTIONS = shlex.split(DOCUMENTED.partition(" -m ")[0])
ROAD = ("-m", *shlex.split(DOCUMENTED.partition(" -m ")[2]), "--json")
SETTINGS = {"batch_size": 15, "steps": 12, "learning_rate": 0.02, "augment": "crop-flip", "ema": 0.5, "keep": "best"}
SCRIPT = """
import sys
from pathlib import Path

import torch

from edgeexport import ranks
from edgeexport.records.base import from_json
from edgeexport.records.recipe import Training
from edgeexport.training import resolve_loss, train
from tests.training.nets import network, pictures

torch.set_num_threads(1)
assert ranks.count() == 2
module = network(dropout=0.0)
if not ranks.first():
    module[6].weight.data += 1  # process 0 decides where a training starts
settings = from_json(Path(sys.argv[1]).read_bytes(), Training, origin="argument")
record = train(module, pictures(), loss=resolve_loss("cross_entropy"), settings=settings)
assert record.processes == 2
torch.save(module.state_dict(), f"{sys.argv[2]}/{ranks.index()}.pt")
"""


def torchrun(*command, cwd=ROOT, check=True):
    """Start two processes over loopback and wait for both."""
    start = [sys.executable, "-m", "torch.distributed.run", *OPTIONS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*start, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def test_two_processes_train_what_one_trains(tmp_path):
    """Batches of 15 are shared unequally; batch norms see all of them."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    done = torchrun(str(tmp_path / "script.py"), str(tmp_path / "settings.json"), str(tmp_path))
    assert "FutureWarning" not in done.stderr
    single = network(dropout=0.0)
    train(single, pictures(), loss=resolve_loss("cross_entropy"), settings=Training(**SETTINGS))
    one, other = (torch.load(tmp_path / f"{index}.pt", weights_only=True) for index in (0, 1))
    start = network(dropout=0.0).state_dict()
    for name, value in single.state_dict().items():
        assert torch.equal(one[name], other[name]), name
        torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert (one["6.weight"] - start["6.weight"]).abs().max() > 1e-2


MODELS = """
import torch
from torch import nn


def net(width=32):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Flatten(), nn.Linear(width * 64, 10),
    )


def small():
    return net(8)
"""
RECIPE = """
[model]
factory = "models:net"
inputs = { image = [1, 1, 8, 8] }

[data]
pool = "digits"
metric = "top1"

[limits]
max_drop = 20.0

[[step]]
do = "train"
training = { epochs = 3, learning_rate = 0.05 }

[[step]]
do = "distill"
student = { factory = "models:small" }
training = { epochs = 3, learning_rate = 0.05 }
"""


@pytest.mark.slow
def test_a_recipe_runs_under_torchrun_and_one_process_speaks(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEEXPORT_DEVICES", str(tmp_path / "no-devices"))
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    done = torchrun(*ROAD, cwd=tmp_path)
    record = json.loads(done.stdout)  # one record, of one process
    assert record["targets"][0]["bundle"] == "linux-arm64.bundle"
    assert [rung["name"] for rung in record["rungs"] if rung["target"] is None] == ["source", "distilled"]
    assert len(list((tmp_path / ".edgeexport" / "stages").glob("distill-*"))) == 1
    assert not list((tmp_path / ".edgeexport" / "tmp").iterdir())
    assert json.loads(torchrun(*ROAD, cwd=tmp_path).stdout) == record


def test_user_code_that_fails_ends_both_processes(tmp_path):
    (tmp_path / "models.py").write_text("def net():\n    raise KeyError('mine')\n")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    done = torchrun(*ROAD, cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert "models.py:2: KeyError" in done.stderr


ALONE = """
import sys
from pathlib import Path

from edgeexport import ranks
from edgeexport.errors import MissingExtra
from edgeexport.records.run import RunRecord
from edgeexport.workspace import Workspace


def make(folder):
    raise MissingExtra("nothing", extra="export", purpose="this")


told = []
with Workspace(Path(sys.argv[1]) / "work") as work:
    for number in range(2):
        try:
            work.stage("one", key={"number": number}, make=make, kind=RunRecord)
        except MissingExtra as error:
            told.append(f"{error} {error.next_step}")
told.append(ranks.agreed(ranks.index()))
(Path(sys.argv[1]) / f"{ranks.index()}.txt").write_text(repr(told))
"""


def test_an_error_of_the_process_that_works_alone_is_raised_in_all_and_they_go_on_together(tmp_path):
    (tmp_path / "script.py").write_text(ALONE)
    torchrun(str(tmp_path / "script.py"), str(tmp_path))
    one, other = ((tmp_path / f"{index}.txt").read_text() for index in range(2))
    assert one == other
    assert one.count("this needs the package 'nothing'") == one.count("pip install 'edgeexport[export]'") == 2
    assert one.endswith(", 0]")


def test_a_batch_smaller_than_the_processes_is_refused(monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: 4)
    with pytest.raises(RecipeError, match="is 3, and 4 processes share"):
        batches_of(pictures(), Training(batch_size=3))


@pytest.mark.parametrize("world", [2, 3])
def test_the_parts_of_a_batch_are_the_batch(world, monkeypatch):
    whole = batches_of(pictures(), Training(batch_size=16)).at(9).inputs[0]
    monkeypatch.setattr(ranks, "count", lambda: world)
    parts = []
    for index in range(world):
        monkeypatch.setattr(ranks, "index", lambda index=index: index)
        parts.append(batches_of(pictures(), Training(batch_size=16)).at(9).inputs[0])
    assert np.array_equal(torch.cat(parts), whole)


TAUGHT = """
import atexit
import os
import sys

import torch
from torch import nn

# In one piece, line break too: what both processes say at once may alternate.
atexit.register(lambda: os.write(1, f"in a group at the end: {torch.distributed.is_initialized()}\\n".encode()))

from edgeexport import ranks
from edgeexport.compression.distill import distill
from edgeexport.records.recipe import Distill, Training
from tests.training.nets import network, pictures


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network(dropout=0.0)

    def forward(self, picture):
        return self.net(picture), self.net[:3](picture)


torch.set_num_threads(1)
module, teacher = Both(), Both()
with torch.no_grad():
    for each in teacher.parameters():
        each.mul_(1.5)
settings = Training(batch_size=15, steps=12, learning_rate=0.02)
step = Distill(method=sys.argv[2], feature_weight=10.0, training=settings)
distill(module, teacher, data=pictures(), step=step)
if ranks.first():
    torch.save(module.state_dict(), sys.argv[1])
"""


@pytest.mark.parametrize("method", ["hint", "logits"])
def test_two_processes_learn_the_features_and_outputs_that_one_learns(tmp_path, method):
    (tmp_path / "script.py").write_text(TAUGHT)
    done = torchrun(str(tmp_path / "script.py"), str(tmp_path / "two.pt"), method)
    assert done.stdout.count("in a group at the end: False") == 2
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "one.pt"), method]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    two, one = (torch.load(tmp_path / name, weights_only=True) for name in ("two.pt", "one.pt"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)
