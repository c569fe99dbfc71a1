"""A distil or prune step that fails is a row with its reason, and the last good network ships; other errors end."""

from __future__ import annotations

import pytest

from edgeexport.errors import ConverterFailed, ModelError
from edgeexport.pipeline import torch_rungs
from edgeexport.pipeline.road import open_road
from edgeexport.pipeline.torch_rungs import climb
from edgeexport.pipeline.workbench import Workbench
from edgeexport.progress import silent
from edgeexport.records.recipe import load_recipe
from edgeexport.records.target import load_target
from edgeexport.workspace import Workspace

DISTIL = """
[[step]]
do = "distill"
training = { steps = 2, learning_rate = 1e-4, batch_size = 32 }
"""
PRUNE = """
[[step]]
do = "prune"
macs = 1.5
rounds = 2
round_to = 8
training = { steps = 2, learning_rate = 1e-4, batch_size = 32 }
"""
WILD = "steps = 20, learning_rate = 1e12"


def stepped(desk, *steps):
    desk.edit("recipe.toml", '\n[[step]]\ndo = "quantize"\n', "".join([*steps, '\n[[step]]\ndo = "quantize"\n']))
    return desk


def climbed(desk):
    """The part of the road that lies in PyTorch, without what comes after it."""
    with Workspace(desk.folder / "work") as work:
        road = open_road(load_recipe(desk.folder / "recipe.toml"), work, progress=silent)
        return climb(road, None, target=load_target("linux-arm64"), device="none")


def outcome(found):
    return [(row.name, row.status) for row in found.rows], [rung.name for rung in found.standing]


def test_a_run_whose_distillation_diverges_says_so_and_ships_the_source(desk, capsys):
    stepped(desk, DISTIL.replace("steps = 2, learning_rate = 1e-4", WILD))
    assert desk.run("--device", "none") == 0
    row = next(row for row in desk.record()["rungs"] if row["name"] == "distilled")
    assert row["status"] == "rolled back"
    assert "the training loss is" in row["reason"]
    assert "lower `learning_rate`" in row["reason"]
    assert desk.record()["targets"][0]["shipped"].startswith("source")
    assert "lower `learning_rate`" in capsys.readouterr().out


def test_a_pruning_round_that_diverges_leaves_what_stood_before_it(desk):
    stepped(desk, DISTIL, PRUNE.replace("steps = 2, learning_rate = 1e-4", WILD))
    found = climbed(desk)
    assert outcome(found) == (
        [("source", "kept"), ("distilled", "kept"), ("pruned 1/2", "rolled back")],
        ["source", "distilled"],
    )
    assert "the training loss is" in found.rows[-1].reason
    assert any("multiply-accumulates" in note for note in found.rows[-1].notes)


@pytest.mark.parametrize("error", [ModelError("no exporter", next_step="look"), ConverterFailed("it died")])
@pytest.mark.parametrize(("step", "name"), [(DISTIL, "distilled"), (PRUNE, "pruned 2/2")])
def test_a_network_that_cannot_be_exported_is_rolled_back(desk, monkeypatch, error, step, name):
    export = torch_rungs.export_spine

    def refusing(road, rung, **more):
        if rung == name:
            raise error
        return export(road, rung, **more)

    monkeypatch.setattr(torch_rungs, "export_spine", refusing)
    rows, standing = outcome(climbed(stepped(desk, step)))
    assert rows[-1] == (name, "rolled back")
    assert standing == [row for row, status in rows if status == "kept"]
    assert len(standing) == len(rows) - 1


@pytest.mark.parametrize("error", [ModelError("no exporter"), ConverterFailed("the converter died")])
@pytest.mark.parametrize("method", ["built", "present"])
def test_a_planned_network_that_cannot_be_built_is_rolled_back_in_the_first_round_too(desk, monkeypatch, error, method):
    def refusing(*_, **__):
        raise error

    monkeypatch.setattr(Workbench, method, refusing)
    found = climbed(stepped(desk, DISTIL, PRUNE.replace("macs = 1.5", "max_size_mb = 0.05")))
    assert outcome(found)[0][-1] == ("pruned 1/2", "rolled back")
    assert outcome(found)[1] == ["source", "distilled"]
    assert found.rows[-1].reason == f"not retrained: {error}"


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ('\n[[step]]\ndo = "train"\ntraining = { steps = 20, learning_rate = 1e12 }\n', "the training loss is"),
        (DISTIL.replace("training", 'student = { factory = "models:nobody" }\ntraining'), "nobody"),
        (DISTIL.replace("batch_size = 32", 'batch_size = 32, loss = "bce"'), "bce"),
        (PRUNE.replace("macs = 1.5", "macs = 900.0"), "cannot reach"),
    ],
)
def test_what_is_wrong_with_the_source_the_recipe_or_the_samples_ends_the_run(desk, capsys, step, said):
    stepped(desk, step)
    assert desk.run("--device", "none") == 2
    assert said in capsys.readouterr().err
    assert not desk.bundle().exists()
