"""Students made from the teacher: cut by several mixes, timed before any training, and honest about what was not."""

from __future__ import annotations

import platform

import msgspec
import pytest

from edgeexport.errors import ModelError, RecipeError
from edgeexport.pipeline import layer_times
from edgeexport.pipeline import students as cutting
from edgeexport.pipeline.road import open_road
from edgeexport.pipeline.torch_rungs import climb
from edgeexport.progress import silent
from edgeexport.records.base import from_json, to_json
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import Distill, load_recipe
from edgeexport.records.students import Student, Students, ranked
from edgeexport.records.target import load_target
from edgeexport.validation.measure import PLANS
from edgeexport.workspace import Workspace
from tests.pipeline.residual import MODELS

DISTIL = """
[[step]]
do = "distill"
student = "auto"
speedup = 1.5
round_to = 8
mixes = ["width", "depth"]
training = { steps = 2, batch_size = 32 }

[[step]]
do = "quantize"
"""
PLAN = PruningPlan("l2", 16, 4, 2, ())


@pytest.fixture
def cut_here(desk, monkeypatch):
    """A residual network with an automatic student, on a target that this machine may judge, quickly."""
    monkeypatch.setitem(PLANS, "brief", PLANS["smoke"])
    monkeypatch.setattr(layer_times, "LAUNCHES", 1)
    desk.write("models.py", MODELS)
    desk.write("here.toml", f'title = "h"\nruntime = "ort"\nformat = "onnx"\narch = "{platform.machine()}"\n')
    desk.edit("recipe.toml", '\n[[step]]\ndo = "quantize"\n', DISTIL)
    return desk


def climbed(desk, target="here.toml"):
    """The part of the road that lies in PyTorch, without what comes after it."""
    where = load_target(str(desk.folder / target) if target.endswith(".toml") else target)
    with Workspace(desk.folder / "work") as work:
        return climb(open_road(load_recipe(desk.folder / "recipe.toml"), work, progress=silent), None, target=where)


def found(desk) -> Students:
    (path,) = (desk.folder / "work" / "stages").glob("students-*/record.json")
    return from_json(path.read_bytes(), Students, origin="students")


def test_the_student_is_the_best_by_measured_time_of_all_that_were_cut(cut_here, monkeypatch):
    road = climbed(cut_here)
    record = found(cut_here)
    assert (record.basis, record.unit) == ("measured", "ms")
    assert record.chosen == ranked(record.tried, speedup=1.5, max_size_mb=None)[0]
    chosen = record.tried[record.chosen]
    assert chosen.plan.goals[0].after <= chosen.plan.goals[0].asked
    assert all(each.cost > 0 for each in record.tried if each.plan and not each.reason)
    assert road.standing[-1].weights.record.plans == (chosen.plan,)
    notes = road.standing[-1].notes
    assert [note for note in notes if note.startswith(f"student by {chosen.mix}: ") and note.endswith(", taken")]
    assert {"width", "depth"} <= {note.split(":")[0].removeprefix("student by ") for note in notes}
    monkeypatch.setattr(cutting, "_cutting", pytest.fail)
    assert climbed(cut_here).standing[-1].weights.record.artifact == road.standing[-1].weights.record.artifact


def test_where_nothing_can_be_measured_figures_are_predicted_and_the_row_says_so(cut_here):
    row = climbed(cut_here, "linux-arm64").rows[-1]
    record = found(cut_here)
    assert (record.basis, record.unit) == ("predicted", "aligned MMACs")
    assert record.tried[record.chosen].reaches(1.5, max_size_mb=None)
    assert any("(predicted)" in note for note in row.notes)
    assert any(note.startswith("not measured: ") for note in row.notes)


def test_where_no_student_measures_up_all_are_cut_once_more(cut_here, monkeypatch):
    def slow(self, known):
        for index in self.built:
            self._set(index, cost=1.0, before=1.0)
        return known

    monkeypatch.setattr(cutting._Cutting, "_timed", slow)
    notes = climbed(cut_here, "linux-arm64").standing[-1].notes
    assert "asked 1.5x, reaches 1x (predicted)" in notes
    first, second = found(cut_here).tried[:2], found(cut_here).tried[2:]
    assert [each.mix for each in second] == ["width", "depth"]
    assert min(each.plan.macs_after for each in second if each.plan) < min(each.plan.macs_after for each in first)


def test_where_a_second_measurement_is_invalid_the_first_one_counts_no_more(cut_here, monkeypatch):
    tries: list[int] = []

    def once(self, known, *, machine):
        tries.append(len(self.built))
        if len(tries) > 1:
            return known, "the measurement is invalid: noise"
        for index in self.built:
            self._set(index, cost=1.0, before=1.0)
        return msgspec.structs.replace(known, basis="measured", unit="ms", cost_before=1.0), ""

    monkeypatch.setattr(cutting, "device_for", lambda *_: (object(), ""))
    monkeypatch.setattr(cutting._Cutting, "_measured", once)
    notes = climbed(cut_here, "linux-arm64").standing[-1].notes
    built = [note for note in notes if note.startswith("student by ") and ": none, " not in note]
    assert len(tries) == 2
    assert built
    assert all("(predicted)" in note for note in built)
    assert "not measured: the measurement is invalid: noise" in notes


