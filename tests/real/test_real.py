"""The recipes of this folder on real data, with trainings cut short so that CI can run them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgeexport import run, verify
from edgeexport.records.recipe import Prune, Recipe, load_recipe
from edgeexport.records.run import RunRecord
from tests.needs import need

HERE = Path(__file__).parent
pytestmark = [pytest.mark.real, pytest.mark.slow]


def _road(recipe: Recipe, folder: Path, *targets: str) -> RunRecord:
    record = run(recipe, targets, device="none", out=folder / "out", workspace=folder / "work")
    for result in record.targets:
        assert result.bundle, result.nearest_miss
        assert verify(folder / "out" / result.bundle).holds
    return record


def _states(record: RunRecord) -> set[str]:
    return {
        limit.state for result in record.targets for limit in result.verdict.limits if limit.limit == "never_slower"
    }


@pytest.mark.usefixtures("real_data")
def test_a_released_resnet56_is_pruned_retrained_and_quantized_for_onnxruntime_and_litert(tmp_path):
    need("litert")
    recipe = load_recipe(HERE / "resnet56.toml")
    step = recipe.step[0]
    assert isinstance(step, Prune)
    short = msgspec.structs.replace(step, macs=1.1, training=msgspec.structs.replace(step.training, epochs=0.03))
    recipe = msgspec.structs.replace(recipe, step=(short, recipe.step[1]))
    record = _road(recipe, tmp_path, "linux-x86_64-vnni", "raspberry-pi-5-litert")
    names = [rung.name for rung in record.rungs]
    assert names[:2] == ["source", "pruned"]
    for result in record.targets:
        assert result.shipped is not None
        assert "int8" in result.shipped
        assert result.source_score is not None
        assert result.source_score.value == pytest.approx(83.2, abs=1.5)
        assert result.drop is not None
        assert result.drop.value <= 1.0
        assert result.size_ratio is not None
        assert result.size_ratio < 0.35
    assert _states(record) == {"unproven"}


def test_efficientnet_lite0_is_quantized_as_well_as_its_peers_do(tmp_path, real_data):
    record = _road(load_recipe(HERE / "lite0.toml"), tmp_path, "linux-x86_64-vnni")
    result = record.targets[0]
    assert result.shipped == "source int8 minmax"
    assert result.drop is not None
    assert result.drop.agreement is not None
    assert result.drop.agreement > 0.96
    assert result.size_ratio is not None
    assert result.size_ratio < 0.3


def test_a_tabular_scorer_is_trained_quantized_and_packed(tmp_path):
    record = _road(load_recipe(HERE / "fraud.toml"), tmp_path, "linux-arm64")
    result = record.targets[0]
    assert result.score is not None
    assert result.score.unit == "points"
    assert result.score.value > 80
    assert result.shipped is not None
    assert "int8" in result.shipped
