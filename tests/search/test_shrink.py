"""A search ends in a bundle that holds the limits, or says in figures why there is none; it evaluates nothing."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from types import SimpleNamespace

import msgspec
import pytest

import edgeexport
from edgeexport import pipeline, search
from edgeexport.cli import main
from edgeexport.compression import distill as distilling
from edgeexport.compression import prune
from edgeexport.errors import DeviceError, ModelError, NoSpace, RecipeError, RequestError
from edgeexport.pipeline import layer_times
from edgeexport.pipeline.road import Road
from edgeexport.records.recipe import (
    DataSpec,
    Distill,
    Limits,
    ModelSpec,
    Quantize,
    Recipe,
    Train,
    Training,
    load_recipe,
)
from edgeexport.records.students import SLACK
from edgeexport.search import entrants, lessons, reasons
from edgeexport.validation import measure
from edgeexport.validation.measure import PLANS
from tests.pipeline.residual import MODELS
from tests.search.conftest import ASKED

TIMED = lessons._effort
pytestmark = pytest.mark.slow


def forget(desk, *stages: str) -> None:
    """Remove what the finished search has left of these stages."""
    for name in stages:
        for stage in (desk.folder / "work" / "stages").glob(f"{name}-*"):
            shutil.rmtree(stage)


def test_a_search_ships_a_bundle_and_says_what_it_chose(searched, capsys):
    assert searched.shrink(*ASKED) == 0
    found, shown = searched.found(), capsys.readouterr().out
    assert searched.bundle().is_file()
    assert found["explanation"] == []
    assert [row["status"] for row in found["trials"]].count("chosen") == 1
    assert "shrunk.toml" in shown
    assert "at least 1.5× faster than fp32" in shown


def test_the_recipe_that_is_written_makes_the_same_without_training_again(searched, tmp_path, stages):
    paths = ["--out", str(tmp_path), "--workspace", str(searched.folder / "work"), "--target", "linux-arm64"]
    assert main(["run", str(searched.folder / "out" / "shrunk.toml"), *paths]) == 0
    assert "distill" not in stages()
    assert (tmp_path / "linux-arm64.bundle").is_file()


def test_only_the_best_third_of_a_round_goes_on(searched):
    found = searched.found()
    first, last = found["rounds"][0], found["rounds"][-1]
    trained = [row for row in found["trials"] if row["drop"]]
    assert len(trained) == first["students"] > last["students"] == 1
    assert last["steps"] > first["steps"]
    (chosen,) = [row for row in trained if row["status"] == "chosen"]
    assert chosen["steps"] == last["steps"]
    assert {row["status"] for row in trained if row is not chosen} == {"dropped"}


def test_a_limit_on_what_is_lost_that_nothing_holds_is_explained_and_is_exit_1(desk, capsys):
    desk.edit("recipe.toml", "learning_rate = 0.02 }", "learning_rate = 1e-9 }")
    assert desk.shrink("--speedup", "4", "--max-drop", "0") == 1
    best, less = desk.found()["explanation"]
    assert best.startswith("4×: the best of ")
    assert best.endswith("0 allowed")
    assert less.startswith("for less, 3×: ")
    assert not desk.bundle().exists()
    told = capsys.readouterr()
    assert "infeasible: 4×: the best of" in told.out
    assert "error: infeasible" in told.err
    assert "infeasible" in (desk.folder / "out" / "shrink.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("part", ["field", "lesson"])
def test_a_device_that_fails_after_the_trainings_costs_a_sentence_not_the_search(desk, monkeypatch, part):
    def gone(*_: object, **__: object) -> None:
        raise DeviceError("the device does not answer", next_step="plug it in")

    desk.edit("recipe.toml", "learning_rate = 0.02 }", "learning_rate = 1e-9 }")
    monkeypatch.setattr(reasons, part, gone)
    assert desk.shrink("--speedup", "4", "--max-drop", "0") == 1
    best, less = desk.found()["explanation"]
    assert best.startswith("4×: the best of ")
    assert less == "what 3× would cost could not be told: the device does not answer; plug it in"


@pytest.mark.parametrize(
    ("shipped", "student", "said"),
    [
        ("distilled int8 minmax", "distilled", False),
        ("distilled (2) int8 minmax", "distilled (2)", False),
        ("distilled int8 minmax", "distilled (2)", True),
        ("source int8 minmax", "distilled", True),
        ("source int8 minmax", None, False),
    ],
)
def test_what_ships_in_place_of_the_student_is_told(shipped, student, said):
    assert bool(reasons.not_shipped(SimpleNamespace(shipped=shipped), student=student)) is said


def test_a_speed_that_no_cut_can_give_is_explained_and_is_exit_1(desk, capsys):
    assert desk.shrink("--speedup", "1000", "--max-drop", "60") == 1
    assert "by width: pruning cannot reach" in capsys.readouterr().err
    assert desk.found()["trials"] == []


def test_nothing_of_an_earlier_search_stays_beside_one_that_ships_nothing(desk, searched):
    shutil.copytree(searched.folder / "out", desk.folder / "out")
    assert desk.shrink("--speedup", "1000", "--max-drop", "60") == 1
    left = {path.name for path in (desk.folder / "out").iterdir()}
    assert left == {"shrink.html", "shrink.json"}


def test_a_bundle_that_is_taken_back_is_named_nowhere(desk, monkeypatch, capsys):
    monkeypatch.setattr(search, "not_shipped", lambda result, **_: reasons.not_shipped(result, student="another"))
    assert desk.shrink(*ASKED) == 1
    assert not desk.bundle().exists()
    assert "linux-arm64.bundle" not in capsys.readouterr().out
    for name in ("run.json", "report.html", "shrink.json"):
        text = (desk.folder / "out" / name).read_text(encoding="utf-8")
        assert "linux-arm64.bundle" not in text
        assert "the student does not ship" in text
    (result,) = json.loads((desk.folder / "out" / "run.json").read_text(encoding="utf-8"))["targets"]
    assert (result["shipped"], result["bundle"]) == (None, None)


def test_where_the_shipped_form_suffices_nothing_is_cut_or_trained(desk, searched, stages):
    shutil.copytree(searched.folder / "out", desk.folder / "out")
    assert desk.shrink("--max-size-mb", "10", "--max-drop", "60") == 0
    assert "distill" not in stages()
    assert desk.found()["notes"][0].startswith("nothing needs to be cut")
    assert "distill" not in (desk.folder / "out" / "shrunk.toml").read_text(encoding="utf-8")
    assert not (desk.folder / "out" / "shrunk.plan.json").exists()


def test_the_evaluation_set_is_not_opened_while_the_search_goes_on(desk, monkeypatch):
    forget(desk, "distill", "predict")
    opened: list[str] = []
    prepared = Road.prepared
    monkeypatch.setattr(Road, "prepared", lambda road, split, sig: opened.append(split) or prepared(road, split, sig))
    monkeypatch.setattr(search, "run", lambda *_, **__: pytest.fail("over"))
    with pytest.raises(pytest.fail.Exception, match="over"):
        edgeexport.shrink(
            load_recipe(desk.folder / "recipe.toml"),
            "linux-arm64",
            limits=Limits(speedup=1.5, max_drop=60.0),
            out=desk.folder / "out",
            workspace=desk.folder / "work",
        )
    assert {"train", "selection"} <= set(opened)
    assert "evaluation" not in opened


def test_a_search_that_was_stopped_goes_on_without_training_anything_twice(desk, monkeypatch):
    forget(desk, "distill")
    trained: list[int] = []
    train = distilling.train

    def stopping(*given, **named):
        trained.append(1)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(*given, **named)

    monkeypatch.setattr(distilling, "train", stopping)
    assert desk.shrink(*ASKED) == 130
    assert desk.shrink(*ASKED) == 0
    assert len(trained) == 1 + sum(each["students"] for each in desk.found()["rounds"])


def test_where_the_target_is_this_machine_only_students_that_measured_fast_enough_are_trained(desk, monkeypatch):
    monkeypatch.setitem(PLANS, "brief", PLANS["smoke"])
    monkeypatch.setattr(layer_times, "LAUNCHES", 1)
    here = desk.write("here.toml", f'title = "h"\nruntime = "ort"\nformat = "onnx"\narch = "{platform.machine()}"\n')
    code = desk.shrink("--speedup", "1.2", "--max-size-mb", "0.03", "--max-drop", "60", target=str(here))
    found = desk.found()
    assert code == (0 if (desk.folder / "out" / "here.bundle").is_file() else 1)
    assert (code == 0) == (not found["explanation"])
    assert (found["basis"], found["unit"], found["head_start"]["basis"]) == ("measured", "ms", "measured")
    assert all(row["times"] > 0 and row["cost"] > 0 for row in found["trials"])
    enough = [row["times"] >= 1.2 * (1 - SLACK) and row["bytes"] <= 0.03e6 for row in found["trials"]]
    trained = [bool(row["steps"]) for row in found["trials"]]
    assert not [row for row, able, taught in zip(found["trials"], enough, trained, strict=True) if taught and not able]
    assert any(trained) == any(enough)


def test_a_head_start_that_could_not_be_measured_is_assumed_and_not_kept(desk, monkeypatch, capsys):
    forget(desk, "head start", "search")
    monkeypatch.setattr(entrants, "device_for", lambda *_: (object(), ""))
    monkeypatch.setattr(measure, "measure", lambda *_, **__: ([SimpleNamespace(reasons=("noise",))], []))
    assert desk.shrink(*ASKED) == 0
    assert desk.found()["head_start"]["reason"].startswith("noise: ")
    assert "× (assumed), " in capsys.readouterr().out
    assert not list((desk.folder / "work" / "stages").glob("head start-*"))


def test_what_the_road_refuses_is_no_success(desk, monkeypatch):
    def strict(recipe, target, **named):
        return pipeline.run(msgspec.structs.replace(recipe, limits=Limits(60.0, max_size_mb=1e-5)), target, **named)

    monkeypatch.setattr(search, "run", strict)
    assert desk.shrink(*ASKED) == 1
    assert desk.found()["explanation"][0].startswith("the model that was found does not ship: nearest is ")
    assert not desk.bundle().exists()


@pytest.mark.parametrize(("error", "code"), [(NoSpace("no space"), 3), (DeviceError("gone"), 4)])
def test_a_run_that_fails_for_another_reason_than_a_limit_is_not_called_infeasible(
    desk, monkeypatch, capsys, error, code
):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(pipeline, "packed", failing)
    assert desk.shrink(*ASKED) == code
    told = capsys.readouterr()
    assert f"error: failed: the model that was found does not ship: {error}" in told.err
    assert "infeasible:" not in told.out + told.err


def test_a_model_that_cannot_be_cut_at_all_is_not_called_infeasible(desk, monkeypatch, capsys):
    def broken(*_, **__):
        raise ModelError("planted: this layer cannot be understood")

    monkeypatch.setattr(prune, "plan_pruning", broken)
    assert desk.shrink("--speedup", "1.9", "--max-drop", "60") == 2
    told = capsys.readouterr()
    assert "planted" in told.err
    assert "infeasible" not in told.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "nothing says how small the model must become"),
        (("--speedup", "0.5"), "speedup"),
        (("--speedup", "2", "--budget", "soon"), "'soon' is no budget"),
        (("--speedup", "2", "--device", "abacus"), "no way to reach a device 'abacus'"),
        (("--max-size-mb", "0"), "no model is 0 MB"),
        (("--speedup", "2", "--max-drop", "-1"), "max_drop"),
    ],
)
def test_a_request_that_cannot_be_searched_is_refused_before_any_work(desk, capsys, stages, arguments, complaint):
    assert desk.shrink(*arguments) == 2
    assert complaint in capsys.readouterr().err
    assert stages() == []


def test_a_target_whose_runtime_lacks_its_format_is_refused_before_any_work(desk, capsys, stages):
    odd = desk.write("odd.toml", 'title = "o"\nruntime = "ort"\nformat = "tflite"\narch = "aarch64"\n')
    assert desk.shrink("--speedup", "2", target=str(odd)) == 2
    assert "ort has no format 'tflite'" in capsys.readouterr().err
    assert stages() == []


@pytest.mark.parametrize("name", ["shrunk.toml", "copy.toml"])
def test_a_search_never_overwrites_the_recipe_or_plan_that_it_starts_from(searched, capsys, name):
    own = searched.folder / "out"
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    (own / "copy.toml").write_bytes((own / "shrunk.toml").read_bytes())
    paths = ["--out", str(own), "--workspace", str(searched.folder / "work"), "--target", "linux-arm64"]
    assert main(["shrink", str(own / name), *paths, "--speedup", "2"]) == 2
    assert "which it would overwrite" in capsys.readouterr().err
    (own / "copy.toml").unlink()
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before


def test_a_search_never_removes_the_recipe_that_it_starts_from(desk, capsys):
    own = (desk.folder / "recipe.toml").rename(desk.folder / "shrunk.toml")
    before = own.read_bytes()
    paths = ["--out", str(desk.folder), "--workspace", str(desk.folder / "work"), "--target", "linux-arm64"]
    assert main(["shrink", str(own), *paths, "--speedup", "1000", "--max-drop", "60"]) == 2
    assert "which it would overwrite" in capsys.readouterr().err
    assert own.read_bytes() == before


def test_without_optuna_a_search_is_refused_before_any_work(desk, monkeypatch, capsys, stages):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert desk.shrink("--speedup", "2") == 3
    assert "edgeexport[search]" in capsys.readouterr().err
    assert stages() == []


@pytest.mark.parametrize("minutes", [-1.0, 0.0, float("nan")])
def test_a_budget_of_no_minutes_is_refused_in_python_too(desk, stages, minutes):
    recipe = load_recipe(desk.folder / "recipe.toml")
    with pytest.raises(RequestError, match="is no budget"):
        edgeexport.shrink(recipe, "linux-arm64", limits=Limits(speedup=2.0), budget_minutes=minutes)
    assert stages() == []


def test_an_onnx_source_is_refused(desk):
    recipe = edgeexport.Recipe(edgeexport.ModelSpec(onnx="model.onnx"))
    with pytest.raises(RecipeError, match="not shrunk"):
        edgeexport.shrink(recipe, "linux-arm64", limits=Limits(speedup=2.0), out=desk.folder / "out")


def test_a_budget_is_turned_into_steps_once(desk, monkeypatch):
    monkeypatch.setattr(lessons, "_effort", TIMED)
    assert desk.shrink(*ASKED, "--budget", "3s") == 0
    first = desk.found()
    monkeypatch.setattr(distilling, "time_steps", pytest.fail)
    assert desk.shrink(*ASKED, "--budget", "3s") == 0
    assert desk.found()["rounds"] == first["rounds"]


def test_a_live_network_is_searched_and_what_was_found_is_not_trained_again(tmp_path, stages):
    code = {}
    exec(MODELS.replace("torch.manual_seed(0)", ""), code)
    training = Training(steps=60, batch_size=64, seed=1)
    lesson = Distill(student="auto", speedup=2.0, round_to=8, mixes=("width",), training=Training(batch_size=32))
    recipe = Recipe(
        model=ModelSpec(factory=code["net"], inputs={"image": (1, 1, 8, 8)}),
        data=DataSpec(pool="digits", metric="top1"),
        step=(Train(training=training), lesson, Quantize()),
    )
    limits, paths = Limits(speedup=1.5, max_drop=90.0), {"out": tmp_path / "out", "workspace": tmp_path / "work"}
    found = edgeexport.shrink(recipe, "linux-arm64", limits=limits, device="none", **paths)
    assert [row.status for row in found.trials].count("chosen") == 1
    assert stages().count("source") == 1
    assert stages().count("distill") == sum(each.students for each in found.rounds)


@pytest.mark.parametrize("kept", [True, False])
def test_a_search_under_a_live_teacher_ships_and_writes_no_recipe(desk, searched, monkeypatch, stages, kept):
    def run(*given, **named):
        if not kept:
            forget(desk, "distill")
        return pipeline.run(*given, **named)

    shutil.copytree(searched.folder / "out", desk.folder / "out")
    monkeypatch.setattr(search, "run", run)
    code = {}
    exec(MODELS, code)
    recipe = load_recipe(desk.folder / "recipe.toml")
    train, lesson, quantize = recipe.step
    lesson = msgspec.structs.replace(lesson, mixes=("width",), teacher=ModelSpec(factory=code["net"]))
    recipe = msgspec.structs.replace(recipe, step=(train, lesson, quantize))
    limits, paths = Limits(speedup=1.5, max_drop=99.0), {"out": desk.folder / "out", "workspace": desk.folder / "work"}
    found = edgeexport.shrink(recipe, "linux-arm64", limits=limits, **paths)
    assert found.explanation == ()
    assert found.recipe_file == ""
    assert "no recipe is written: this one has live objects" in found.notes
    assert not list((desk.folder / "out").glob("shrunk.*"))  # nor does an earlier search's stay
    assert stages().count("distill") == sum(each.students for each in found.rounds) + (not kept)


def test_steps_are_timed_anew_under_another_teacher(tmp_path, monkeypatch):
    keys = []
    monkeypatch.setattr(lessons, "stage_key", str)
    monkeypatch.setattr(lessons, "model_key", lambda spec, *_, **__: spec.factory)
    work = SimpleNamespace(path=tmp_path, stage=lambda *_, key, **__: keys.append(key) or SimpleNamespace(record=None))
    recipe = Recipe(model=ModelSpec(factory="m:n", inputs={"x": (1, 3)}))
    road = SimpleNamespace(workspace=work, recipe=recipe, answers="classes", data_key=lambda _: {})
    student = SimpleNamespace(student=SimpleNamespace(plan={}))
    for teacher in (None, ModelSpec(factory="m:small"), ModelSpec(factory="m:large")):
        ground = SimpleNamespace(road=road, last="last", source="source", lesson=Distill(teacher=teacher))
        TIMED(ground, student, students=6, minutes=1.0)
    assert keys[0] != keys[1] != keys[2] != keys[0]
