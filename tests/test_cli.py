"""The command line's own promises: readers that go away, and `--debug` wherever it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeexport.cli import main
from tests.needs import ROOT

TALK = """
import sys
from edgeexport.terminal import Display
sys.stdin.read()
with Display() as display:
    for number in range(20):
        display(f"step {number}", 0.5)
sys.stdout.write("worked to the end")
"""
RESULT = """
import sys
from pathlib import Path
from edgeexport.terminal import show_run
from tests.report.samples import sample_run
sys.stdin.read()
show_run(sample_run(), Path("out"), as_json={as_json})
"""


def _unread(command: list[str], stream: str) -> tuple[int, str, str]:
    """Run a command whose `stream` has lost its reader; return exit code and what the other streams got."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    read, write = os.pipe()
    os.close(read)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: write}
    try:
        done = subprocess.run(
            command, input="", text=True, env=environment, check=False, timeout=60, cwd=ROOT, **streams
        )
    finally:
        os.close(write)
    return done.returncode, done.stdout or "", done.stderr or ""


def test_the_work_goes_on_when_nobody_reads_the_progress() -> None:
    assert _unread([sys.executable, "-c", TALK], "stderr") == (0, "worked to the end", "")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_run_that_nobody_reads_the_result_of_ends_well(as_json: bool) -> None:
    assert _unread([sys.executable, "-c", RESULT.format(as_json=as_json)], "stdout") == (0, "", "")


@pytest.mark.parametrize("arguments", [("targets",), ("targets", "--json")])
def test_a_verb_that_nobody_reads_ends_well(arguments: tuple[str, ...]) -> None:
    assert _unread([sys.executable, "-m", "edgeexport", *arguments], "stdout") == (0, "", "")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_may_stand_anywhere(place: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["targets", "--json"]
    arguments.insert(place, "--debug")
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("[")


def test_debug_after_the_verb_shows_the_traceback_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tmp_path / "none.toml"), "--target", "linux-arm64", "--debug"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "error: " in told


def test_a_recipe_is_not_inspected_for_a_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.toml").write_text("", encoding="utf-8")
    assert main(["inspect", str(tmp_path / "recipe.toml"), "--target", "linux-arm64"]) == 2
    assert "--target" in capsys.readouterr().err


def test_debug_behind_a_double_dash_is_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--", "--debug"]) == 2
    assert "--debug" in capsys.readouterr().err


RECIPE = """
[model]
factory = "models:f"
inputs = { image = [1, 3, 32, 32] }
[[step]]
do = "quantize"
"""


def test_what_is_in_force_is_written_as_toml_and_needs_no_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.toml").write_text(RECIPE, encoding="utf-8")
    assert main(["explain", str(tmp_path / "r.toml")]) == 0
    alone = capsys.readouterr().out
    assert "# onnx is not set" in alone
    assert "inputs = { image = [1, 3, 32, 32] }" in alone
    assert 'methods = ["minmax", "percentile", "entropy", "mse"]' in alone
    assert main(["explain", str(tmp_path / "r.toml"), "--target", "linux-arm64"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(alone.rstrip("\n"))
    assert "per_channel = true" in told
    assert not [line for line in told.splitlines() if "None" in line or "Path(" in line or line.count("'") > 1]


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(60)], ids=["empty", "text", "another zip"])
def test_a_file_that_never_was_a_bundle_is_a_wrong_request(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.bundle"
    path.write_bytes(content)
    assert main(["verify", str(path)]) == 2
    told = capsys.readouterr()
    assert "this is no bundle" in told.err
    assert told.out == ""


@pytest.mark.parametrize("place", [0, 30, 36, 60, 200])
def test_a_bundle_that_was_damaged_is_a_difference_wherever(place: int, tmp_path: Path) -> None:
    content = bytearray((ROOT / "tests/bundles/released/v1/tiny.bundle").read_bytes())
    content[place] ^= 1
    (tmp_path / "x.bundle").write_bytes(content)
    assert main(["verify", str(tmp_path / "x.bundle")]) == 1
    (tmp_path / "cut.bundle").write_bytes(content[: place + 4] if place else content[:0] + b"PK\x03\x04")
    assert main(["verify", str(tmp_path / "cut.bundle")]) == 1


def test_make_says_what_it_does_before_every_long_silence() -> None:
    """The set-up downloads gigabytes with pip's own talk turned off."""
    said = subprocess.run(
        ["make", "-n", "-B", "venv", "VENV=none"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    silent = [index for index, line in enumerate(said) if "--quiet" in line]
    assert len(silent) == 2
    assert all(said[index - 1].startswith('echo "make: set-up, ') and "GB" in said[index - 1] for index in silent)
