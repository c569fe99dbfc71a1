"""The README can fail: its commands run or are excused by name, its blocks parse and run, nothing is left out."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import edgeexport
from edgeexport.cli import commands as cli
from edgeexport.cli import main
from edgeexport.errors import RecipeError
from edgeexport.records.recipe import Recipe
from tests import readme
from tests.needs import ROOT, need
from tests.pipeline.conftest import Desk

TEXT = readme.README.read_text(encoding="utf-8")
NOT_RUN = {
    "make demo": "tests/benchmarks/demo.py runs the demo",
    "make test": "it is what runs this test",
    "edgeexport run tests/real/resnet56.toml --target linux-x86_64-vnni --target raspberry-pi-5 "
    "--target raspberry-pi-5-litert": "trains on real data for minutes",
    "python -m tests.benchmarks demo": "a benchmark, not a test",
}
RUN = ("python -m tests.benchmarks --list",)
# Commands on the reader's own recipe and bundle are run on the tiny ones of `made`.
RUN_ON_TINY = (
    "edgeexport run recipe.toml --target raspberry-pi-5 --target android-arm64-litert",
    "edgeexport verify edgeexport-out/raspberry-pi-5.bundle",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the quick start's `run` was done with a tiny recipe."""
    need("torch")
    need("litert")
    folder = tmp_path_factory.mktemp("readme")
    Desk(folder)
    done = started(RUN_ON_TINY[0], folder)
    assert done.returncode == 0, done.stderr
    (folder / "stderr.txt").write_text(done.stderr, encoding="utf-8")
    return folder


def started(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the README with this Python."""
    words = shlex.split(command.removeprefix("python -m "))
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )


def test_every_command_is_run_or_excused() -> None:
    assert readme.unaccounted(readme.commands(TEXT), NOT_RUN, RUN, RUN_ON_TINY) == []


def test_a_command_that_nobody_runs_is_found() -> None:
    text = "```sh\nmake demo  # a comment\nedgeexport fly\n```\n"
    found = readme.unaccounted(readme.commands(text), {"make demo": "", "gone": ""})
    assert found == ["not run and not excused: edgeexport fly", "not in the README: gone"]


@pytest.mark.parametrize("command", RUN)
def test_commands_of_the_clone_run(command: str) -> None:
    done = started(command, ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_quick_start_packs_a_bundle_for_each_target(made: Path) -> None:
    names = {path.name for path in (made / "edgeexport-out").iterdir()}
    assert {"raspberry-pi-5.bundle", "android-arm64-litert.bundle", "report.html", "run.json"} <= names


def test_the_quick_start_verifies_its_bundle(made: Path) -> None:
    done = started(RUN_ON_TINY[1], made)
    assert done.returncode == 0
    assert "is what was packed" in done.stdout


def test_a_run_says_its_steps_as_sentences_and_runtimes_say_nothing(made: Path) -> None:
    lines = (made / "stderr.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r" *\d+\.\d s  [a-z]+ [^:]+(: .+)?", line)] == []
    assert [line.split(" s  ", 1)[1] for line in lines[:2]] == ["read and split the samples", "export source"]


@pytest.mark.parametrize("command", [["--help"], ["targets"], ["doctor"], *[[name, "--help"] for name in cli.commands]])
def test_cheap_commands_run(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("block", readme.blocks(TEXT, "toml"))
def test_every_toml_block_is_a_recipe_or_a_target(block: str) -> None:
    readme.parsed(block)


def test_the_quick_start_recipe_can_be_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = next(block for block in readme.blocks(TEXT, "toml") if isinstance(readme.parsed(block), Recipe))
    (tmp_path / "recipe.toml").write_text(block, encoding="utf-8")
    assert main(["explain", str(tmp_path / "recipe.toml"), "--target", "raspberry-pi-5"]) == 0
    assert "max_size_mb = 4.0" in capsys.readouterr().out


@pytest.mark.parametrize("block", ["[model]\nfactory = 'm:f'\nweight = 'typo'", "title = 'no runtime'"])
def test_a_toml_block_that_is_neither_is_refused(block: str) -> None:
    with pytest.raises(RecipeError):
        readme.parsed(block)


@pytest.mark.parametrize("block", readme.blocks(TEXT, "python"))
def test_every_python_block_runs(block: str, tmp_path: Path) -> None:
    need("torch")
    done = run_python(block, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" True\n")


def test_a_python_block_that_fails_is_seen(tmp_path: Path) -> None:
    assert run_python("import edgeexport\nedgeexport.fly()", tmp_path).returncode == 1


def run_python(block: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", block], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )


def test_every_verb_and_option_is_documented() -> None:
    cli.name = "edgeexport"
    assert list(readme.undocumented(cli, TEXT)) == []


def test_an_undocumented_verb_or_option_is_found() -> None:
    @click.group(name="tool", help="A tool.")
    def tool() -> None: ...

    @tool.command(help="Fly.")
    @click.option("--high")
    def fly() -> None: ...

    @tool.command()
    def sink() -> None: ...

    assert list(readme.undocumented(tool, "`tool sink`")) == [
        "fly: not in the README",
        "fly --high: neither in the README nor explained by --help",
        "sink: no help",
    ]
    assert list(readme.undocumented(tool, "`tool sink` `tool fly` --high")) == ["sink: no help"]


def test_every_public_function_of_the_package_is_in_the_readme() -> None:
    functions = [name for name in dir(edgeexport) if name.islower() and not name.startswith(("_", "load_"))]
    assert [name for name in functions if f"`{name}(" not in TEXT and f"edgeexport.{name}(" not in TEXT] == []


def test_the_table_of_targets_is_current() -> None:
    assert readme.renewed(TEXT) == TEXT, "run `python -m tests.readme --write`"


def test_a_stale_table_is_found_and_a_missing_marker_refused() -> None:
    stale = TEXT.replace("| `linux-arm64` |", "| `linux-arm32` |")
    assert stale != TEXT
    assert readme.renewed(stale) == TEXT
    with pytest.raises(ValueError, match="README has no"):
        readme.renewed(TEXT.replace(readme.END, ""))


def test_the_readme_is_short() -> None:
    assert len(TEXT.splitlines()) <= 360
