"""Labels on the road: asked for where something is learnt from them or judged by them, and nowhere else."""

from __future__ import annotations

import pytest

from edgeexport.errors import DataError
from edgeexport.pipeline.road import ALONE, open_road
from edgeexport.pipeline.torch_rungs import climb
from edgeexport.progress import silent
from edgeexport.records.recipe import load_recipe
from edgeexport.records.target import load_target
from edgeexport.training import distillation
from edgeexport.workspace import Workspace

DATA = """
import numpy as np

CLASSES = 10


def _noise(seed, count, label):
    random = np.random.default_rng(seed)
    pictures = random.standard_normal((count, 1, 8, 8)).astype(np.float32)
    labels = random.integers(0, CLASSES, count)
    return [(picture, label(index, int(labels[index]))) for index, picture in enumerate(pictures)]


def bare():
    return _noise(1, 120, lambda index, label: None)


def some():
    return _noise(1, 120, lambda index, label: label if index % 3 else None)


def named():
    return _noise(1, 120, lambda index, label: label)


def test():
    return _noise(2, 200, lambda index, label: label)
"""
SOURCES = """
[data]
train = "data:bare"
pool = "data:test"
split = [0.2, 0.2, 0.6]
metric = "top1"

[limits]
max_drop = 100.0
"""
DISTIL = """
[[step]]
do = "distill"
training = { steps = 6, batch_size = 16, keep = "best", patience = 20 }
"""
PRUNE = """
[[step]]
do = "prune"
macs = 1.3
round_to = 8
training = { steps = 2, batch_size = 16 }
"""
QUANTIZE = """
[[step]]
do = "quantize"
qat = "always"
methods = ["minmax"]
training = { steps = 2, batch_size = 16, learning_rate = 0.001 }
"""
TRAIN = """
[[step]]
do = "train"
training = { steps = 2, batch_size = 16 }
"""


def ask(desk, *steps, sources=SOURCES):
    """Ask for these steps on samples without labels, judged on others that have some."""
    head = (desk.folder / "recipe.toml").read_text(encoding="utf-8").partition("[data]")[0]
    desk.write("data.py", DATA)
    desk.write("recipe.toml", head + sources + "".join(steps))


def opened(desk, work):
    return open_road(load_recipe(desk.folder / "recipe.toml"), work, progress=silent)


def climbed(desk):
    with Workspace(desk.folder / "work") as work:
        return climb(opened(desk, work), None, target=load_target("linux-arm64"))


def test_whoever_has_a_teacher_learns_without_labels_and_says_so(desk):
    ask(desk, DISTIL, PRUNE, QUANTIZE)
    assert desk.run("--device", "none") == 0
    rows = {row["name"]: row for row in desk.record()["rungs"]}
    assert ALONE in rows["distilled"]["notes"]
    assert ALONE in rows["pruned"]["notes"]
    trained = [row for name, row in rows.items() if " qat " in name]
    assert trained
    assert all(ALONE in row["notes"] for row in trained)
    assert ALONE not in rows["source"]["notes"]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([TRAIN], "step 1 `train` learns labels by the loss 'cross_entropy'"),
        ([DISTIL.replace("steps = 6", 'loss = "mse"')], "step 1 `distill` learns labels by the loss 'mse'"),
        ([PRUNE, DISTIL + "soft_share = 0.5"], "step 2 `distill` learns labels by the loss 'cross_entropy', soft_"),
        ([PRUNE + "distil = false"], "step 1 `prune` learns labels by the loss 'cross_entropy'"),
        (
            [PRUNE.replace("steps = 2", "epochs = 0, steps = 2") + "distil = false"],
            "step 1 `prune` learns labels by the loss 'cross_entropy'",
        ),
        ([PRUNE.replace("steps = 2", 'loss = "bce"')], "step 1 `prune` learns labels by the loss 'bce'"),
        ([QUANTIZE.replace("steps = 2", 'loss = "mse"')], "step 1 `quantize` learns labels by the loss 'mse'"),
    ],
)
def test_a_step_that_needs_labels_names_itself_before_any_work(desk, capsys, steps, said):
    ask(desk, *steps)
    assert desk.run("--device", "none") == 2
    told = capsys.readouterr().err
    assert said in told
    assert "120 of 120 training samples (`data.train`) have no label, first data:bare: sample 0" in told
    assert "give every training sample its label" in told


@pytest.mark.parametrize(
    "step", [DISTIL + "soft_share = 1.0", PRUNE.replace("steps = 2", "epochs = 0") + "distil = false"]
)
def test_what_is_not_learnt_from_labels_does_not_ask_for_them(desk, step):
    ask(desk, step)
    assert [row.status for row in climbed(desk).rows] == ["kept", "kept"]


def test_samples_of_which_some_have_labels_are_refused_with_their_number(desk, capsys):
    ask(desk, QUANTIZE)
    desk.edit("recipe.toml", "data:bare", "data:some")
    assert desk.run("--device", "none") == 2
    told = capsys.readouterr().err
    assert "40 of 120 training samples (`data.train`) have no label, first data:some: sample 0" in told
    assert "give all of them labels, or none" in told


def test_a_metric_of_labels_needs_them_on_what_it_judges_even_where_the_splits_are_kept(desk):
    apart = SOURCES.replace("pool", "evaluate").replace("split = [0.2, 0.2, 0.6]", "").replace("top1", "agreement")
    ask(desk, DISTIL, sources=apart)
    with Workspace(desk.folder / "work") as work:
        opened(desk, work)
        desk.edit("recipe.toml", "agreement", "top1")
        with pytest.raises(DataError, match=r"the metric 'top1' judges by labels, and 12 of 12 selection") as raised:
            opened(desk, work)
    assert "data.pool" in raised.value.next_step


ENCODER = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 12))
"""


def test_embeddings_are_taught_by_their_cosine_where_the_metric_is_one(desk, monkeypatch):
    ask(desk, DISTIL, PRUNE + 'criterion = "taylor"', sources=SOURCES.replace("top1", "cosine"))
    desk.write("models.py", ENCODER)
    asked, plain = [], distillation.cosine

    def counted(given, wanted, *, batch):
        asked.append(given.shape[1])
        return plain(given, wanted, batch=batch)

    monkeypatch.setattr(distillation, "cosine", counted)
    bare = climbed(desk)
    assert set(asked) == {12}
    assert [ALONE in row.notes for row in bare.rows] == [False, True, True]
    # Topics, of which there are more than the embedding has values: no loss of classes is charged on them.
    desk.edit("data.py", "CLASSES = 10", "CLASSES = 1000")
    desk.edit("recipe.toml", "data:bare", "data:named")
    labelled = climbed(desk)
    assert [rung.weights.record.artifact.digest for rung in labelled.standing] == [
        rung.weights.record.artifact.digest for rung in bare.standing
    ]
    assert not any(ALONE in row.notes for row in labelled.rows)
