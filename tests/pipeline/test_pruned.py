"""Pruning on the road: to time as the target's own kernels take it, by rounds, and honest where nothing was timed."""

from __future__ import annotations

import json
import platform
import shutil
from types import SimpleNamespace

import msgspec
import pytest

from edgeexport.compression import prune
from edgeexport.compression.latency import predicted_table
from edgeexport.errors import ModelError, OutOfReach
from edgeexport.pipeline import layer_times as timing
from edgeexport.pipeline import pruned as pruning
from edgeexport.pipeline import workbench
from edgeexport.pipeline.road import open_road
from edgeexport.pipeline.torch_rungs import climb
from edgeexport.pipeline.workbench import Workbench
from edgeexport.progress import silent
from edgeexport.records.base import file_digest
from edgeexport.records.measurement import Comparison, Conditions, Interval, Measurement
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import load_recipe
from edgeexport.records.stages import PlannedRound, Timed
from edgeexport.records.target import load_target
from edgeexport.validation import measure as measuring
from edgeexport.validation.measure import PLANS, Subject
from edgeexport.workspace import Workspace

PRUNE = """
[[step]]
do = "prune"
speedup = 1.1
round_to = 8
training = { epochs = 0 }

[[step]]
do = "quantize"
"""


@pytest.fixture
def timed_here(desk, monkeypatch):
    """The tiny request with a pruning step, on a target that this machine may judge, quickly."""
    monkeypatch.setitem(PLANS, "brief", PLANS["smoke"])
    desk.write("here.toml", f'title = "h"\nruntime = "ort"\nformat = "onnx"\narch = "{platform.machine()}"\n')
    desk.edit("recipe.toml", '\n[[step]]\ndo = "quantize"\n', PRUNE)
    return desk


def climbed(desk, target="here.toml", *, bar=None, device=None):
    """The part of the road that lies in PyTorch, without what comes after it."""
    where = load_target(str(desk.folder / target) if target.endswith(".toml") else target)
    with Workspace(desk.folder / "work") as work:
        road = open_road(load_recipe(desk.folder / "recipe.toml"), work, progress=silent)
        return climb(road, bar, target=where, device=device)


def plans(desk):
    found = (desk.folder / "work" / "stages").glob("plan pruning-*/record.json")
    return [json.loads(path.read_text(encoding="utf-8")) for path in found]


def test_a_run_prunes_to_time_says_what_it_measured_and_times_nothing_twice(timed_here, monkeypatch):
    target = str(timed_here.folder / "here.toml")
    assert timed_here.run(target=target) in (0, 1)
    (plan,) = plans(timed_here)
    (goal,) = plan["plan"]["goals"]
    row = next(row for row in timed_here.record()["rungs"] if row["name"] == "pruned")
    assert (goal["goal"], goal["basis"], goal["unit"]) == ("speedup", "measured", "ms")
    assert goal["after"] <= goal["asked"] < goal["before"]
    assert plan["timed"]["source"] is not None
    assert plan["bytes_after"] < plan["bytes_before"]
    assert "measured" in row["notes"][0]
    monkeypatch.setattr(timing, "time_layers", pytest.fail)
    assert timed_here.run(target=target) in (0, 1)


def test_without_the_targets_cpu_a_plan_is_predicted_and_its_row_says_so(timed_here):
    row = climbed(timed_here, "linux-arm64").rows[-1]
    (plan,) = plans(timed_here)
    assert plan["plan"]["goals"][0]["basis"] == "predicted"
    assert "predicted" in row.notes[0]
    assert any("not measured" in note for note in row.notes)


def test_rounds_share_the_way_and_end_with_the_one_that_loses_too_much(timed_here):
    timed_here.edit("recipe.toml", "speedup = 1.1", "macs = 3.0\nrounds = 3")
    every, few = climbed(timed_here), climbed(timed_here, bar=0.0)
    assert [rung.name for rung in every.standing] == ["source", "pruned 1/3", "pruned 2/3", "pruned 3/3"]
    assert [(row.name, row.status) for row in few.rows][-1][1] == "rolled back"
    assert len(few.rows) == len(few.standing) + 1


def test_a_size_is_reached_by_the_file_that_ships(timed_here):
    timed_here.edit("recipe.toml", "speedup = 1.1", "max_size_mb = 0.02")
    climbed(timed_here)
    (plan,) = plans(timed_here)
    assert plan["bytes_after"] <= 0.02e6 * 1.03


