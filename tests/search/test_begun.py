"""A search on a machine where no measurement is valid: once its trainings have begun, it goes on from where it was."""

from __future__ import annotations

import shutil

import pytest

from edgeexport.compression import distill as distilling
from edgeexport.pipeline import students as cutting
from edgeexport.records.shrink import HeadStart
from edgeexport.search import entrants
from tests.search.conftest import ASKED, SearchDesk

pytestmark = pytest.mark.slow


@pytest.fixture
def noisy(tmp_path, monkeypatch):
    """A request where every head start is another one; what was done, and the numbers of trainings that are stopped."""
    done, stops, cut, train = [], [], cutting._cutting, distilling.train

    def started(*_):
        done.append("start")
        return HeadStart(1 + done.count("start") / 50, "predicted", 10**6, "noise")

    def cutting_again(*given):
        done.append("cut")
        return cut(*given)

    def stopping(*given, **named):
        done.append("train")
        if done.count("train") in stops:
            raise KeyboardInterrupt
        return train(*given, **named)

    for module in (entrants, cutting):
        monkeypatch.setattr(module, "device_for", lambda *_: (object(), ""))
    monkeypatch.setattr(
        cutting._Cutting, "_measured", lambda _, known, **__: (known, "the measurement is invalid: noise")
    )
    monkeypatch.setattr(entrants, "_started", started)
    monkeypatch.setattr(cutting, "_cutting", cutting_again)
    monkeypatch.setattr(distilling, "train", stopping)
    return SearchDesk(tmp_path), done, stops


def test_a_search_whose_training_was_stopped_goes_on_with_the_students_it_had(noisy):
    desk, done, stops = noisy
    stops.append(2)
    assert desk.shrink(*ASKED) == 130
    assert done == ["start", "cut", "train", "train"]
    assert desk.shrink(*ASKED) == 0
    assert desk.found()["head_start"]["times"] == 1.02
    trainings = sum(each["students"] for each in desk.found()["rounds"])
    assert done == ["start", "cut", *["train"] * (trainings + 1)]
    # Once over, it is not started anew either; one with other goals is.
    before = len(done)
    assert desk.shrink(*ASKED) == 0
    assert done[before:] == []
    stops.append(trainings + 2)
    assert desk.shrink("--speedup", "1.6", "--max-drop", "60") == 130
    assert done[before:] == ["start", "cut", "train"]


def test_so_does_the_training_for_less_than_was_asked_for(noisy):
    desk, done, _ = noisy
    desk.edit("recipe.toml", "learning_rate = 0.02 }", "learning_rate = 1e-9 }")
    asked = ("--speedup", "4", "--max-drop", "0")
    assert desk.shrink(*asked) == 1
    before, kept = len(done), (desk.folder / "work" / "stages").glob("distill-*")
    assert done.count("cut") == 2
    shutil.rmtree(max(kept, key=lambda each: each.stat().st_mtime))
    assert desk.shrink(*asked) == 1
    assert done[before:] == ["train"]
