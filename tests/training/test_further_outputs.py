"""Outputs after the first: where they are in what a network returns, which are partners, and what they cost."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree

from edgeexport.compression.distill import distill
from edgeexport.errors import ModelError, RequestError
from edgeexport.records.recipe import Distill
from edgeexport.records.training import Training
from edgeexport.training import Batch, TrainingData, distillation_loss
from edgeexport.training.distillation import Taught, logits, partners, relative
from edgeexport.training.losses import At, outputs_by_place

X, A, B, C = (torch.full((2, 3), value) for value in (0.0, 1.0, 2.0, 3.0))
LARGEST = torch.finfo(torch.float32).max


def paired(student, teacher):
    """Student's value -> teacher's value, of the outputs that are partners."""
    given = outputs_by_place(student)
    found = partners(given, outputs_by_place(teacher))
    return {float(given[place].flatten()[0]): float(other.flatten()[0]) for place, other in found.items()}


def states(*values):
    return tuple(torch.full((2, 3), float(value)) for value in values)


def test_states_of_a_student_cut_in_depth_are_not_drawn_to_those_in_the_middle_of_its_teacher():
    student, teacher = ({"x": X, "states": states(*range(5, depth)), "other": A} for depth in (9, 12))
    assert paired(student, teacher) == {1.0: 1.0}
    assert paired((X, *student["states"]), (X, *teacher["states"])) == {}
    assert paired(teacher, {**teacher, "other": B}) == {1.0: 2.0, **{float(each): float(each) for each in range(5, 12)}}


def test_lists_that_have_as_many_entries_together_but_not_each_are_no_partners_in_order():
    student = {"x": X, "states": states(1.0, 2.0), "weights": states(3.0)}
    assert paired(student, {"x": X, "states": states(4.0), "weights": states(5.0, 6.0)}) == {}


@pytest.mark.parametrize(
    ("student", "teacher", "wanted"),
    [
        ({"x": X, "boxes": A, "scores": B}, {"x": X, "scores": B, "angles": C}, {2.0: 2.0}),
        ({"x": X, "boxes": A}, {"x": X, "angles": C}, {}),
        ({"x": X, "boxes": A}, {"logits": X, "frames": C}, {1.0: 3.0}),
        ({"x": X, "boxes": A, "scores": B}, (X, C, A), {1.0: 3.0, 2.0: 1.0}),
        ((X, [A, B]), (X, B, C), {1.0: 2.0, 2.0: 3.0}),
    ],
    ids=["some keys", "the first key", "no key", "a teacher in a row", "nested"],
)
def test_outputs_are_partners_in_order_only_where_no_key_is_shared(student, teacher, wanted):
    assert paired(student, teacher) == wanted


class Pair(NamedTuple):
    x: torch.Tensor
    boxes: torch.Tensor


class Own(dict):
    """A dict that torch's pytree does not know, as the outputs of some libraries are."""


class Cache:
    """A type that is registered with torch, without names for its parts."""

    def __init__(self, *parts):
        self.parts = list(parts)


class Broken(Cache):
    """A type whose registered code fails."""


def _fail(_):
    raise LookupError("no parts today")


_pytree.register_pytree_node(Cache, lambda cache: (cache.parts, None), lambda parts, _: Cache(*parts))
_pytree.register_pytree_node(Broken, _fail, lambda parts, _: Broken(*parts))


@pytest.mark.parametrize(
    ("outputs", "places"),
    [
        (X, [()]),
        ((X, None, [A]), [(At(0, 3),), (At(2, 3), At(0, 1))]),
        (Own(x=X, inner=Own(boxes=A)), [("x",), ("inner", "boxes")]),
        (OrderedDict(x=X, boxes=A), [("x",), ("boxes",)]),
        (Pair(X, A), [("x",), ("boxes",)]),
        ({"x": X, "cache": Cache(A, Cache(B))}, [("x",), ("cache", At(0, 2)), ("cache", At(1, 2))]),
        ({"x": X, "cache": Cache(Own(a=A))}, [("x",), ("cache", At(0, 1), "a")]),
        ({"x": X, "count": 3, "what": object()}, [("x",)]),
    ],
    ids=["one", "list", "dict", "ordered", "named", "registered", "within", "others"],
)
def test_every_tensor_that_a_network_returns_has_a_place(outputs, places):
    assert list(outputs_by_place(outputs)) == places


