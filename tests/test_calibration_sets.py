from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgeexport.data import open_samples, resolve_preprocess
from edgeexport.errors import DataError, RecipeError
from edgeexport.records.base import file_digest
from edgeexport.records.calibration import calibration_names, load_calibration_set
from edgeexport.records.recipe import DataSpec, ModelSpec, Recipe

FOLDER = Path(__file__).parents[1] / "calibration"


def recipe(folder: Path = FOLDER, **fields: object) -> Recipe:
    return Recipe(model=ModelSpec(onnx="m.onnx"), folder=str(folder), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", calibration_names())
def test_every_set_reads_and_what_it_embeds_is_what_it_says(name: str) -> None:
    found, _ = load_calibration_set(name)
    assert found.title
    assert found.preprocess is not None
    if found.source:
        assert found.licence
        assert found.citation
        assert file_digest(FOLDER / found.source) == found.digest
        assert len(open_samples(name, recipe())) == found.count


def test_the_digits_are_the_uci_test_digits() -> None:
    samples = open_samples("digits", recipe())
    images = np.stack([samples[i][0] for i in range(len(samples))])
    labels = np.array([samples[i][1] for i in range(len(samples))])
    assert images.shape == (1797, 8, 8, 1)
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 16)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (FOLDER / "digits.npz").stat().st_size < 100_000


@pytest.mark.parametrize("place", [100, 20_000, -100])
def test_a_changed_byte_is_noticed(tmp_path: Path, place: int) -> None:
    shutil.copy(FOLDER / "digits.toml", tmp_path)
    content = bytearray((FOLDER / "digits.npz").read_bytes())
    content[place] ^= 1
    (tmp_path / "digits.npz").write_bytes(content)
    with pytest.raises(DataError, match="its TOML says"):
        open_samples("digits.toml", recipe(tmp_path))


def test_a_wrong_count_is_noticed(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "digits.npz", tmp_path)
    (tmp_path / "digits.toml").write_text((FOLDER / "digits.toml").read_text().replace("1797\n", "1798\n"))
    with pytest.raises(DataError, match="holds 1797 samples, its TOML says 1798"):
        open_samples("digits.toml", recipe(tmp_path))


def test_a_missing_embedded_file_is_named(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "digits.toml", tmp_path)
    with pytest.raises(DataError, match=r"digits\.npz is not readable"):
        open_samples("digits.toml", recipe(tmp_path))


def test_preprocessing_comes_from_the_name_then_from_the_set() -> None:
    named = resolve_preprocess(recipe(preprocess="cifar10", data=DataSpec(pool="digits")))
    assert named is not None
    assert named.std == (0.229, 0.224, 0.225)
    implied = resolve_preprocess(recipe(data=DataSpec(pool="digits")))
    assert implied is not None
    assert implied.scale == 1 / 16
    assert resolve_preprocess(recipe()) is None


def test_an_unknown_preprocessing_is_refused() -> None:
    with pytest.raises(RecipeError, match="cifar11"):
        resolve_preprocess(recipe(preprocess="cifar11"))
