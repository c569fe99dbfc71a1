"""Stages are kept: a second run does nothing, a late change redoes only what depends on it, a killed run goes on."""

from __future__ import annotations

import json
import signal

import pytest

from edgeexport.pipeline.goldens import GOLDENS
from edgeexport.records.base import file_digest
from tests.needs import need
from tests.pipeline.conftest import Desk

SAMPLES = """
from pathlib import Path

import numpy as np


class Pool:
    def __len__(self):
        return 100

    def __getitem__(self, index):
        if index >= 100:
            raise IndexError
        with (Path(__file__).parent / "decoded.txt").open("a") as stream:
            stream.write(f"{{index}}\\n")
        return np.random.default_rng(index).standard_normal((1, 8, 8)).astype(np.float32), {target}


def pool():
    return Pool()
"""
HEAVY = ("torch", "onnx", "onnxruntime")


def _fresh(desk, monkeypatch) -> list[str]:
    """Run, and return the stages that were really made."""
    from edgeexport import pipeline
    from edgeexport.workspace import Workspace

    seen: list[Workspace] = []

    class Watched(Workspace):
        def __enter__(self) -> Workspace:
            seen.append(self)
            return super().__enter__()

    monkeypatch.setattr(pipeline, "Workspace", Watched)
    assert desk.run() == 0
    return seen[0].fresh_stages


def test_a_second_identical_run_does_no_work(desk, monkeypatch):
    assert "quantize" in _fresh(desk, monkeypatch)
    first = file_digest(desk.bundle())
    assert _fresh(desk, monkeypatch) == []
    assert file_digest(desk.bundle()) == first


def test_a_second_identical_run_loads_neither_torch_nor_a_runtime(desk):
    assert desk.run() == 0
    code = (
        "import sys, json; from edgeexport.cli import main; "
        "code = main(sys.argv[1:]); "
        f"print(json.dumps([code, [name for name in {HEAVY!r} if name in sys.modules]]), file=sys.stderr)"
    )
    import subprocess
    import sys

    arguments = ["run", "recipe.toml", "--target", "linux-arm64", "--out", "out", "--workspace", "work"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=desk.folder, capture_output=True, text=True, check=False
    )
    assert json.loads(done.stderr.splitlines()[-1]) == [0, []], done.stderr


def test_a_changed_calibration_method_keeps_the_export(desk, monkeypatch):
    desk.edit("recipe.toml", 'do = "quantize"', 'do = "quantize"\nmethods = ["minmax"]')
    _fresh(desk, monkeypatch)
    desk.edit("recipe.toml", '"minmax"', '"percentile"')
    made = _fresh(desk, monkeypatch)
    assert "quantize" in made
    assert not {"source", "export", "splits"} & set(made)


def test_a_changed_network_redoes_the_road(desk, monkeypatch):
    _fresh(desk, monkeypatch)
    desk.edit("models.py", "torch.manual_seed(0)", "torch.manual_seed(1)")
    assert {"source", "export", "quantize"} <= set(_fresh(desk, monkeypatch))


def test_a_damaged_stage_is_made_again(desk, monkeypatch):
    _fresh(desk, monkeypatch)
    spine = next((desk.folder / "work" / "stages").glob("export-*/spine.onnx"))
    spine.write_bytes(spine.read_bytes()[:-1])
    assert "export" in _fresh(desk, monkeypatch)


@pytest.mark.parametrize("target", ["index % 10", "{'class': index % 10}"])
def test_a_changed_metric_decodes_no_sample_again_unless_its_targets_cannot_be_kept(desk, monkeypatch, target):
    desk.write("samples.py", SAMPLES.format(target=target))
    desk.write("metrics.py", "def m(outputs, targets):\n    return float(len(targets))\n")
    desk.edit("recipe.toml", 'pool = "digits"\nmetric = "agreement"', 'pool = "samples:pool"\nmetric = "metrics:m"')
    desk.edit("recipe.toml", "[[step]]", "[limits]\nmax_drop = 1.0\n\n[[step]]")
    _fresh(desk, monkeypatch)
    (desk.folder / "decoded.txt").unlink()
    desk.edit("metrics.py", "float(len(targets))", "2.0 * len(targets)")
    made = set(_fresh(desk, monkeypatch))
    assert "score" in made
    assert "predict" not in made
    decoded = (desk.folder / "decoded.txt").read_text().split()  # the goldens of the new bundle are, in any case
    assert (len(decoded) > GOLDENS) == target.startswith("{")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> str:
    """The digest of the bundle that a run writes when nothing stops it."""
    desk = Desk(tmp_path_factory.mktemp("undisturbed"))
    assert desk.start().returncode == 0
    return file_digest(desk.bundle())


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("point", [1, 3, 6, 10, 20, 40])
def test_a_run_killed_at_a_rename_goes_on_to_the_same_bytes(desk, undisturbed, point):
    need("strace")
    kill = (
        "strace",
        "-f",
        "-qq",
        "-e",
        "trace=rename",
        "-e",
        f"inject=rename:signal=KILL:when={point}",
        "-o",
        "/dev/null",
    )
    desk.start(before=kill)
    done = desk.start()
    assert done.returncode == 0, done.stderr
    assert not list((desk.folder / "work" / "tmp").iterdir())
    assert not list((desk.folder / "out").glob("*.tmp"))
    assert file_digest(desk.bundle()) == undisturbed


KILLING = """
import os
import signal
from pathlib import Path

from edgeexport.training import unfinished

HERE = Path(__file__).parent
unfinished.SAVE_SECONDS = unfinished.SAVE_RATIO = 0.0


def seen(batch, generator):
    with (HERE / "steps.txt").open("a") as stream:
        stream.write("step\\n")
    if (HERE / "armed").exists() and len((HERE / "steps.txt").read_text().split()) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch
"""


@pytest.mark.faults
def test_a_run_killed_while_it_trains_goes_on_at_the_step_it_was_in(desk):
    desk.write("learning.py", KILLING)
    train = '[[step]]\ndo = "train"\ntraining = { steps = 10, learning_rate = 0.02, augment = "learning:seen" }\n'
    desk.edit("recipe.toml", "[[step]]", train + "\n[[step]]")
    desk.write("armed", "")
    assert desk.start("--device", "none").returncode == -signal.SIGKILL
    (desk.folder / "armed").unlink()
    done = desk.start("--device", "none")
    assert done.returncode == 0, done.stderr
    assert len((desk.folder / "steps.txt").read_text().split()) == 6 + 5  # the step that was cut is taken again
    assert not list((desk.folder / "work" / "unfinished").glob("source-*"))