def test_the_criterion_taylor_takes_gradients_on_training_samples(timed_here):
    timed_here.edit("recipe.toml", "speedup = 1.1", 'macs = 1.3\ncriterion = "taylor"')
    climbed(timed_here)
    (plan,) = plans(timed_here)
    assert plan["plan"]["groups"]


def test_a_round_that_is_not_measured_faster_is_not_worth_retraining():
    plan = PruningPlan("l2", 16, 2, 1, ())
    for claim, slower in (("faster", False), ("slower", True), ("no difference shown", True)):
        compared = Comparison("a", "b", Interval(0.99), claim)
        assert bool(PlannedRound(plan, Timed(comparison=compared), faster=True).slower) == slower
    assert not PlannedRound(plan, Timed(reason="no device"), faster=True).slower
    for after, slower in ((97.0, False), (99.0, True), (130.0, True)):
        assert bool(PlannedRound(plan, Timed(), faster=True, instructions=(100.0, after)).slower) == slower
        assert not PlannedRound(plan, Timed(), faster=False, instructions=(100.0, after)).slower


def measures(monkeypatch, *, valid=True, claim="slower"):
    """Let every measurement be this one; return the labels and runtimes of what was measured."""
    seen = []

    def measure(subjects, **_):
        seen.append([(subject.label, subject.runtime) for subject in subjects])
        conditions = Conditions("d", "a", (), "c", 1, "r", "1", 1, "brief", "sha256:0")
        reasons = () if valid else ("noise",)
        found = [Measurement(each.digest, each.label, conditions, valid, reasons) for each in subjects]
        return found, [Comparison("a", "b", Interval(1.2), claim)] if valid else []

    monkeypatch.setattr(measuring, "measure", measure)
    return seen


def test_whole_files_are_measured_where_single_layers_cannot_be_timed(timed_here, monkeypatch):
    litert = f'title = "l"\nruntime = "litert"\nformat = "tflite"\narch = "{platform.machine()}"\n'
    timed_here.write("litert.toml", litert)

    def unconverted(path, feeds, *, place, folder):
        del folder
        return Subject(path.stem, path, file_digest(path), place.target.runtime, feeds)

    monkeypatch.setattr(workbench, "shipped", unconverted)
    seen = measures(monkeypatch)
    assert climbed(timed_here, "litert.toml", device="none").rows[-1].status == "kept"
    row = climbed(timed_here, "litert.toml").rows[-1]
    assert seen == [[("before", "litert"), ("after", "litert")]]
    assert (row.status, row.reason) == ("rolled back", "not retrained: measured at 1.200 of the time before: slower")
    assert len(plans(timed_here)) == 2


@pytest.mark.parametrize(("after", "status"), [(80.0, "kept"), (99.5, "rolled back")])
def test_where_instructions_are_counted_a_round_must_have_fewer(timed_here, monkeypatch, after, status):
    monkeypatch.setattr(timing.Place, "counter", lambda _: SimpleNamespace(name="emulated:like it"))
    monkeypatch.setattr(workbench, "layer_table", lambda _, place, *, wanted: table_of(wanted, place))
    monkeypatch.setattr(Workbench, "cost", lambda _, subject: after if subject.label == "after" else 100.0)
    row = climbed(timed_here, "linux-arm64").rows[-1]
    assert row.status == status
    assert any(f"100 → {after:g} M instructions" in note for note in row.notes)
    assert any(note.startswith("not measured: ") for note in row.notes)
    assert status == "kept" or row.reason == "not retrained: counted at 0.995 of the instructions before, not 2% fewer"


def table_of(wanted, place):
    return predicted_table(wanted, target=place.target.name, form=place.form, reason="")


def test_an_invalid_measurement_is_told_and_made_again(timed_here, monkeypatch):
    seen = measures(monkeypatch, valid=False)
    for _ in range(2):
        row = climbed(timed_here).rows[-1]
        assert row.status == "kept"
        assert "not measured: noise" in row.notes
    assert len(seen) == 2


