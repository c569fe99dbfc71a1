"""Every mistake of a recipe is told at once, each with its place and the nearest that is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeexport.errors import RecipeError
from edgeexport.records.base import listed
from edgeexport.records.recipe import load_recipe
from edgeexport.records.training import HOW_LONG, LOSSES
from edgeexport.training import losses

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


HEAD = """
[model]
factory = "models:f"
inputs = { image = [1, 3, 32, 32] }
[data]
train = "models:samples"
[[step]]
"""


@pytest.mark.parametrize(
    ("step", "told", "next_step"),
    [
        ('do = "train"\ntraining = { optimizer = "adam" }', "`training.optimizer` is 'adam'", "did you mean 'adamw'?"),
        ('do = "quantize"\ntraining = { loss = "entropy" }', "`training.loss` is 'entropy'", ""),
        ('do = "train"\ntraining = { augment = "cropflip" }', "`training.augment` is 'cropflip'", "'crop-flip'?"),
        ('do = "train"\ntraining = { epochs = 0 }', "step 1 trains for `training.epochs` = 0", HOW_LONG),
        ('do = "distill"\ntraining = { epochs = 0 }', "step 1 trains for `training.epochs` = 0", HOW_LONG),
        ('do = "quantize"\ntraining = { epochs = 0 }', "step 1 trains for `training.epochs` = 0", HOW_LONG),
        ('do = "distill"\nstudent = { weights = "s.pth" }', "`distill.student` needs a `factory`", "module:function"),
        (
            'do = "distill"\nteacher = { onnx = "t.onnx", weights = "w.pth" }',
            "`distill.teacher.weights` belongs to a `factory`",
            "",
        ),
    ],
)
def test_what_would_end_a_later_training_is_told_before_the_first(
    tmp_path: Path, step: str, told: str, next_step: str
) -> None:
    path = tmp_path / "r.toml"
    path.write_text(HEAD + step, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert told in str(caught.value)
    assert next_step in str(caught.value.next_step)


@pytest.mark.parametrize(
    "step",
    [
        'do = "prune"\nmacs = 2.0\ntraining = { epochs = 0 }',
        'do = "quantize"\nqat = "never"\ntraining = { epochs = 0 }',
        'do = "train"\ntraining = { epochs = 0, steps = 2, optimizer = "mine:lion" }',
    ],
)
def test_a_step_that_needs_no_training_or_says_how_long_is_taken(tmp_path: Path, step: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(HEAD + step, encoding="utf-8")
    assert load_recipe(path).step


def test_every_loss_that_a_recipe_may_name_is_there() -> None:
    assert set(LOSSES) == set(losses.LOSSES)
