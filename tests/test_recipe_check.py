"""`edgeexport inspect recipe.toml`: the samples of a recipe looked at by the road that a run takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeexport.cli import main

MODELS = """
from torch import nn


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 256, 4))
"""
RECIPE = """
[model]
factory = "models:net"
inputs = {{ image = [1, 3, 16, 16] }}

[data]
pool = "samples.npz"
split = [0.6, 0.2, 0.2]
metric = "agreement"
{preprocess}
[[step]]
do = "quantize"
"""
SCALED = """
[preprocess]
scale = 0.00784313725490196
mean = [1.0]
std = [0.5]
layout = "as-is"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe whose samples are pixels, one of them blank."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", inputs=pixels)
    (tmp_path / "models.py").write_text(MODELS, encoding="utf-8")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(preprocess=SCALED), encoding="utf-8")
    return path


def inspected(recipe: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["inspect", str(recipe), "--workspace", str(recipe.parent / "work"), *flags]) == 0
    return capsys.readouterr().out


def test_good_samples_are_said_to_be_good_and_enough(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(inspected(recipe, capsys, "--json"))
    assert record["check"]["findings"] == []
    assert record["check"]["count"] == 36
    assert record["convergence"]["enough"] in {2, 4, 9, 18}
    assert "samples would have done" in inspected(recipe, capsys)


def test_forgotten_preprocessing_is_told(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(RECIPE.format(preprocess=""), encoding="utf-8")
    assert "raw 8-bit pixels" in inspected(recipe, capsys)


def test_an_untrained_model_has_no_ranges_to_judge(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = RECIPE.format(preprocess=SCALED).replace('metric = "agreement"', 'metric = "mse"')
    recipe.write_text(text.replace("[[step]]", '[[step]]\ndo = "train"\n\n[[step]]'), encoding="utf-8")
    samples = np.load(recipe.parent / "samples.npz")["inputs"]
    np.savez(recipe.parent / "samples.npz", inputs=samples, targets=np.zeros((60, 4), np.float32))
    assert "trains the model first" in inspected(recipe, capsys)