@pytest.fixture
def stopped(timed_here, monkeypatch, second_step_stops):
    """A round of an invalid measurement whose retraining was stopped in its second step; what was done."""
    made, done = pruning._made, second_step_stops

    def planned(*given, **named):
        found = made(*given, **named)
        done.append("plan")
        goals = tuple(msgspec.structs.replace(goal, before=goal.before + len(done)) for goal in found.plan.goals)
        return msgspec.structs.replace(found, plan=msgspec.structs.replace(found.plan, goals=goals))

    measures(monkeypatch, valid=False)
    monkeypatch.setattr(pruning, "_made", planned)
    timed_here.edit("recipe.toml", "epochs = 0", "epochs = 0, steps = 2, batch_size = 32")
    with pytest.raises(KeyboardInterrupt):
        climbed(timed_here)
    assert done == ["plan", 0, 1]
    return timed_here, done


@pytest.mark.usefixtures("saving_always")
def test_a_round_whose_retraining_was_stopped_is_retrained_on_by_the_same_plan(stopped):
    desk, done = stopped
    (first,) = plans(desk)
    assert "not measured: noise" in climbed(desk).rows[-1].notes
    assert done == ["plan", 0, 1, 1]
    # Once retrained, it is not planned anew either.
    assert climbed(desk).rows[-1].status == "kept"
    assert done == ["plan", 0, 1, 1]
    assert plans(desk) == [first]


@pytest.mark.usefixtures("saving_always")
def test_a_round_whose_retraining_left_nothing_is_planned_and_measured_again(stopped):
    desk, done = stopped
    shutil.rmtree(desk.folder / "work" / "unfinished")
    climbed(desk)
    assert done == ["plan", 0, 1, "plan", 0, 1]


@pytest.mark.parametrize(("given", "trained"), [("epochs = 0", 0), ("epochs = 0, steps = 2", 1)])
def test_no_epochs_are_no_training_unless_steps_are_given(timed_here, monkeypatch, given, trained):
    calls = []
    monkeypatch.setattr(prune, "retrain", lambda *_, **more: calls.append(more["step"].training.steps))
    timed_here.edit("recipe.toml", "speedup = 1.1", "macs = 1.2")
    timed_here.edit("recipe.toml", "epochs = 0", given)
    assert climbed(timed_here, "linux-arm64").rows[-1].status == "kept"
    assert calls == [2] * trained


def test_a_round_that_is_slower_is_rolled_back_without_training(timed_here, monkeypatch):
    monkeypatch.setattr(PlannedRound, "slower", "measured at 1.2 of the time before: slower")
    monkeypatch.setattr(prune, "retrain", pytest.fail)
    timed_here.edit("recipe.toml", "epochs = 0", "epochs = 1")
    found = climbed(timed_here, "linux-arm64")
    assert [rung.name for rung in found.standing] == ["source"]
    assert found.rows[-1].reason == "not retrained: measured at 1.2 of the time before: slower"


def test_a_goal_out_of_reach_in_the_first_round_is_an_error(timed_here):
    timed_here.edit("recipe.toml", "speedup = 1.1", "speedup = 100.0")
    with pytest.raises(ModelError, match="cannot reach"):
        climbed(timed_here, "linux-arm64")


def test_a_second_round_times_only_layers_that_the_first_did_not(timed_here, monkeypatch):
    asked: list[list[object]] = []

    def timed(layers, place, *, machine):
        asked.append([layer for layer in layers if layer not in timing.REFERENCES])
        return {layer: [1e-6 * layer.inputs * layer.outputs] for layer in layers}

    monkeypatch.setattr(timing, "_timed", timed)
    monkeypatch.setattr(PlannedRound, "slower", "")
    timed_here.edit("recipe.toml", "speedup = 1.1", "speedup = 1.4\nrounds = 2")
    assert [rung.name for rung in climbed(timed_here).standing] == ["source", "pruned 1/2", "pruned 2/2"]
    first, *second = asked
    assert first
    assert sum(len(each) for each in second) < len(first) / 2
    assert not [layer for each in second for layer in each if layer in first]


def test_a_later_round_out_of_reach_advises_nothing_that_is_counted_from_itself(timed_here, monkeypatch):
    timed_here.edit("recipe.toml", "speedup = 1.1", "macs = 1.6\nrounds = 2")
    plan = prune.plan_pruning

    def failing(module, example, **means):
        if failing.planned:
            raise OutOfReach("pruning cannot reach it", next_step="ask for macs = 1.25 or less")
        failing.planned = True
        return plan(module, example, **means)

    failing.planned = False
    monkeypatch.setattr(prune, "plan_pruning", failing)
    made = climbed(timed_here)
    assert [rung.name for rung in made.standing] == ["source", "pruned 1/2"]
    assert made.rows[-1].reason == "not retrained: pruning cannot reach it"
