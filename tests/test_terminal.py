from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from edgeexport import terminal
from edgeexport.progress import details
from edgeexport.terminal import Display, show_run
from tests.report.samples import sample_run


def told(capsys: pytest.CaptureFixture[str], *texts: str) -> list[str]:
    with Display() as display:
        for text in texts:
            display(text, 0.5)
    return [re.sub(r"^ *\d+\.\d s  ", "", line) for line in capsys.readouterr().err.splitlines()]


def test_every_step_is_one_line_and_its_details_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    texts = ("export source", ": export with dynamo", ": ort: a.onnx to .ort", "score source", "score source: 3 of 4")
    assert told(capsys, *texts) == ["export source", "score source"]


def test_a_long_step_shows_signs_of_life(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "QUIET_SECONDS", 0.0)
    assert told(capsys, "train", ": step 3/9, loss 0.1, 0:05 left") == ["train", "train: step 3/9, loss 0.1, 0:05 left"]


def test_a_device_keeps_its_whole_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "bench on adb://TEST0001", ": round 1 of 6") == ["bench on adb://TEST0001"]


def test_details_belong_to_the_step_told_last(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(terminal, "QUIET_SECONDS", 0.0)
    with Display() as display:
        inner = details(display)
        for step in ("one", "two"):
            display(step, None)
            inner("half", 0.5)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" s  ")[1] for line in lines] == ["one", "one: half", "two", "two: half"]


def test_brackets_in_a_step_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "export [red]x[/red] [bold") == ["export [red]x[/red] [bold"]


def test_results_in_a_pipe_are_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show_run(sample_run(), Path("out"), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("at least 10 dB are asked for; see layer3.0.relu") for line in lines)
    assert "report  out/report.html" in lines
    assert "drop [95 %]" in lines[0]


@pytest.mark.parametrize("width", [80, 100])
def test_results_on_a_terminal_fit_it(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    monkeypatch.setattr(terminal, "console", lambda: Console(width=width, force_terminal=True, color_system=None))
    show_run(sample_run(), Path("out"), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.startswith("    ") and "asked for" in line for line in lines)
