"""A run without a board: what emulation finds decides what ships, and its absence is said."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from edgeexport.pipeline import emulating
from edgeexport.records.emulation import EmulatedRun, EmulationRecord
from tests.needs import need
from tests.pipeline.conftest import Desk

INSTALLED = os.environ.get("EDGEEXPORT_DEVICES")  # before `unemulated` hides it
# Only one emulated CPU is like this one.
PHONE = """
title = "A phone of 2019"
runtime = "ort"
format = "onnx"
arch = "aarch64"
features = ["asimd", "asimddp"]
lacks = ["i8mm"]
"""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    if INSTALLED is None:
        monkeypatch.delenv("EDGEEXPORT_DEVICES")
    else:
        monkeypatch.setenv("EDGEEXPORT_DEVICES", INSTALLED)
    need("emulated")


def _shipped(desk: Desk) -> dict[str, Any]:
    record = json.loads((desk.folder / "out" / "run.json").read_text())
    (found,) = [rung for rung in record["rungs"] if rung["status"] == "shipped"]
    return dict(found)


def _run(desk: Desk, *arguments: str) -> int:
    return desk.run(*arguments, target=str(desk.write("phone.toml", PHONE)))


def test_what_ships_was_run_on_an_emulated_cpu_and_counted(installed: None, tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert _run(desk) == 0
    rung = _shipped(desk)
    (run,) = rung["emulation"]["runs"]
    assert (rung["form"], run["device"], run["holds"]) == ("int8", "emulated:armv8.2", True)
    assert run["counts"]["dot_product"] > 0
    assert any("agrees with this machine" in note for note in rung["notes"])
    made = sorted((tmp_path / "work" / "stages").glob("emulate-*"))
    assert len(made) == 1
    assert _run(desk) == 0
    assert sorted((tmp_path / "work" / "stages").glob("emulate-*")) == made


def test_a_file_that_computes_something_else_there_does_not_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need("torch")
    run = EmulatedRun("emulated:armv8.2", "cortex-a76", "1", holds=False, reason="10 of 10 values are NaN or Inf")
    red = EmulationRecord("phone", "sha256:0", holds=False, reason=f"{run.device}: {run.reason}", runs=(run,))
    monkeypatch.setattr(emulating, "not_validated", lambda *_: red)
    desk = Desk(tmp_path)
    assert _run(desk) == 1
    assert not list((tmp_path / "out").glob("*.bundle"))
    assert "emulated:armv8.2: 10 of 10 values are NaN or Inf" in capsys.readouterr().out
    # Neither is a remedy tried that is for what a form loses: it lost nothing.
    rungs = json.loads((tmp_path / "out" / "run.json").read_text())["rungs"]
    refused = [rung["form"] for rung in rungs if run.reason in rung["reason"]]
    assert refused == ["int8", "fp32"]


def test_without_emulated_cpus_a_run_ships_and_says_that_nothing_was_validated(tmp_path: Path) -> None:
    need("torch")
    desk = Desk(tmp_path)
    assert _run(desk) == 0
    note = "not validated under emulation: run `edgeexport devices install emulated`"
    assert note in _shipped(desk)["notes"]


def test_device_none_asks_for_no_emulation(tmp_path: Path) -> None:
    need("torch")
    desk = Desk(tmp_path)
    assert _run(desk, "--device", "none") == 0
    assert _shipped(desk)["emulation"] is None