class Answering(nn.Module):
    """Two linear layers, whose answers `form` makes into what is returned."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.form = nn.Linear(4, 3), nn.Linear(4, 3), form

    def forward(self, row):
        return self.form(self.first(row), self.second(row))


ROWS = TrainingData(np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32))
SHORT = Training(steps=2, batch_size=16)


@pytest.mark.parametrize(
    "form",
    [lambda x, a: Own(x=x, a=a), lambda x, a: {"x": x, "cache": Cache(a)}],
    ids=["unknown", "without names"],
)
def test_outputs_of_types_that_torch_does_not_take_apart_by_name_are_learnt(form):
    student, teacher = Answering(form), Answering(form)
    nn.init.constant_(teacher.second.bias, 5.0)
    before = student.second.bias.detach().clone()
    distill(student, teacher, data=ROWS, step=Distill(training=SHORT))
    assert (student.second.bias > before).all()


def test_outputs_whose_own_code_fails_are_told_as_the_users():
    student, teacher = (Answering(lambda x, a: {"x": x, "cache": Broken(a)}) for _ in range(2))
    with pytest.raises(RequestError, match=r"Broken, cannot be taken apart: .*LookupError: no parts today"):
        distill(student, teacher, data=ROWS, step=Distill(training=SHORT))
    distill(student, teacher, data=ROWS, step=Distill(training=SHORT, further_weight=0.0))


def charged(given, wanted, *, weight):
    taught = Taught(nn.Identity(), logits(4.0), 0.9, None, further_weight=weight)
    taught.teacher.forward = lambda _: wanted
    return float(taught(given, Batch((X,), None)))


def test_further_outputs_count_as_much_as_they_are_told_to():
    once = charged((X, A), (X, B), weight=1.0)
    assert once > 0
    assert charged((X, A), (X, B), weight=2.5) == pytest.approx(2.5 * once)
    assert charged((X, A), (X, B), weight=0.0) == 0
    default = distillation_loss(nn.Identity(), temperature=4.0, soft_share=0.9, hard=None)
    assert default.further_weight == Distill().further_weight == 1.0


@pytest.mark.parametrize("method", ["logits", "hint"])
def test_a_step_that_weighs_further_outputs_with_nothing_does_not_learn_them(method):
    student, teacher = (Answering(lambda x, a: (x, a)) for _ in range(2))
    nn.init.constant_(teacher.second.bias, 5.0)
    nn.init.constant_(teacher.first.bias, 5.0)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    layers = {"first": "first"} if method == "hint" else {}
    still = Training(steps=2, batch_size=16, weight_decay=0.0)
    distill(student, teacher, data=ROWS, step=Distill(method=method, layers=layers, further_weight=0.0, training=still))
    assert torch.equal(student.second.bias, before["second.bias"])
    distill(student, teacher, data=ROWS, step=Distill(method=method, layers=layers, training=still))
    assert (student.second.bias > before["second.bias"]).all()


@pytest.mark.parametrize("masked", [-LARGEST, LARGEST, -math.inf], ids=["lowest", "largest", "infinite"])
def test_a_place_that_the_student_masks_costs_nothing_and_leaves_the_others_as_they_are(masked):
    given, wanted = torch.tensor([masked, 1.0], requires_grad=True), torch.tensor([-1e4, 2.0])
    loss = relative(given, wanted)
    loss.backward()
    assert 0 < float(loss.detach()) < 1
    assert given.grad[0] == 0
    assert given.grad[1] < 0


def test_an_output_of_the_student_that_is_no_number_ends_its_training():
    student, teacher = Answering(lambda x, a: (x, a * math.nan)), Answering(lambda x, a: (x, a))
    with pytest.raises(ModelError, match="the training loss is nan"):
        distill(student, teacher, data=ROWS, step=Distill(training=SHORT))
