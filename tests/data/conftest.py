"""Tiny recipes and pictures that the tests of this folder share."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeexport.records.artifact import Signature, TensorSpec
from edgeexport.records.recipe import DataSpec, ModelSpec, Preprocess, Recipe

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def recipe(tmp_path: Path) -> MakeRecipe:
    """Make a recipe in the test's folder from `data` fields."""

    def make(*, preprocess: Preprocess | str | None = None, **data: Any) -> Recipe:
        return Recipe(
            model=ModelSpec(onnx="m.onnx"), data=DataSpec(**data), preprocess=preprocess, folder=str(tmp_path)
        )

    return make


def picture(seed: int, size: tuple[int, int] = (6, 5), form: str = "PNG") -> bytes:
    """An encoded picture of seeded noise, `size` = (height, width)."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def pictures(prefix: str, seeds: range) -> dict[str, bytes]:
    """Members `<prefix>/<cat|dog>/NN.png`, one picture a seed."""
    return {f"{prefix}/{'cat' if seed % 2 else 'dog'}/{seed:02}.png": picture(seed) for seed in seeds}


def signature(*shape: int | str, dtype: str = "float32", name: str = "x") -> Signature:
    return Signature((TensorSpec(name, dtype, shape),), ())
