"""Nodes that a recipe keeps in float: refused before any training if they never were, a note if they were cut away."""

from __future__ import annotations

import pytest

from tests.pipeline.residual import MODELS

CUT = """
[limits]
max_drop = 100.0

[[step]]
do = "prune"
macs = 1.5
parts = ["depth"]
training = { epochs = 0 }
"""
DISTIL = """
[[step]]
do = "distill"
training = { steps = 2, learning_rate = 1e-4, batch_size = 32 }
"""
QUANTIZE = '\n[[step]]\ndo = "quantize"\nmethods = ["minmax"]\nimprove = "never"\nkeep_float = ["NAME"]\n'


def asked(desk, name, before):
    desk.write("models.py", MODELS)
    desk.edit("recipe.toml", '\n[[step]]\ndo = "quantize"\n', before + QUANTIZE.replace("NAME", name))


def test_a_node_that_was_cut_away_ships_without_it_and_the_row_says_so(desk):
    asked(desk, "3.first", CUT)
    assert desk.run("--device", "none") in (0, 1)
    rows = {row["name"]: row for row in desk.record()["rungs"]}
    assert "skipped: 3" in rows["pruned"]["notes"]
    assert rows["pruned int8 minmax"]["status"] == "shipped"
    assert "`3.first` is not kept in float: it was cut away" in rows["pruned int8 minmax"]["notes"]


@pytest.mark.parametrize("name", ["2.frist", "no_such"])
def test_a_node_that_never_was_is_told_before_any_training(desk, capsys, name):
    asked(desk, name, DISTIL)
    assert desk.run("--device", "none") == 2
    assert f"no node {name!r} to keep in float" in capsys.readouterr().err
    stages = {path.name.partition("-")[0] for path in (desk.folder / "work" / "stages").iterdir()}
    assert stages == {"export", "splits", "source", "predict", "score"}
