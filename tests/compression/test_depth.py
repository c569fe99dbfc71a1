"""Depth: blocks that give back their input may go, others are told apart, and the rest keeps its names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgeexport.compression.checkpoint import load_weights, save_weights
from edgeexport.compression.depth import effects, find_blocks, skip
from edgeexport.compression.macs import count_macs, tensors
from edgeexport.compression.prune import Means, apply_pruning, plan_pruning
from edgeexport.errors import ModelError
from edgeexport.records.base import from_json, to_json
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import Prune
from tests.compression import nets
from tests.compression.encoders import SEQUENCE, After, Encoder, Layer

DEPTH = Prune(macs=1.2, parts=("depth",))


def run(module, example):
    with torch.no_grad():
        return module.eval()(*tensors(example))


def encoder(layer=After):
    torch.manual_seed(0)
    return Encoder(layer=layer).eval()


def test_residual_blocks_that_keep_their_shape_are_found():
    found = find_blocks(nets.settled(nets.OptionA), nets.PICTURE)
    assert [block.name for block in found] == ["blocks.0", "blocks.2"]


def test_a_plain_chain_of_layers_has_no_blocks():
    chain = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)) for _ in range(3)))
    assert not find_blocks(nets.settled(lambda: chain), nets.PICTURE)


def test_a_block_that_is_called_twice_is_named_and_left_alone():
    module = encoder()
    module.layer[1] = module.layer[0]
    (block, *_) = find_blocks(module, SEQUENCE)
    assert (block.name, block.blocked) == ("layer.0", "it is called more than once")


@pytest.mark.parametrize("layer", [Layer, After])
def test_encoder_layers_are_blocks_whether_they_normalize_first_or_last(layer):
    assert [block.name for block in find_blocks(encoder(layer), SEQUENCE)] == ["layer.0", "layer.1", "layer.2"]


def test_a_network_without_a_residual_block_equals_the_one_with_its_branch_silenced():
    module = nets.settled(nets.OptionA)
    plan = plan_pruning(module, nets.PICTURE, step=DEPTH)
    pruned = apply_pruning(copy.deepcopy(module), plan, example=nets.PICTURE)
    silent = copy.deepcopy(module)
    for name in plan.blocks:
        silent.get_submodule(name).bn2.register_forward_hook(lambda *flow: flow[2] * 0)
    assert plan.blocks
    assert torch.allclose(run(pruned, nets.PICTURE), run(silent, nets.PICTURE), atol=1e-5)


def test_the_block_that_moves_the_outputs_least_goes_first():
    module = nets.settled(nets.OptionA)
    with torch.no_grad():
        module.blocks[2].bn2.weight.mul_(1e-3)
        module.blocks[2].bn2.bias.mul_(1e-3)
    found = effects(module, find_blocks(module, nets.PICTURE), samples=[nets.PICTURE])
    assert found["blocks.2"] < 1e-3 < found["blocks.0"] < 1
    assert plan_pruning(module, nets.PICTURE, step=DEPTH).blocks == ("blocks.2",)


def test_a_stored_plan_with_blocks_rebuilds_the_network_and_takes_its_weights(tmp_path):
    module = encoder()
    plan = plan_pruning(module, SEQUENCE, step=Prune(macs=1.4, parts=("depth",)))
    stored = from_json(to_json(plan), PruningPlan, origin="test")
    pruned = apply_pruning(module, plan, example=SEQUENCE)
    save_weights(pruned, tmp_path / "weights.safetensors")
    torch.manual_seed(1)
    rebuilt = apply_pruning(Encoder(layer=After), stored, example=SEQUENCE)
    load_weights(rebuilt, tmp_path / "weights.safetensors")
    assert count_macs(rebuilt, SEQUENCE) == plan.macs_after
    assert torch.equal(run(rebuilt, SEQUENCE), run(pruned, SEQUENCE))


def test_a_skipped_block_survives_export(tmp_path):
    from edgeexport import verbs

    module = encoder()
    skip(module, ["layer.1"], example=SEQUENCE)
    record = verbs.export(module, {"sequence": (1, 6, 32)}, out=tmp_path / "model.onnx", samples=[SEQUENCE])
    assert record.parity.holds


def test_channels_and_blocks_go_together_and_channels_of_skipped_blocks_are_not_listed():
    module = nets.settled(nets.OptionA)
    plan = plan_pruning(module, nets.PICTURE, step=Prune(macs=4.2, parts=("width", "depth"), round_to=8))
    pruned = apply_pruning(copy.deepcopy(module), plan, example=nets.PICTURE)
    assert plan.blocks
    assert plan.groups
    assert not [group for group in plan.groups if group.layer.startswith(plan.blocks)]
    assert count_macs(pruned, nets.PICTURE) == plan.macs_after <= plan.macs_before / 4.2


def test_blocks_can_go_half_of_the_way_alone_and_channels_the_rest():
    module = nets.settled(nets.OptionA)
    step, even = Prune(macs=3.0, parts=("width", "depth"), round_to=8), Means(blocks_first=0.2)
    plan, blocks = (
        plan_pruning(module, nets.PICTURE, step=step, means=even),
        plan_pruning(module, nets.PICTURE, step=Prune(macs=3.0**0.2, parts=("depth",))),
    )
    assert plan.blocks == blocks.blocks != ()
    assert plan.groups
    assert plan.macs_after <= plan.macs_before / 3.0


def test_a_locked_block_stays():
    step = Prune(macs=1.2, parts=("depth",), locked=("blocks.2",))
    plan = plan_pruning(nets.settled(nets.OptionA), nets.PICTURE, step=step)
    assert plan.blocks == ("blocks.0",)
    assert "locked" in plan.refused["blocks.2"]


def test_a_plan_whose_block_is_not_there_is_refused():
    with pytest.raises(ModelError, match=r"blocks\.7"):
        skip(nets.settled(nets.OptionA), ["blocks.7"], example=nets.PICTURE)


class Asking(Encoder):
    """Asks its layers for a value of theirs before it calls them."""

    def __init__(self, ask):
        super().__init__(layer=After)
        self.ask = ask
        for layer in self.layer:
            layer.kind = "full"
            layer.scale = torch.ones(1)

    def forward(self, sequence):
        assert all(self.ask(layer) is not None for layer in self.layer)
        return super().forward(sequence)


def test_what_takes_the_place_of_a_block_has_the_plain_values_that_it_is_asked_for():
    module = Asking(lambda layer: layer.kind).eval()
    assert [block.blocked for block in find_blocks(module, SEQUENCE)] == ["", "", ""]
    skip(module, ["layer.1"], example=SEQUENCE)
    assert module.layer[1].kind == "full"
    assert run(module, SEQUENCE).shape == run(encoder(), SEQUENCE).shape


def test_a_block_that_the_code_around_cannot_miss_is_named_and_left_alone():
    module = Asking(lambda layer: layer.scale).eval()
    found = find_blocks(module, SEQUENCE)
    assert all("`forward` does not allow it" in block.blocked and "scale" in block.blocked for block in found)
    assert isinstance(module.layer[0], After)
    assert len(found) == 3


def test_per_layer_a_block_goes_only_if_it_is_worth_less_than_channels():
    module = nets.settled(nets.OptionA)
    with torch.no_grad():
        for block in module.blocks:
            block.bn2.weight.fill_(20.0)  # what moves the outputs much
            block.conv1.weight[: len(block.conv1.weight) * 3 // 4] *= 1e-3  # and does so with a quarter of its channels
    step = Prune(macs=1.4, parts=("width", "depth"), scope="per-layer", round_to=8)
    plan = plan_pruning(module, nets.PICTURE, step=step)
    assert plan.groups
    assert plan.blocks == ()


def test_a_network_with_a_skipped_block_can_be_pickled(tmp_path):
    module = encoder()
    skip(module, ["layer.1"], example=SEQUENCE)
    torch.save(module, tmp_path / "module.pt")
    assert torch.equal(run(torch.load(tmp_path / "module.pt", weights_only=False), SEQUENCE), run(module, SEQUENCE))
