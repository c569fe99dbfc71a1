"""User code that fails on the road is the user's error: exit code 2, its name, its file and its line."""

from __future__ import annotations

import pytest

from tests.needs import need
from tests.pipeline.conftest import Desk

MINE = """
def loss(outputs, batch):
    return outputs.reshape(7, 7).mean()


def augment(batch, generator):
    return batch[1:]


def metric(outputs, targets):
    raise KeyError("mine")
"""


@pytest.mark.parametrize(
    ("name", "place", "setting"),
    [("loss", "mine.py:3", 'loss = "mine:loss"'), ("augment", "mine.py:6", 'augment = "mine:augment"')],
)
def test_a_training_with_user_code_that_fails(
    name: str, place: str, setting: str, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.write("mine.py", MINE)
    step = f'[[step]]\ndo = "train"\ntraining = {{ epochs = 0.1, batch_size = 16, {setting} }}\n\n[[step]]'
    desk.edit("recipe.toml", "[[step]]", step)
    assert desk.run() == 2
    said = capsys.readouterr().err
    assert f"'mine:{name}'" in said
    assert place in said


def test_a_metric_that_fails(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    need("ort")
    desk.write("mine.py", MINE)
    desk.edit("recipe.toml", '"agreement"', '"mine:metric"')
    desk.edit("recipe.toml", "[[step]]", "[limits]\nmax_drop = 0.1\n\n[[step]]")
    assert desk.run() == 2
    said = capsys.readouterr().err
    assert "the metric 'mine:metric'" in said
    assert "mine.py:11" in said
