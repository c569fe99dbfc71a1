"""Every mistake of a recipe is told at once, each with its place and the nearest that is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeexport.errors import RecipeError
from edgeexport.records.base import listed
from edgeexport.records.recipe import load_recipe

WRONG = """
preproces = "imagenet-224"
[model]
factory = "models:f"
weigths = "x.pth"
inputs = { image = [1, 3, 32, 32] }
[data]
seed = "nine"
[[step]]
do = "prune"
criterion = "l3"
[[step]]
do = "quantise"
[[step]]
do = "quantize"
methods = ["minmax", "entropi"]
"""


def test_all_mistakes_of_a_recipe_are_told_together(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(WRONG, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    head, *lines = str(caught.value).splitlines()
    assert head == f"{path}: 6 mistakes"
    assert [line.strip() for line in lines] == [
        "unknown key `preproces`; did you mean `preprocess`?",
        "unknown key `model.weigths`; did you mean `weights`?",
        "Expected `int`, got `str` - at `data.seed`",
        "`step[1].criterion` is 'l3'; known here: `l1`, `l2`, `bn_scale`, `taylor`, `group_norm`, `random`",
        "`step[2].do` is 'quantise'; did you mean `quantize`?",
        "`step[3].methods[2]` is 'entropi'; did you mean `entropy`?",
    ]


def test_a_lone_mistake_keeps_its_next_step(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[model]\nonnx = "m.onnx"\n[limits]\nmax_drob = 1.0\n', encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{path}: unknown key `limits.max_drob`"
    assert caught.value.next_step == "did you mean `max_drop`?"


def test_a_lone_text_or_path_is_a_list_of_one_and_never_its_letters() -> None:
    assert listed("local") == ["local"]
    assert listed(Path("m.onnx")) == [Path("m.onnx")]
    assert listed(("a", "b")) == ["a", "b"]
