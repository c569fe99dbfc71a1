"""Networks rebuilt on the road are those that were trained, in what no weights file holds too."""

from __future__ import annotations

import pytest
import torch

from edgeexport.pipeline.road import open_road
from edgeexport.pipeline.torch_rungs import climb, load_rung
from edgeexport.progress import silent
from edgeexport.records.recipe import load_recipe
from edgeexport.records.target import load_target
from edgeexport.workspace import Workspace

MODELS = """
import torch
from torch import nn


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("directions", torch.randn(64, 32), persistent=False)
        self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, image):
        features = torch.cos(image.flatten(1) @ self.directions)
        return self.last(torch.relu(self.first(features)))


def net():
    return Random()
"""
TRAIN = '[[step]]\ndo = "train"\ntraining = { steps = 1, batch_size = 32, seed = 3 }\n'
LESSON = "training = { steps = 1, batch_size = 32, seed = 5 }\n"
STUDENT = 'student = { factory = "models:net" }\n'
AFTER = {
    "tuned": ('[[step]]\ndo = "distill"\n' + LESSON, 3),
    "student": ('[[step]]\ndo = "distill"\n' + STUDENT + LESSON, 5),
    "pruned": ('[[step]]\ndo = "prune"\nmacs = 1.1\nround_to = 8\ntraining = { epochs = 0 }\n', 3),
}


@pytest.mark.parametrize("name", AFTER)
def test_a_rung_has_the_random_numbers_that_its_first_training_had(desk, name):
    step, seed = AFTER[name]
    desk.write("models.py", MODELS)
    desk.edit("recipe.toml", '[[step]]\ndo = "quantize"\n', TRAIN + step)
    with Workspace(desk.folder / "work") as work:
        road = open_road(load_recipe(desk.folder / "recipe.toml"), work, progress=silent)
        found = [load_rung(road, rung) for rung in climb(road, None, target=load_target("linux-arm64")).standing]
    assert len(found) == 2
    for module, wanted in zip(found, (3, seed), strict=True):
        random = torch.Generator().manual_seed(wanted)
        assert torch.equal(module.directions, torch.randn(64, 32, generator=random))
