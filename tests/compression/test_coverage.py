"""Coverage: the README's table is that of the stored results, and some architectures are taken through it again."""

from __future__ import annotations

import copy

import msgspec
import pytest

from edgeexport.compression.heads import HEADS
from edgeexport.compression.prune import apply_pruning
from edgeexport.records.pruning import PruningGroup, PruningPlan
from tests.compression.architectures import ARCHITECTURES, built
from tests.compression.coverage import BEGIN, END, README, cover, difference, planned, stored, table, went, with_table

# A minute of one core in all: each family of layers once.
FAST = (
    "tabular MLP", "LSTM", "ShuffleNet-like", "U-Net-like", "MobileNetV2", "BERT", "ViT", "Swin",
    "nn.TransformerEncoder",
)  # fmt: skip


def test_the_readme_has_the_table_of_the_stored_results():
    text = README.read_text(encoding="utf-8")
    assert with_table(text, stored()) == text


def test_every_architecture_was_taken_and_25_families_are_pruned():
    results = stored()
    assert [each.name for each in results] == list(ARCHITECTURES)
    assert {each.outcome for each in results} <= {"pruned", "refused"}
    assert sum(each.outcome == "pruned" for each in results) >= 25
    assert all(each.reason for each in results if each.outcome == "refused")


@pytest.mark.parametrize("name", FAST)
def test_what_is_stored_still_comes_out(name):
    before = next(each for each in stored() if each.name == name)
    now = cover(name)
    same = {"outcome", "parts", "parameters", "refused"}
    assert {key: getattr(now, key) for key in same} == {key: getattr(before, key) for key in same}
    assert now.macs_ratio >= 1 / 0.7
    assert now.bytes_ratio > 1


def test_a_network_that_is_not_the_zero_masked_one_is_seen():
    module, example = built("tabular MLP")
    plan, _ = planned(module, example)
    pruned = apply_pruning(copy.deepcopy(module), plan, example=example)
    assert difference(module, pruned, plan, example) < 1e-4
    others = plan.groups[0].removed
    moved = msgspec.structs.replace(plan.groups[0], removed=tuple((index + 1) % 128 for index in others))
    wrong = msgspec.structs.replace(plan, groups=(moved, *plan.groups[1:]))
    assert difference(module, pruned, wrong, example) > 1e-3


def test_the_parts_that_went_are_told_and_not_those_that_were_allowed():
    plan = PruningPlan("l2", 8, 4, 2, groups=(), blocks=("layer.1",))
    assert went(plan) == ("depth",)
    assert went(msgspec.structs.replace(plan, groups=(PruningGroup("a", "Linear", 16, (0,)),))) == ("width", "depth")
    assert went(msgspec.structs.replace(plan, groups=(PruningGroup("a", HEADS, 4, (0,)),))) == ("heads", "depth")


def test_a_table_that_somebody_edited_is_seen():
    text = README.read_text(encoding="utf-8").replace("are pruned by 30 %", "are pruned by 99 %")
    assert with_table(text, stored()) != text
    assert text.count(BEGIN) == text.count(END) == 1
    assert table(stored()) not in text
