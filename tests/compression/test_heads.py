"""Attention heads and feed-forward widths: equal to the silenced network, and refused by name where that is not so."""

from __future__ import annotations

import copy

import pytest
import torch

from edgeexport.compression.heads import find_heads
from edgeexport.compression.macs import tensors
from edgeexport.compression.prune import apply_pruning, plan_pruning
from edgeexport.errors import ModelError
from edgeexport.records.base import from_json, to_json
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import Prune
from tests.compression.encoders import SEQUENCE, After, Encoder


def encoder(**settings):
    torch.manual_seed(0)
    return Encoder(**settings).eval()


def run(module):
    with torch.no_grad():
        return module(*tensors(SEQUENCE))


def silenced(module, plan):
    """The network with the outputs of the planned heads, and of the planned feed-forward units, set to zero by hand."""
    module = copy.deepcopy(module)
    for group in plan.groups:
        number = group.layer.split(".")[1]
        layer = module.layer[int(number)]
        if group.kind == "heads":
            columns = [head * 8 + index for head in group.removed for index in range(8)]
            layer.output.register_forward_pre_hook(_zeroed(columns))
        else:
            layer.down.register_forward_pre_hook(_zeroed(list(group.removed)))
    return run(module)


def _zeroed(columns):
    def hook(_, inputs):
        x = inputs[0].clone()
        x[..., columns] = 0
        return (x,)

    return hook


def test_a_network_without_heads_and_units_equals_the_one_with_them_silenced():
    module = encoder()
    plan = plan_pruning(module, SEQUENCE, step=Prune(macs=1.7, parts=("width", "heads"), round_to=8))
    pruned = apply_pruning(copy.deepcopy(module), plan, example=SEQUENCE)
    assert {group.kind for group in plan.groups} == {"heads", "Linear"}
    assert torch.allclose(run(pruned), silenced(module, plan), atol=1e-5)
    assert not torch.allclose(run(module), silenced(module, plan), atol=1e-4)


def test_a_stored_plan_with_heads_rebuilds_the_network():
    module = encoder(layer=After)
    plan = plan_pruning(module, SEQUENCE, step=Prune(macs=1.3, parts=("heads",), criterion="group_norm"))
    stored = from_json(to_json(plan), PruningPlan, origin="test")
    one, other = (apply_pruning(encoder(layer=After), each, example=SEQUENCE) for each in (plan, stored))
    assert torch.equal(run(one), run(other))
    assert one.layer[0].attention.num_attention_heads == 4 - len(plan.groups[0].removed)


def test_heads_whose_number_the_code_fixes_are_refused_by_name():
    plan = plan_pruning(encoder(flat=True), SEQUENCE, step=Prune(macs=1.1, parts=("width", "heads"), round_to=8))
    assert "cannot be pruned safely" in plan.refused["layer.0.attention.query"]
    assert {group.kind for group in plan.groups} == {"Linear"}


def test_heads_that_share_keys_are_refused_by_name():
    (group, *_) = find_heads(encoder(keys=16), SEQUENCE)
    assert "share keys" in group.blocked


def test_locked_heads_stay():
    step = Prune(macs=1.05, parts=("heads",), locked=("layer.1.attention",))
    plan = plan_pruning(encoder(), SEQUENCE, step=step)
    assert "locked" in plan.refused["layer.1.attention.query"]
    assert "layer.1.attention.query" not in {group.layer for group in plan.groups}


@pytest.mark.parametrize(
    ("layer", "other"),
    [("layer.0.attention.query", "layer.2.attention.query"), ("layer.0.attention.query", "layer.0.attention.key"),
     ("layer.0.output", "layer.1.output")],
    ids=["between layers", "queries and keys", "after the heads"],
)  # fmt: skip
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_heads_whose_layers_are_tied_stay_by_name_and_the_others_go(layer, other, part):
    module = encoder()
    setattr(module.get_submodule(other), part, getattr(module.get_submodule(layer), part))
    names = list(dict(module.named_parameters()))
    plan = plan_pruning(module, SEQUENCE, step=Prune(macs=1.05, parts=("heads",)))
    tied = {f"layer.{name.split('.')[1]}.attention.query" for name in (layer, other)}
    assert plan.refused.keys() == tied
    assert plan.refused["layer.0.attention.query"] == f"`{layer}` shares its weights with another layer"
    assert {group.layer for group in plan.groups} <= {f"layer.{number}.attention.query" for number in range(3)} - tied
    pruned = apply_pruning(module, plan, example=SEQUENCE)
    assert list(dict(pruned.named_parameters())) == names


def test_a_stored_plan_for_heads_that_are_tied_in_another_network_is_refused_by_name():
    plan = plan_pruning(encoder(), SEQUENCE, step=Prune(macs=1.05, parts=("heads",)))
    tied = encoder()
    first, second = (tied.get_submodule(f"layer.{number}.attention.query") for number in (0, 1))
    second.weight = first.weight
    with pytest.raises(ModelError, match=r"is heads that must stay .*shares its weights with another layer"):
        apply_pruning(tied, plan, example=SEQUENCE)
