from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeexport.data import data_identity
from edgeexport.errors import DataError
from edgeexport.records.base import digest, file_digest
from edgeexport.records.recipe import Preprocess, Recipe
from tests.data.conftest import MakeRecipe, pictures, write_zip


def key(recipe: Recipe) -> str:
    return digest(data_identity(recipe, file_digest))


def test_the_same_data_has_the_same_key_and_changed_files_another(tmp_path: Path, recipe: MakeRecipe) -> None:
    chosen = recipe(pool="p.zip")
    write_zip(tmp_path / "p.zip", pictures("p", range(4)))
    before = key(chosen)
    assert key(chosen) == before
    write_zip(tmp_path / "p.zip", pictures("p", range(5)))
    assert key(chosen) != before


def test_user_code_is_read_not_run(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "own.py").write_text("import more\nraise SystemExit('imported')\n")
    (tmp_path / "more.py").write_text("x = 1\n")
    chosen = recipe(pool="own:f")
    before = key(chosen)
    (tmp_path / "more.py").write_text("x = 2\n")
    assert key(chosen) != before


def test_declared_files_and_classes_count(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "own.py").write_text("")
    (tmp_path / "a.csv").write_text("1")
    (tmp_path / "c.txt").write_text("cat")
    chosen = recipe(pool="own:f", files=("a.csv",), classes="c.txt")
    seen = {key(chosen)}
    for name in ("a.csv", "c.txt"):
        (tmp_path / name).write_text("2")
        seen.add(key(chosen))
    assert len(seen) == 3


@pytest.mark.parametrize("change", [{"seed": 1}, {"calibration_count": 5}, {"split": (0.1, 0.1, 0.8)}])
def test_choices_count(recipe: MakeRecipe, change: dict[str, Any]) -> None:
    assert key(recipe(pool="digits")) != key(recipe(pool="digits", **change))


def test_preprocessing_counts(recipe: MakeRecipe) -> None:
    assert key(recipe(pool="digits")) != key(recipe(pool="digits", preprocess=Preprocess(scale=0.5)))


def test_a_folder_is_known_by_names_sizes_and_times(tmp_path: Path, recipe: MakeRecipe) -> None:
    path = tmp_path / "p" / "cat" / "1.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    seen = {key(recipe(pool="p"))}
    os.utime(path, ns=(1, 1))
    seen.add(key(recipe(pool="p")))
    path.rename(path.with_name("2.png"))
    seen.add(key(recipe(pool="p")))
    assert len(seen) == 3


def test_live_samples_are_known_by_content(recipe: MakeRecipe) -> None:
    rows = [(np.zeros(2), 0), (np.ones(2), 1)]
    assert key(recipe(pool=rows)) == key(recipe(pool=list(rows)))
    assert key(recipe(pool=rows)) != key(recipe(pool=rows[::-1]))


@pytest.mark.parametrize("other", [2, "cat", [1, 2], {"boxes": np.eye(2)}, np.float32(2), None], ids=repr)
def test_live_samples_are_known_by_their_targets_too(recipe: MakeRecipe, other: object) -> None:
    first, second = np.zeros(2), np.ones(2)
    before, relabelled = [(first, 0), (second, 1)], [(first, 0), (second, other)]
    assert key(recipe(pool=relabelled)) == key(recipe(pool=list(relabelled)))
    assert key(recipe(pool=before)) != key(recipe(pool=relabelled))


def test_one_changed_value_in_a_long_target_counts(recipe: MakeRecipe) -> None:
    mask, other = np.zeros((2, 5000))
    other[2500] = 1
    assert repr(mask) == repr(other)
    assert key(recipe(pool=[(np.zeros(2), mask)])) != key(recipe(pool=[(np.zeros(2), other)]))


@pytest.mark.parametrize("fields", [{"pool": "no.zip"}, {"pool": "digits", "files": ("no.csv",)}])
def test_missing_files_are_named(recipe: MakeRecipe, fields: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"no\.(zip|csv): no such file"):
        key(recipe(**fields))


def test_the_room_loads_neither_numpy_nor_pillow() -> None:
    code = "import sys, edgeexport.data; assert not {'numpy', 'PIL', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
