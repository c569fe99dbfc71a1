"""A search that ends in seconds: a tiny residual network on the embedded digits, a few steps for each student."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeexport import pipeline, search
from edgeexport.cli import main
from edgeexport.records.shrink import Effort
from edgeexport.search import entrants, lessons
from edgeexport.workspace import Workspace
from tests.pipeline.conftest import Desk, unemulated
from tests.pipeline.residual import MODELS, TRAIN

__all__ = ["unemulated"]

LESSON = """
[[step]]
do = "distill"
student = "auto"
speedup = 2.0
round_to = 8
mixes = ["width", "depth"]
training = { batch_size = 32, learning_rate = 0.02 }
"""
QUANTIZE = '\n[[step]]\ndo = "quantize"\n'
ASKED = ("--speedup", "1.5", "--max-drop", "60")


class SearchDesk(Desk):
    """A folder with a recipe, and `edgeexport shrink` started in it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.write("models.py", MODELS)
        self.edit("recipe.toml", '"agreement"', '"top1"')
        self.edit("recipe.toml", QUANTIZE, TRAIN + LESSON + QUANTIZE)

    def shrink(self, *arguments: str, target: str = "linux-arm64") -> int:
        """`edgeexport shrink recipe.toml` in this process; return its exit code."""
        paths = ["--out", str(self.folder / "out"), "--workspace", str(self.folder / "work")]
        return main(["shrink", str(self.folder / "recipe.toml"), "--target", target, *paths, *arguments])

    def found(self) -> Any:
        """The record of the search."""
        return json.loads((self.folder / "out" / "shrink.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def few_steps() -> Iterator[None]:
    """How many steps a budget allows is fixed, since wall time is not; students are cut for the goal alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entrants, "FACTORS", (1.0,))
        patch.setattr(lessons, "_effort", lambda *_, **__: Effort(200))
        yield


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> SearchDesk:
    """A finished search; its folder is for reading."""
    desk = SearchDesk(tmp_path_factory.mktemp("searched"))
    assert desk.shrink(*ASKED) == 0
    return desk


@pytest.fixture
def desk(searched: SearchDesk, tmp_path: Path) -> SearchDesk:
    """The same request in a folder of its own, with the stages of the finished search."""
    shutil.copytree(searched.folder / "work", tmp_path / "work")
    return SearchDesk(tmp_path)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The names of the stages that were really made, over all workspaces of a test."""
    seen: list[Workspace] = []

    class Watched(Workspace):
        def __enter__(self) -> Workspace:
            seen.append(self)
            return super().__enter__()

    monkeypatch.setattr(search, "Workspace", Watched)
    monkeypatch.setattr(pipeline, "Workspace", Watched)
    return lambda: [name for work in seen for name in work.fresh_stages]
