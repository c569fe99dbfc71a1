"""A network with its batch built in goes down the whole road, one sample at a time."""

from __future__ import annotations

from edgeexport.bundles.verify import verify
from tests.needs import need
from tests.pipeline.conftest import Desk
from tests.pipeline.test_qat import DATA

FIXED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.head = nn.Linear(64, 256), nn.Linear(256, 10)

    def forward(self, image):
        return self.head(self.wide(image.reshape(1, 64)).relu())


def net():
    torch.manual_seed(0)
    return Net()
"""


def test_a_network_with_its_batch_built_in_is_shipped_with_a_batch_of_one(desk: Desk) -> None:
    need("ort")
    desk.write("models.py", FIXED)
    assert desk.run("--device", "none") == 0
    record = desk.record()
    notes = [note for rung in record["rungs"] for note in rung["notes"]]
    assert any(note.startswith("the batch is fixed at 1: the network fails on a sample") for note in notes)
    assert verify(desk.bundle()).holds


def test_training_for_integers_of_a_network_that_takes_no_batch_is_a_row_and_not_the_end(desk: Desk) -> None:
    need("ort")
    desk.write("models.py", FIXED)
    desk.write("data.py", DATA)
    desk.edit("recipe.toml", 'pool = "digits"', 'train = "data:train"\nevaluate = "data:test"')
    desk.edit("recipe.toml", 'do = "quantize"', 'do = "quantize"\nqat = "always"')
    assert desk.run("--device", "none") == 0
    reasons = [rung["reason"] for rung in desk.record()["rungs"] if "qat" in rung["name"]]
    assert reasons
    assert all("it takes no batch of two" in reason for reason in reasons)
    assert verify(desk.bundle()).holds
