"""torch's own attention, and fused ones: counted, named, left alone, and the feed-forward part around them pruned."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgeexport.compression.candidates import find_candidates
from edgeexport.compression.channels import find_groups
from edgeexport.compression.depth import find_blocks
from edgeexport.compression.heads import find_heads
from edgeexport.compression.latency import layer_shapes
from edgeexport.compression.macs import count_macs, positions, tensors
from edgeexport.compression.price import Ledger, macs_price, size_price
from edgeexport.compression.prune import apply_pruning, plan_pruning
from edgeexport.records.recipe import Prune
from tests.compression.encoders import SEQUENCE

TOKENS = {"ids": np.array([[5, 3, 8, 2, 9, 0, 0, 0]])}
# Of one layer: queries, keys, values and what follows them, then the two of the feed-forward part.
LAYER = 4 * 32 * 32 + 2 * 32 * 64


class Classifier(nn.Module):
    """Three layers of torch's encoder."""

    def __init__(self, *, norm_first=False):
        super().__init__()
        self.first = nn.Linear(32, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.last = nn.Linear(32, 5)

    def forward(self, sequence):
        return self.last(self.encoder(self.first(sequence)).mean(dim=1))


class Masked(nn.Module):
    """With padding, which torch packs where no hook watches."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 32)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)
        self.last = nn.Linear(32, 5)

    def forward(self, ids):
        return self.last(self.encoder(self.embed(ids), src_key_padding_mask=ids == 0)[:, 0])


class Bare(nn.Module):
    """Attention over a second, shorter sequence, without norms around it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 5)
        self.attend = nn.MultiheadAttention(32, 4, kdim=16, vdim=8, batch_first=True)

    def forward(self, sequence):
        x = self.first(sequence)
        x = x + self.attend(x, value=sequence[:, :3, :8], key=sequence[:, :3, :16])[0]
        return self.last(x.mean(dim=1))


class Fused(nn.Module):
    """Queries, keys and values in one layer."""

    def __init__(self, name="qkv"):
        super().__init__()
        self.num_heads, self.name = 4, name
        self.add_module(name, nn.Linear(32, 96))
        self.proj, self.last = nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, sequence):
        n, length, _ = sequence.shape
        q, k, v = self.get_submodule(self.name)(sequence).view(n, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v
        return self.last(self.proj(mixed.transpose(1, 2).reshape(n, length, 32)).mean(dim=1))


def built(kind, **settings):
    torch.manual_seed(0)
    return kind(**settings).eval()


def run(module, example=SEQUENCE):
    with torch.no_grad():
        return module(*tensors(example))


def test_projections_of_an_attention_are_counted_timed_and_weighed():
    module = built(Classifier)
    assert count_macs(module, SEQUENCE) == 6 * (32 * 32 + 3 * LAYER) + 32 * 5
    shapes = layer_shapes(module, SEQUENCE)
    assert set(shapes) == set(positions(module, SEQUENCE))
    assert shapes["encoder.layers.1.self_attn.k_proj"] == shapes["first"]
    weights = sum(value.numel() for value in module.parameters() if value.ndim > 1)
    price = size_price(module, SEQUENCE, int8=True)
    assert Ledger(module, positions(module, SEQUENCE), prices=[price]).totals[0] < 1.5 * weights / 1e6


def test_an_attention_counts_what_it_reads_by_the_length_of_each():
    assert count_macs(built(Bare), SEQUENCE) == 6 * 32 * 32 * 3 + 3 * 32 * (16 + 8) + 32 * 5


@pytest.mark.parametrize("norm_first", [False, True])
def test_feed_forward_units_go_and_torch_reads_what_is_left_in_one_go(norm_first):
    module = built(Classifier, norm_first=norm_first)
    plan = plan_pruning(module, SEQUENCE, step=Prune(macs=1.15, parts=("width", "heads"), round_to=8))
    pruned = apply_pruning(copy.deepcopy(module), plan, example=SEQUENCE)
    masked = copy.deepcopy(module)
    for group in plan.groups:
        assert group.layer.endswith("linear1")
        with torch.no_grad():
            masked.get_submodule(group.layer[:-1] + "2").weight[:, list(group.removed)] = 0
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.allclose(run(pruned), run(masked), atol=1e-5)
    assert torch.allclose(run(pruned), pruned(*tensors(SEQUENCE)), atol=1e-5)  # part by part: gradients are on
    assert not torch.allclose(run(module), run(masked), atol=1e-4)


def test_heads_and_channels_of_an_attention_stay_by_name():
    step = Prune(macs=1.1, parts=("width", "heads"), round_to=8)
    refused = find_candidates(built(Classifier), SEQUENCE, step=step).refused
    assert "as wide together as its input" in refused["encoder.layers.2.self_attn"]
    assert "`attend` is an nn.MultiheadAttention" in find_candidates(built(Bare), SEQUENCE, step=step).refused["first"]


@pytest.mark.parametrize("name", ["qkv", "Wqkv", "to_qkv", "query_key_value"])
def test_heads_of_a_fused_layer_stay_by_name(name):
    (group,) = find_heads(built(Fused, name=name), SEQUENCE)
    assert (group.layer, group.width) == (name, 4)
    assert "in one" in group.blocked


def test_heads_by_names_that_nobody_knows_are_told_of():
    (group,) = find_heads(built(Fused, name="projections"), SEQUENCE)
    assert "says that it has 4 heads" in group.blocked


def test_a_block_goes_with_its_attention():
    module = built(Classifier, norm_first=True)
    with torch.no_grad():
        module.encoder.layers[1].self_attn.out_proj.weight *= 100  # silenced, it still gives back its input
    first, *blocks = find_blocks(module, SEQUENCE)
    assert "self_attn" in first.blocked
    assert [(block.name, block.blocked) for block in blocks] == [("encoder.layers.1", ""), ("encoder.layers.2", "")]
    ledger = Ledger(module, positions(module, SEQUENCE), prices=[macs_price(module, SEQUENCE)])
    assert ledger.skip(blocks[0].layers) == (6 * LAYER,)


def test_a_padded_batch_that_torch_would_pack_is_counted_and_pruned():
    module = built(Masked)
    plan = plan_pruning(module, TOKENS, step=Prune(macs=1.6, parts=("width", "heads", "depth"), round_to=8))
    assert plan.macs_before == 8 * 2 * LAYER + 32 * 5
    assert run(apply_pruning(copy.deepcopy(module), plan, example=TOKENS), TOKENS).shape == (1, 5)


def test_the_channel_groups_of_the_feed_forward_part_are_free():
    free = {group.layer for group in find_groups(built(Classifier), SEQUENCE) if not group.blocked}
    assert free == {f"encoder.layers.{number}.linear1" for number in range(3)}
