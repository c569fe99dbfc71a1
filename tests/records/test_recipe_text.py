"""A recipe that is written down is read back as the same one."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgeexport.errors import RecipeError
from edgeexport.records.recipe import DataSpec, Distill, InputSpec, Limits, ModelSpec, Prune, Recipe, load_recipe
from edgeexport.records.recipe_text import LIVE, recipe_toml

TEXT = """
preprocess = { scale = 0.5, mean = [0.1, 0.2], resize = { shorter = 8 }, layout = "CHW" }
[model]
factory = "models:f"
weights = "${HERE:-there}/w.pth"
inputs = { "a.1" = [1, 3, 8, 8], ids = { shape = [1, 6], dtype = "int64" } }
[data]
pool = "digits"
metric = "top1"
seed = 3
[limits]
max_drop = 0.5
speedup = 3.0
[[step]]
do = "train"
training = { steps = 5, augment = "crop-flip" }
[[step]]
do = "distill"
student = { factory = "models:small" }
layers = { one = "other" }
method = "hint"
[[step]]
do = "prune"
macs = 2.0
distil = false
[[step]]
do = "quantize"
methods = ["minmax"]
"""


def test_a_recipe_comes_back_as_it_was(tmp_path):
    (tmp_path / "r.toml").write_text(TEXT, encoding="utf-8")
    recipe = load_recipe(tmp_path / "r.toml")
    (tmp_path / "again.toml").write_text(recipe_toml(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "again.toml") == recipe


def test_a_recipe_made_in_python_comes_back_too(tmp_path):
    model = ModelSpec(factory='odd:"name"', inputs={"x": InputSpec((1, 2), "int32")}, outputs=("y",))
    steps = (Distill(student="auto", speedup=2.0, mixes=("depth",)), Prune(max_size_mb=0.5, locked=("a.b",)))
    recipe = Recipe(model, DataSpec(pool="digits"), "digits", Limits(max_drop=0.0), steps, str(tmp_path), "ü")
    (tmp_path / "r.toml").write_text(recipe_toml(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "r.toml") == recipe


def test_what_lives_in_python_only_is_refused_by_name():
    recipe = Recipe(ModelSpec(factory="m:f", inputs={"x": (1, 2)}), DataSpec(pool=np.zeros(3)))
    with pytest.raises(RecipeError, match=r"`data\.pool` is a live ndarray"):
        recipe_toml(recipe)


def test_the_name_of_a_live_network_is_refused_too():
    teacher = ModelSpec(factory=f"{LIVE}0123")
    recipe = Recipe(ModelSpec(factory="live:net", inputs={"x": (1, 2)}), DataSpec(pool="d"), step=(Distill(),))
    assert 'factory = "live:net"' in recipe_toml(recipe)
    with pytest.raises(RecipeError, match=r"`step 1\.teacher\.factory` is a live network"):
        recipe_toml(msgspec.structs.replace(recipe, step=(Distill(teacher=teacher),)))