@pytest.fixture
def noisy(cut_here, monkeypatch, second_step_stops):
    """A machine on which no measurement is valid, and whose training is stopped in its second step; what was done."""
    real, done = cutting._cutting, second_step_stops

    def cut(*given):
        done.append("cut")
        return real(*given)

    monkeypatch.setattr(cutting, "device_for", lambda *_: (object(), ""))
    monkeypatch.setattr(
        cutting._Cutting, "_measured", lambda _, known, **__: (known, "the measurement is invalid: noise")
    )
    monkeypatch.setattr(cutting, "_cutting", cut)
    with pytest.raises(KeyboardInterrupt):
        climbed(cut_here, "linux-arm64")
    assert done == ["cut", 0, 1]
    done.clear()
    return cut_here, done


@pytest.mark.usefixtures("saving_always")
def test_a_student_whose_training_was_stopped_is_the_one_that_is_trained_on(noisy):
    desk, done = noisy
    first = found(desk)
    assert "not measured: the measurement is invalid: noise" in climbed(desk, "linux-arm64").standing[-1].notes
    assert done == [1]
    # Once trained, it is not cut anew either.
    climbed(desk, "linux-arm64")
    assert done == [1]
    assert found(desk) == first


def test_an_invalid_measurement_that_no_training_depends_on_is_made_again(noisy):
    desk, done = noisy
    climbed(desk, "linux-arm64")
    assert done == ["cut", 0, 1]


@pytest.mark.usefixtures("saving_always")
def test_of_another_training_students_are_measured_again(noisy):
    desk, done = noisy
    desk.edit("recipe.toml", "batch_size = 32", "batch_size = 16")
    climbed(desk, "linux-arm64")
    assert done[0] == "cut"


def test_figures_of_a_device_and_figures_without_one_are_kept_apart_whatever_the_runtime(desk):
    here = f'title = "h"\nruntime = "litert"\nformat = "tflite"\narch = "{platform.machine()}"\n'
    target = load_target(str(desk.write("litert.toml", here)))
    without, local = (layer_times.Place(target, "int8", device).judge() for device in ("none", "local"))
    assert without == "no device was given (--device none)"
    assert local["device"] == "local"


def test_a_size_is_reached_by_the_file_that_ships(cut_here):
    cut_here.edit("recipe.toml", "speedup = 1.5", "max_size_mb = 0.05")
    climbed(cut_here)
    record = found(cut_here)
    assert 0 < record.tried[record.chosen].bytes <= 0.05e6


def test_a_goal_out_of_reach_is_told_for_each_mix_and_nothing_is_measured_for_it(cut_here, monkeypatch):
    def measured(*_, **__):
        pytest.fail("there is no student to measure")

    monkeypatch.setattr(cutting._Cutting, "_measured", measured)
    cut_here.edit("recipe.toml", "speedup = 1.5", "macs = 1000.0")
    with pytest.raises(ModelError, match=r"by width: pruning cannot reach .* by depth: pruning cannot reach"):
        climbed(cut_here)


def test_a_stored_plan_makes_the_student_again(cut_here):
    first = climbed(cut_here, "linux-arm64").standing[-1]
    (plan,) = first.weights.record.plans
    cut_here.write("plan.json", to_json(plan).decode())
    cut_here.edit("recipe.toml", 'student = "auto"\nspeedup = 1.5', 'student = "plan.json"')
    again = climbed(cut_here, "linux-arm64").standing[-1]
    assert again.weights.record.artifact.digest == first.weights.record.artifact.digest
    assert again.weights.key == first.weights.key


def student(mix, *, cost, kept=(0.5, 0.5), times=2.0, size=1000):
    return Student(mix, PLAN, bytes=size, cost=cost, times=times, kept=kept)


def test_the_fastest_comes_first_and_of_those_alike_the_one_that_keeps_most():
    tried = (
        student("width", cost=1.00, kept=(0.3, 0.3)),
        student("depth", cost=1.04, kept=(0.6, 0.6)),
        student("free", cost=1.20, kept=(0.9, 0.9)),
        Student("even-width", reason="pruning cannot reach it"),
    )
    assert ranked(tried, speedup=2.0, max_size_mb=None) == [1, 0, 2]


def test_what_misses_a_goal_comes_after_all_that_reach_it():
    tried = (
        student("width", cost=0.5, times=1.9),
        student("depth", cost=1.0, times=2.0),
        student("free", cost=0.6, times=2.5, size=2000),
    )
    assert ranked(tried, speedup=2.0, max_size_mb=0.0015) == [1, 0, 2]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"student": "auto"}, "without a goal"),
        ({"student": "auto", "speedup": 2.0, "mixes": ()}, "mixes` is empty"),
        ({"speedup": 2.0}, "for a student made here"),
        ({"student": "atuo"}, "student` is 'atuo'"),
        ({"student": "auto", "speedup": 0.5}, "speedup"),
    ],
)
def test_a_student_that_cannot_be_made_is_refused(given, complaint):
    with pytest.raises(RecipeError, match=complaint):
        Distill(**given)
