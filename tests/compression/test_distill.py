"""Distillation: the loss of the paper, a teacher that stays as it is, labels that may be missing."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from edgeexport.compression.distill import distill
from edgeexport.compression.onnx_teacher import onnx_teacher
from edgeexport.errors import ModelError, RecipeError
from edgeexport.records.recipe import Distill, ModelSpec, Training
from edgeexport.runtimes import ort
from edgeexport.training import (
    Batch,
    TrainingData,
    distillation,
    distillation_loss,
    first_output,
    resolve_loss,
    soft_loss,
    train,
)

TRAINING = Training(epochs=20, batch_size=64, learning_rate=0.05)


def classifier(seed, classes=3):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, classes))
    with torch.no_grad():
        module[2].weight *= 10  # a teacher that is sure of itself
    return module


def rows(labels=None):
    return TrainingData(np.random.default_rng(0).standard_normal((256, 4)).astype(np.float32), labels)


def outputs(module):
    with torch.no_grad():
        return module(torch.from_numpy(rows().arrays[0]))


def test_the_soft_loss_is_the_divergence_written_out():
    student, teacher = np.array([[1.0, 2.0, 0.5]]), np.array([[0.0, 3.0, -1.0]])
    p, q = (np.exp(x / 4) / np.exp(x / 4).sum() for x in (teacher, student))
    wanted = 16 * (p * np.log(p / q)).sum()
    assert float(soft_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature=4.0)) == pytest.approx(
        wanted
    )


def test_soft_and_hard_parts_are_mixed_by_their_share():
    teacher, inputs, labels = classifier(0), torch.randn(8, 4), torch.arange(8) % 3
    batch, given = Batch((inputs,), labels), torch.randn(8, 3)
    hard = resolve_loss("cross_entropy")
    soft = soft_loss(given, teacher(inputs), temperature=2.0)
    mixed = distillation_loss(teacher, temperature=2.0, soft_share=0.7, hard=hard)(given, batch)
    assert float(mixed.detach()) == pytest.approx(float((0.7 * soft + 0.3 * hard(given, batch)).detach()), rel=1e-5)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_student_learns_its_teacher_with_and_without_labels(labelled):
    teacher, student = classifier(0), classifier(1)
    labels = outputs(teacher).argmax(1).numpy() if labelled else None
    distill(student, teacher, data=rows(labels), step=Distill(training=TRAINING))
    agree = (outputs(student).argmax(1) == outputs(teacher).argmax(1)).float().mean()
    assert agree > 0.9


@pytest.mark.parametrize(("method", "asked"), [("logits", 8), ("dkd", 8), ("hint", 24)])
def test_a_teacher_is_asked_once_about_a_batch_that_comes_again(method, asked):
    teacher, calls = classifier(0), []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    layers = {"1": "1"} if method == "hint" else {}
    step = Distill(method=method, layers=layers, training=msgspec.structs.replace(TRAINING, epochs=6, views=2))
    distill(classifier(1), teacher, data=rows(), step=step)
    assert asked <= len(calls) <= asked + 2  # to look for pairs of layers asks as well


def test_remembered_answers_are_those_that_the_teacher_would_give(monkeypatch):
    step = Distill(training=msgspec.structs.replace(TRAINING, epochs=6, views=1))
    one, other, calls = classifier(1), classifier(1), []
    distill(one, classifier(0), data=rows(), step=step)
    monkeypatch.setattr(distillation, "MOST_REMEMBERED", 0)
    teacher = classifier(0)
    teacher.register_forward_hook(lambda *_: calls.append(1))
    distill(other, teacher, data=rows(), step=step)
    assert len(calls) == 24
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_what_a_teacher_said_in_one_training_is_no_answer_in_the_next():
    settings = msgspec.structs.replace(TRAINING, epochs=3, views=1)
    used, new = (distillation_loss(classifier(0), temperature=4.0, soft_share=1.0, hard=None) for _ in range(2))
    train(classifier(1), TrainingData(-rows().arrays[0]), loss=used, settings=settings)
    one, other = classifier(1), classifier(1)
    train(one, rows(), loss=used, settings=settings)
    train(other, rows(), loss=new, settings=settings)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_single_output_is_matched_by_its_value():
    teacher, student = classifier(0, classes=1), classifier(1, classes=1)
    before = nn.functional.mse_loss(outputs(student), outputs(teacher))
    distill(student, teacher, data=rows(), step=Distill(training=TRAINING))
    assert nn.functional.mse_loss(outputs(student), outputs(teacher)) < before / 10


def test_the_teacher_stays_as_it_is_and_in_eval_mode():
    teacher = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    before = copy.deepcopy(teacher.state_dict())
    distill(classifier(1), teacher, data=rows(), step=Distill(training=Training(batch_size=64)))
    assert not teacher.training
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_a_student_may_be_its_own_teacher():
    student = classifier(0)
    record = distill(student, student, data=rows(), step=Distill(training=Training(batch_size=64, weight_decay=0.0)))
    assert record.final_loss == pytest.approx(0.0, abs=1e-6)


def test_the_teacher_sees_the_augmented_batch():
    seen = []

    class Teacher(nn.Module):
        def forward(self, x):
            seen.append(float(x.abs().max()))
            return x[:, :3]

    data = TrainingData(rows().arrays[0], augment=lambda batch, _: batch * 0)
    distill(classifier(1), Teacher(), data=data, step=Distill(training=Training(batch_size=64)))
    assert seen
    assert max(seen) == 0.0


def test_a_convolutional_teacher_works_in_channels_last_and_is_put_back():
    torch.manual_seed(0)
    teacher, student = (
        nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
        for width in (8, 4)
    )
    laid_out = []
    teacher[0].register_forward_hook(
        lambda conv, given, _: laid_out.extend(
            tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (given[0], conv.weight)
        )
    )
    pictures = TrainingData(np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32))
    distill(student, teacher, data=pictures, step=Distill(training=Training(batch_size=32)))
    assert laid_out
    assert all(laid_out)
    assert teacher[0].weight.is_contiguous()


LEARNING = Training(epochs=12, batch_size=64, learning_rate=0.02)


def pictured(width, depth=1):
    torch.manual_seed(width)
    layers = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


def small_pictures():
    return TrainingData(np.random.default_rng(0).standard_normal((128, 1, 8, 8)).astype(np.float32))


@pytest.mark.parametrize("method", ["logits", "dkd", "hint", "attention", "mse"])
def test_every_method_brings_the_student_nearer_to_its_teacher(method):
    teacher, student = pictured(16, depth=2), pictured(4)
    inputs = torch.from_numpy(small_pictures().arrays[0])

    def distance():
        with torch.no_grad():
            return float(soft_loss(student.eval()(inputs), teacher.eval()(inputs), temperature=1.0))

    before = distance()
    distill(student, teacher, data=small_pictures(), step=Distill(method=method, training=LEARNING))
    assert distance() < before / 2


def test_a_method_on_features_leaves_neither_hooks_nor_layers_behind():
    teacher, student = pictured(16), pictured(4)
    names = list(student.state_dict())
    distill(student, teacher, data=small_pictures(), step=Distill(method="hint", training=Training(steps=2)))
    assert list(student.state_dict()) == names
    assert not any(layer._forward_hooks for network in (student, teacher) for layer in network.modules())


def exported(folder, module):
    from edgeexport import export

    path = folder / "teacher.onnx"
    export(module, {"image": (1, 1, 8, 8)}, out=path)
    return path


def test_an_onnx_file_teaches_as_its_network_does(tmp_path):
    teacher = pictured(8).eval()
    module = onnx_teacher(exported(tmp_path, teacher), {})
    inputs = torch.from_numpy(small_pictures().arrays[0])
    with torch.no_grad():
        torch.testing.assert_close(first_output(module(inputs)), teacher(inputs), rtol=1e-4, atol=1e-4)
    step = Distill(training=Training(batch_size=64))
    one, other = pictured(4), pictured(4)
    by_file = distill(one, module, data=small_pictures(), step=step)
    by_module = distill(other, teacher, data=small_pictures(), step=step)
    assert by_file.final_loss == pytest.approx(by_module.final_loss, rel=1e-3)


def test_an_onnx_teacher_opens_its_session_as_it_is_told(tmp_path, monkeypatch):
    path = exported(tmp_path, pictured(4).eval())
    opened, really = [], ort.open_session

    def spied(model, *, threads, options):
        opened.append(options["config_entries"])
        return really(model, threads=threads, options=options)

    monkeypatch.setattr(ort, "open_session", spied)
    onnx_teacher(path, {})
    onnx_teacher(path, {}, config_entries={ort.EXACT_SUMS: "0"})
    spinning = {"session.intra_op.allow_spinning": "0"}
    assert opened == [spinning, {**spinning, ort.EXACT_SUMS: "0"}]


class TwoHeads(nn.Module):
    """Classes, and one more head in a unit of its own."""

    def __init__(self, seed, *, unit=640.0, width=4):
        super().__init__()
        torch.manual_seed(seed)
        self.classes, self.boxes, self.unit = nn.Linear(4, 3), nn.Linear(4, width), unit

    def forward(self, row):
        return self.classes(row), self.unit * self.boxes(row)


class Clipped(TwoHeads):
    def forward(self, row):
        classes, boxes = super().forward(row)
        return classes, boxes.relu()


def gap(student, teacher):
    inputs = torch.from_numpy(rows().arrays[0])
    with torch.no_grad():
        given, wanted = student(inputs)[1], teacher(inputs)[1]
    return float((given - wanted).square().mean() / wanted.square().mean())


@pytest.mark.parametrize(
    "teacher",
    [
        TwoHeads(0),
        TwoHeads(0, width=1),
        TwoHeads(0, unit=64.0, width=1),
        TwoHeads(0, unit=6400.0, width=1),
        Clipped(0, width=1),
    ],
    ids=["alike", "scalar", "smaller", "larger", "sparse"],
)
def test_every_output_is_learnt_not_the_first_alone(teacher):
    student = TwoHeads(1, width=teacher.boxes.out_features)
    before = gap(student, teacher)
    settings = Training(epochs=60, batch_size=32, learning_rate=0.01, optimizer="adamw")
    distill(student, teacher, data=rows(), step=Distill(training=settings))
    assert gap(student, teacher) < 0.7 * before
    if not isinstance(teacher, Clipped) and teacher.unit == student.unit:
        assert gap(student, teacher) < 0.1


@pytest.mark.parametrize(("start", "goal"), [(-2.0, 1.0), (-1.0, 1.0), (3.0, 0.0), (1000.0, 1.0), (0.001, 1.0)])
def test_a_further_output_is_drawn_to_its_teacher_by_steps_of_its_own_size(start, goal):
    given = torch.tensor([start], requires_grad=True)
    distillation.relative(given, torch.tensor([goal])).backward()
    assert given.grad.item() * (start - goal) > 0
    assert abs(given.grad.item()) < 4 / max(abs(start), abs(goal))


def charged(given, wanted):
    """The loss of a student that says `given` where its teacher says `wanted`."""
    taught = distillation_loss(nn.Identity(), temperature=4.0, soft_share=0.9, hard=None)
    taught.teacher.forward = lambda _: wanted
    return float(taught(given, Batch((torch.zeros(2, 4),), None)))


X, ONE, TWO = torch.zeros(2, 3), torch.ones(2, 4), torch.full((2, 4), 2.0)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((X, [ONE, TWO]), (X, ONE, TWO)),
        ({"x": X, "a": ONE, "b": TWO}, {"x": X, "b": TWO, "a": ONE}),
        ((X, ONE.bool(), TWO), (X, ONE, TWO)),
        ((X, None, TWO), (X, TWO)),
        ((X, ONE), (X, ONE, TWO)),
        ((X, ONE), (X, TWO[:, :2])),
        ((X, ONE[:, :0]), (X, ONE[:, :0])),
        ((X, ONE), (X, torch.full((2, 4), -torch.inf))),
        ((X, ONE), (X, torch.full((2, 4), torch.finfo(torch.float32).min))),
    ],
    ids=["nested", "keys", "masks", "none", "more", "shapes", "empty", "infinite", "masked"],
)
def test_outputs_are_compared_with_their_like_alone(given, wanted):
    assert charged(given, wanted) == 0


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((X, [ONE, ONE]), (X, [ONE, TWO])),
        ({"x": X, "a": ONE, "b": TWO}, {"x": X, "b": ONE, "a": TWO}),
        ({"x": X, "a": ONE}, (X, TWO)),
        ((X, torch.tensor(1.0)), (X, torch.tensor(2.0))),
    ],
    ids=["nested", "keys", "by place", "scalars"],
)
def test_outputs_that_differ_from_their_like_are_charged_for(given, wanted):
    assert charged(given, wanted) > 0


def test_answers_of_several_outputs_are_remembered_whole_without_those_that_no_one_compares(monkeypatch):
    class Mapped(TwoHeads):
        def forward(self, row):
            return (*super().forward(row), torch.zeros(len(row), 1000))

    taught = distillation_loss(Mapped(0), temperature=4.0, soft_share=0.9, hard=None)
    batch = Batch((torch.ones(2, 4),), None, number=0)
    given = (*TwoHeads(1)(*batch.inputs), None)
    first = taught(given, batch)
    monkeypatch.setattr(taught.teacher, "forward", pytest.fail)
    assert torch.equal(taught(given, batch), first)
    monkeypatch.setattr(distillation, "MOST_REMEMBERED", 2 * (3 + 4) * 4)
    assert taught.remembered(1) == 1.0


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"layers": {"layer1": "layer1"}}, "not used by the method 'logits'"),
        ({"student": ModelSpec(onnx="small.onnx")}, "only a teacher"),
        ({"teacher": ModelSpec(inputs={"x": (1, 2)})}, "exactly one of"),
        ({"beta": -1.0}, "beta"),
        ({"feature_weight": -1.0}, "feature_weight"),
    ],
)
def test_a_step_that_contradicts_itself_is_refused(wrong, what):
    with pytest.raises(RecipeError, match=what):
        Distill(**wrong)


def test_attention_of_layers_without_places_is_refused():
    step = Distill(method="attention", layers={"0": "0"}, training=TRAINING)
    with pytest.raises(ModelError, match="places of a picture or a sequence"):
        distill(classifier(1), classifier(0), data=rows(), step=step)


class Dropping(nn.Module):
    """Leaves its middle layer out of training steps, as LayerDrop does now and then."""

    def __init__(self):
        super().__init__()
        self.first, self.middle = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, row):
        value = self.first(row)
        return value if self.training else self.middle(value)


def test_a_watched_layer_that_does_not_run_is_named():
    step = Distill(method="hint", layers={"middle": "middle"}, training=TRAINING)
    with pytest.raises(ModelError, match="student's layer `middle` was left out"):
        distill(Dropping(), Dropping(), data=rows(), step=step)


@pytest.mark.parametrize("method", ["logits", "dkd"])
def test_a_teacher_that_answers_in_sixteen_bits_is_judged_in_float32(method):
    """A student that says the same has nothing to learn: in bfloat16, the divergence was -0.06."""
    said = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)).mul(5).bfloat16()
    soft = distillation.logits(4.0) if method == "logits" else distillation.decoupled(4.0, beta=8.0)
    taught = distillation.Taught(nn.Identity(), soft, 1.0, None)
    assert abs(float(taught(said.float(), Batch((said,), None)))) < 1e-5
