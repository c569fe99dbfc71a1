"""The losses of distillation, against their papers written out, and which layers are paired."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeexport.errors import ModelError, RecipeError
from edgeexport.training import Batch, TrainingData, soft_loss
from edgeexport.training.distillation import cosine, decoupled, squared
from edgeexport.training.features import watched


def batch(labels=None):
    return Batch((torch.zeros(1),), labels)


def by_hand(student, teacher, label, *, temperature, beta):
    """Decoupled distillation of one sample, as in equation 7 of the paper."""
    p, q = (np.exp(x / temperature) / np.exp(x / temperature).sum() for x in (teacher, student))
    binary = sum(a * np.log(a / b) for a, b in ((p[label], q[label]), (1 - p[label], 1 - q[label])))
    others = [index for index in range(len(p)) if index != label]
    a, b = p[others] / p[others].sum(), q[others] / q[others].sum()
    return temperature**2 * (binary + beta * (a * np.log(a / b)).sum())


@pytest.mark.parametrize("labelled", [True, False])
def test_dkd_is_the_paper_written_out(labelled):
    random = np.random.default_rng(0)
    student, teacher = random.standard_normal((2, 5, 4)) * 3
    labels = random.integers(0, 4, 5) if labelled else teacher.argmax(1)
    wanted = np.mean([
        by_hand(*row, temperature=2.0, beta=3.0) for row in zip(student, teacher, labels, strict=True)
    ])  # fmt: skip
    given = decoupled(2.0, beta=3.0)(
        torch.from_numpy(student),
        torch.from_numpy(teacher),
        batch=batch(torch.from_numpy(labels) if labelled else None),
    )
    assert float(given) == pytest.approx(wanted)


def test_dkd_whose_others_count_as_much_as_they_weigh_is_plain_distillation():
    """KL = target part + (1 - p_target) x others (equation 5); one sample makes that a constant beta."""
    student, teacher = torch.tensor([[1.0, 0.2, -1.0]]), torch.tensor([[0.5, 2.0, 0.0]])
    beta = float(1 - teacher.softmax(1)[0, 1])
    given = decoupled(1.0, beta=beta)(student, teacher, batch=batch(torch.tensor([1])))
    assert float(given) == pytest.approx(float(soft_loss(student, teacher, temperature=1.0)), rel=1e-5)


def test_dkd_has_finite_gradients_for_a_teacher_that_is_certain():
    student = torch.zeros((2, 3), requires_grad=True)
    decoupled(4.0, beta=8.0)(student, torch.tensor([[500.0, 0, 0], [0, -500.0, 0]]), batch=batch()).backward()
    assert torch.isfinite(student.grad).all()


def test_dkd_refuses_what_are_no_classes():
    with pytest.raises(ModelError, match="'dkd' needs outputs"):
        decoupled(1.0, beta=1.0)(torch.zeros(4, 1), torch.zeros(4, 1), batch=batch())


@pytest.mark.parametrize("shape", [(6, 8), (6, 5, 8)])
def test_embeddings_are_compared_by_direction_or_by_value(shape):
    teacher = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert float(cosine(teacher * 3, teacher, batch=batch())) == pytest.approx(0.0, abs=1e-6)
    assert float(cosine(-teacher, teacher, batch=batch())) == pytest.approx(2.0)
    assert float(squared(teacher + 2, teacher, batch=batch())) == pytest.approx(4.0)


class Stages(nn.Module):
    """Two stages of pictures, as residual networks have them, and a head."""

    def __init__(self, width):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.layer1 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self, depth, width=8):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


PICTURES = TrainingData(np.random.default_rng(0).standard_normal((4, 1, 8, 8)).astype(np.float32))
TOKENS = TrainingData(np.random.default_rng(0).standard_normal((4, 5, 8)).astype(np.float32))


def test_pictures_are_matched_where_stages_end():
    with watched(Stages(4), Stages(8), data=PICTURES, kind="hint", layers={}) as found:
        assert found.pairs == (("layer1", "layer1"), ("layer2", "layer2"))


def test_encoders_are_matched_in_proportion_of_depth():
    with watched(Encoder(2), Encoder(6), data=TOKENS, kind="hint", layers={}) as found:
        assert found.pairs == (("layers.0", "layers.2"), ("layers.1", "layers.5"))


@pytest.mark.parametrize(("kind", "learned"), [("hint", 2), ("attention", 0)])
def test_only_hints_between_two_widths_learn_a_projection(kind, learned):
    with watched(Stages(4), Stages(8), data=PICTURES, kind=kind, layers={}) as found:
        assert len(list(found.learned.parameters())) == learned
    with watched(Stages(8), Stages(8), data=PICTURES, kind=kind, layers={}) as found:
        assert not list(found.learned.parameters())


@pytest.mark.parametrize("kind", ["hint", "attention"])
def test_features_of_equal_networks_cost_nothing_and_of_others_something(kind):
    inputs = torch.from_numpy(PICTURES.arrays[0])
    for other, free in ((Stages(8), True), (Stages(8), False)):
        if not free:
            other.layer1[0].weight.data.mul_(-1)
        student = Stages(8)
        with watched(student, other, data=PICTURES, kind=kind, layers={}) as found:
            student(inputs), other(inputs)
            assert (float(found.loss().detach()) < 1e-9) == free


def test_attention_is_the_paper_written_out():
    given, wanted = torch.randn(2, 3, 2, 2), torch.randn(2, 5, 2, 2)
    from edgeexport.training.features import _attention

    maps = [value.pow(2).mean(1).flatten(1) for value in (given, wanted)]
    one, other = (each / each.norm(dim=1, keepdim=True) for each in maps)
    assert float(_attention(given, wanted)) == pytest.approx(float((one - other).pow(2).sum(1).mean()), rel=1e-5)


def test_a_layer_that_is_not_there_is_an_error_with_the_nearest_one():
    with (
        pytest.raises(RecipeError, match="the teacher has no layer `layer3`") as error,
        watched(Stages(4), Stages(8), data=PICTURES, kind="hint", layers={"layer1": "layer3"}),
    ):
        pass
    assert "`layer" in error.value.next_step


def test_networks_without_a_common_resolution_have_nothing_to_compare():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with (
        pytest.raises(ModelError, match="nothing to compare"),
        watched(flat, Stages(8), data=PICTURES, kind="hint", layers={}),
    ):
        pass


def test_pairs_that_cannot_be_compared_are_refused_with_both_shapes():
    with (
        pytest.raises(ModelError, match=r"\[2, 4, 8, 8\], the teacher's \[2, 2\]"),
        watched(Stages(4), Stages(8), data=PICTURES, kind="attention", layers={"layer1": "head"}),
    ):
        pass
