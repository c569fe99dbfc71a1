"""The plans of a run lie beside its bundles, are named in its rows, and cut the same network again."""

from __future__ import annotations

import pytest

from edgeexport.pipeline.plans import OWN, plan_name
from edgeexport.pipeline.road import open_road
from edgeexport.pipeline.torch_rungs import climb
from edgeexport.progress import silent
from edgeexport.records.base import from_json
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import load_recipe
from edgeexport.records.target import load_target
from edgeexport.workspace import Workspace

PRUNE = """
[[step]]
do = "prune"
macs = 1.6
rounds = 2
round_to = 8
training = { epochs = 0 }
"""
AGAIN = """
[[step]]
do = "distill"
student = "PLAN"
training = { steps = 2, learning_rate = 1e-4, batch_size = 32 }
"""
FIRST, SECOND = "pruned-1-of-2.pruning.json", "pruned-2-of-2.pruning.json"


def again(plan):
    return AGAIN.replace("PLAN", plan)


def test_a_run_leaves_every_plan_that_stands_and_such_a_plan_is_a_student(desk):
    wide = "\n[limits]\nmax_drop = 100.0\n"
    desk.edit("recipe.toml", '\n[[step]]\ndo = "quantize"', wide + PRUNE + '\n[[step]]\ndo = "quantize"')
    out = desk.folder / "out"
    out.mkdir()
    for name in ("distilled.pruning.json", "mine.pruning.json"):
        (out / name).write_text("{}")
    assert desk.run("--device", "none") in (0, 1)
    assert {path.name for path in out.glob("*.pruning.json")} == {FIRST, SECOND, "mine.pruning.json"}
    for row, name in zip(desk.record()["rungs"][1:3], (FIRST, SECOND), strict=True):
        assert f"plan: {name}" in row["notes"]
        assert any(note.startswith("1 part is left alone: `5`: ") for note in row["notes"])
    plan = from_json((out / FIRST).read_bytes(), PruningPlan, origin=FIRST)
    desk.edit("recipe.toml", PRUNE, again(FIRST))
    desk.write(FIRST, (out / FIRST).read_text())
    with Workspace(desk.folder / "work") as work:
        road = open_road(load_recipe(desk.folder / "recipe.toml"), work, progress=silent)
        found = climb(road, None, target=load_target("linux-arm64"), device="none")
    assert found.standing[-1].weights.record.plans == (plan,)


def test_a_run_never_overwrites_the_plan_that_its_recipe_reads(desk, capsys):
    (desk.folder / "out").mkdir()
    desk.write(f"out/{FIRST}", "{}")
    desk.edit("recipe.toml", '\n[[step]]\ndo = "quantize"', again(f"out/{FIRST}") + '\n[[step]]\ndo = "quantize"')
    assert desk.run("--device", "none") == 2
    assert "which this run would overwrite\nnext:  copy it beside the recipe" in capsys.readouterr().err
    assert (desk.folder / "out" / FIRST).read_text() == "{}"
    assert not (desk.folder / "work").exists()


@pytest.mark.parametrize(
    ("rung", "name"),
    [
        ("pruned", "pruned.pruning.json"),
        ("pruned 1/3", "pruned-1-of-3.pruning.json"),
        ("pruned 1/3 (2)", "pruned-1-of-3-2.pruning.json"),
        ("distilled (12)", "distilled-12.pruning.json"),
    ],
)
def test_plans_are_named_after_their_rungs(rung, name):
    assert plan_name(rung) == name
    assert OWN.fullmatch(name)
