"""A request small enough to take the whole road in a few seconds: a tiny network on the embedded digits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeexport.cli import main
from edgeexport.training import unfinished
from edgeexport.training.stepping import Stepper

MODELS = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 64, 10),
    )
"""

RECIPE = """
[model]
factory = "models:net"
inputs = { image = [1, 1, 8, 8] }

[data]
pool = "digits"
metric = "agreement"

[[step]]
do = "quantize"
"""


@pytest.fixture(scope="module", autouse=True)
def unemulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No emulated CPUs, which would make every run seconds longer; test_emulating.py has its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEEXPORT_DEVICES", str(tmp_path_factory.mktemp("no-devices")))
        yield


class Desk:
    """A folder with a recipe and its models, and the command line started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("models.py", MODELS)
        self.write("recipe.toml", RECIPE)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the recipe's folder."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def edit(self, name: str, before: str, after: str) -> None:
        """Replace text in a file; the text must be there."""
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert before in text
        path.write_text(text.replace(before, after), encoding="utf-8")

    def run(self, *arguments: str, target: str = "linux-arm64") -> int:
        """`edgeexport run recipe.toml` in this process; return its exit code."""
        paths = ["--out", str(self.folder / "out"), "--workspace", str(self.folder / "work")]
        return main(["run", str(self.folder / "recipe.toml"), "--target", target, *paths, *arguments])

    def start(self, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """The same in a process of its own, behind `before` (strace and its options, say)."""
        command = [*before, sys.executable, "-m", "edgeexport", "run", "recipe.toml", "--target", "linux-arm64"]
        paths = ["--out", "out", "--workspace", "work"]
        return subprocess.run(
            [*command, *paths, *arguments], cwd=self.folder, capture_output=True, text=True, check=False, timeout=300
        )

    def record(self) -> Any:
        """The JSON twin of the report."""
        return json.loads((self.folder / "out" / "run.json").read_text(encoding="utf-8"))

    def bundle(self, target: str = "linux-arm64") -> Path:
        """Where the bundle of a target lies."""
        return self.folder / "out" / f"{target}.bundle"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A fresh folder with the tiny request."""
    return Desk(tmp_path)


@pytest.fixture
def second_step_stops(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The numbers of the training steps that were begun; the second one is stopped, once."""
    step, done, stops = Stepper.step, list[Any](), [1]

    def stopping(self: Stepper, batches: Any, number: int, *, rate: float) -> Any:
        done.append(number)
        if number in stops:
            stops.clear()
            raise KeyboardInterrupt
        return step(self, batches, number, rate=rate)

    monkeypatch.setattr(Stepper, "step", stopping)
    return done


@pytest.fixture
def saving_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training keeps its state after every step."""
    monkeypatch.setattr(unfinished, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(unfinished, "SAVE_RATIO", 0.0)
