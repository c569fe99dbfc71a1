"""Channel groups: what blocks one is read from the right node and the right axis."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgeexport.compression.channels import find_groups
from edgeexport.compression.macs import tensors
from edgeexport.compression.prune import apply_pruning, plan_pruning
from edgeexport.errors import ModelError
from edgeexport.records.recipe import Prune
from tests.compression.encoders import SEQUENCE, Encoder

# The convolution of each rank, an input for it, and what F.pad takes to add 4 channels on both sides.
CHANNELS = {1: (nn.Conv1d, (0, 0, 4, 4)), 2: (nn.Conv2d, (0, 0, 0, 0, 4, 4)), 3: (nn.Conv3d, (0,) * 6 + (4, 4))}


class Padded(nn.Module):
    """Two convolutions of a rank, with a padding between them."""

    def __init__(self, rank, padding, *, extra=0):
        super().__init__()
        kind, self.padding, self.rank = CHANNELS[rank][0], padding, rank
        self.first, self.second = kind(1, 32, 3), kind(32 + extra, 16, 3)
        self.last = nn.Linear(16, 4)

    def forward(self, x):
        x = self.second(nn.functional.pad(torch.relu(self.first(x)), self.padding))
        return self.last(torch.relu(x).flatten(2).mean(dim=2))


def blocked(module, rank):
    example = {"x": np.random.default_rng(0).standard_normal((1, 1, *[6] * rank)).astype(np.float32)}
    return {group.layer: group.blocked for group in find_groups(module.eval(), example)}


@pytest.mark.parametrize("rank", CHANNELS)
def test_padding_of_places_blocks_no_channels(rank):
    assert not blocked(Padded(rank, (1, 1) * rank), rank)["first"]


@pytest.mark.parametrize("rank", CHANNELS)
def test_padding_of_channels_blocks_them(rank):
    assert "F.pad" in blocked(Padded(rank, CHANNELS[rank][1], extra=8), rank)["first"]


class Token(Encoder):
    """With a token that is learnt, as in ViT: a parameter of no layer."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 32))

    def forward(self, sequence):
        x = torch.cat([self.token, self.first(sequence)], dim=1)
        for layer in self.layer:
            x = layer(x)
        return self.last(x[:, 0])


def test_a_network_with_a_token_of_its_own_is_pruned():
    torch.manual_seed(0)
    module = Token().eval()
    plan = plan_pruning(module, SEQUENCE, step=Prune(macs=1.2, round_to=8))
    pruned = apply_pruning(copy.deepcopy(module), plan, example=SEQUENCE)
    for group in plan.groups:
        assert group.layer.endswith(".up")
        down = module.get_submodule(group.layer.removesuffix("up") + "down")
        with torch.no_grad():
            down.weight[:, list(group.removed)] = 0
    with torch.no_grad():
        assert torch.allclose(pruned(*tensors(SEQUENCE)), module(*tensors(SEQUENCE)), atol=1e-5)


class Cached(nn.Module):
    """Joins keys, a slice of what one layer makes, to a cache that is empty, as GPT-2 does."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(32, 96), nn.Linear(32, 4)

    def forward(self, sequence):
        keys = self.first(sequence).split(32, dim=2)[1].view(1, -1, 4, 8).transpose(1, 2)
        keys = torch.cat([torch.tensor([]), keys], dim=-2)
        return self.last(keys.transpose(1, 2).reshape(1, -1, 32).mean(dim=1))


def test_a_cache_that_is_joined_is_told_of():
    with pytest.raises(ModelError, match=r"torch\.cat joins: an empty cache"):
        find_groups(Cached().eval(), SEQUENCE)
