"""What user code, labels and networks do wrong in a training, and how each is told as the user's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeexport.compression.distill import distill
from edgeexport.errors import DataError, ModelError, RequestError
from edgeexport.records.recipe import Distill, Training
from edgeexport.training import Batch, TrainingData, resolve_augment, resolve_loss, time_steps, train

SETTINGS = Training(batch_size=8, learning_rate=0.01)
LOSSES = """
import torch


def raises(outputs, batch):
    weights = {}
    return weights["mine"]


def no_tensor(outputs, batch):
    return 3.0


def no_scalar(outputs, batch):
    return outputs.sum(1)


def whole_number(outputs, batch):
    return outputs.sum().long()


def detached(outputs, batch):
    return outputs.detach().sum()


def one_argument(outputs):
    return outputs.sum()


def good(outputs, batch):
    return outputs.square().mean()
"""
AUGMENTS = """
def raises(batch, generator):
    return batch[:, :, 3]


def one_argument(batch):
    return batch


def fewer(batch, generator):
    return batch[1:]


def wider(batch, generator):
    return batch.repeat(2, axis=1)


def double(batch, generator):
    return batch + generator.standard_normal(batch.shape)


def nothing(batch, generator):
    pass
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def rows(labels: Any = None, width: int = 4) -> TrainingData:
    inputs = np.random.default_rng(0).standard_normal((24, width)).astype(np.float32)
    return TrainingData(inputs, np.arange(24) % 3 if labels is None else labels)


def fit(loss: Any = "cross_entropy", data: TrainingData | None = None, **changes: Any) -> None:
    found = resolve_loss(loss) if isinstance(loss, str) else loss
    settings = Training(batch_size=8, learning_rate=0.01, **changes)
    train(network(), data or rows(), loss=found, settings=settings)


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("raises", 7, "KeyError: 'mine'"),
        ("no_tensor", 10, "returned float"),
        ("no_scalar", 14, r"shape \(8,\)"),
        ("whole_number", 18, "torch.int64"),
        ("detached", 22, "does not depend on the network's weights"),
        ("one_argument", 26, r"takes \(outputs\), and is called with 2 arguments"),
    ],
)
def test_a_loss_of_the_user_that_is_none_is_named_with_file_and_line(
    name: str, line: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(LOSSES)
    with pytest.raises(RequestError, match=said) as caught:
        fit(resolve_loss(f"mine:{name}", str(tmp_path)))
    assert f"the loss 'mine:{name}'" in str(caught.value)
    assert f"{tmp_path / 'mine.py'}:{line}" in str(caught.value)


def test_a_live_loss_that_raises_is_named_with_its_own_line() -> None:
    def odd(outputs: Any, batch: Batch) -> Any:
        return outputs.reshape(7, 7)

    with pytest.raises(RequestError, match=rf"the loss 'odd': {re.escape(__file__)}:\d+: RuntimeError"):
        fit(odd)


def test_a_loss_is_called_as_the_users_while_a_budget_is_timed() -> None:
    def odd(outputs: Any, batch: Batch) -> Any:
        raise KeyError("mine")

    with pytest.raises(RequestError, match="the loss 'odd'"):
        time_steps(network(), rows(), loss=odd, settings=Training())


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("raises", 3, "IndexError"),
        ("one_argument", 6, r"takes \(batch\), and is called with 2 arguments"),
        ("fewer", 10, r"shape \(7, 4\), expected float32 of shape \(8, 4\)"),
        ("wider", 14, r"shape \(8, 8\), expected float32 of shape \(8, 4\)"),
        ("double", 18, "returned float64"),
        ("nothing", 22, "returned NoneType"),
    ],
)
def test_an_augmentation_that_is_none_is_named_with_file_and_line(
    name: str, line: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(AUGMENTS)
    data = rows()
    with pytest.raises(RequestError, match=said) as caught:
        fit(data=TrainingData(data.inputs, data.labels, folder=str(tmp_path)), augment=f"mine:{name}")
    assert f"the augmentation 'mine:{name}'" in str(caught.value)
    assert f"{tmp_path / 'mine.py'}:{line}" in str(caught.value)


def test_a_live_augmentation_is_held_to_the_same() -> None:
    def fewer(batch: Any, generator: Any) -> Any:
        return batch[1:]

    with pytest.raises(RequestError, match="the augmentation 'fewer'"):
        fit(data=TrainingData(rows().inputs, rows().labels, augment=fewer))


@pytest.mark.parametrize("resolve", [resolve_loss, resolve_augment])
def test_a_reference_to_what_cannot_be_called_is_refused(resolve: Callable[..., object], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("number = 3\n")
    with pytest.raises(RequestError, match="'mine:number' is int, expected a function"):
        resolve("mine:number", str(tmp_path))


FOUND = np.arange(24) % 3


@pytest.mark.parametrize(
    ("loss", "labels", "said"),
    [
        ("cross_entropy", np.where(np.arange(24) == 17, -1, FOUND), "sample 17 has class -1, the output has 3 classes"),
        ("cross_entropy", np.where(np.arange(24) == 5, 3, FOUND), "sample 5 has class 3, the output has 3 classes"),
        ("cross_entropy", FOUND.astype(np.float32), "needs class indices, the labels are float32"),
        ("cross_entropy", np.zeros((24, 2), np.int64), r"shape \[2\] a sample"),
        ("mse", np.zeros((24, 2), np.float32), r"shape \[2\] a sample, the output calls for \[3\]"),
        ("bce", np.zeros(24, np.float32), r"shape \[\] a sample, the output calls for \[3\]"),
        ("bce", np.full((24, 3), 2.0), "needs targets from 0 to 1"),
    ],
)
def test_labels_that_the_loss_cannot_work_on_are_named(loss: str, labels: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        fit(loss, rows(labels))


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        ("cross_entropy", FOUND.astype(np.uint8)),
        ("cross_entropy", FOUND.astype(np.int32)[:, None]),
        ("cross_entropy", np.eye(3)[FOUND]),
        ("mse", np.zeros((24, 3, 1))),
        ("bce", np.eye(3, dtype=bool)[FOUND]),
    ],
)
def test_labels_of_every_form_that_says_the_same_are_taken(loss: str, labels: Any) -> None:
    fit(loss, rows(labels))


def test_labels_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeexport.training import losses

    calls: list[int] = []
    seen = losses.LabelLoss("seen", losses._mse, lambda _, labels: calls.append(len(labels)))
    fit(seen, rows(np.zeros((24, 3), np.float32)), epochs=3)
    assert calls == [24]


def test_labels_of_a_distillation_are_checked_too() -> None:
    with pytest.raises(DataError, match="sample 2 has class 7"):
        distill(
            network(), network(), data=rows(np.where(np.arange(24) == 2, 7, FOUND)), step=Distill(training=SETTINGS)
        )


def test_a_student_and_a_teacher_of_two_tasks_are_refused() -> None:
    with pytest.raises(ModelError, match=r"the student's first output has the shape \[8, 3\], the teacher's \[8, 6\]"):
        distill(network(), nn.Linear(4, 6), data=rows(), step=Distill(training=SETTINGS))


def test_a_teacher_that_cannot_take_the_batch_is_named() -> None:
    with pytest.raises(RequestError, match=r"the teacher cannot take a training batch of \[8, 4\]"):
        distill(network(), nn.Linear(5, 3), data=rows(), step=Distill(training=SETTINGS))


class Fixed(nn.Module):
    """Has its batch built in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.reshape(1, 4))


class Twice(Fixed):
    """Wants two inputs."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.linear(x + y)


class Overwriting(Fixed):
    """Changes what the way back needs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x).exp()
        return y.mul_(y.detach())


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (Fixed, r"the network cannot take a training batch of \[8, 4\]: .*test_refusals.py:\d+: RuntimeError"),
        (Twice, r"the network cannot take a training batch of \[8, 4\]: .*TypeError"),
        (Overwriting, "the way back from the loss"),
    ],
)
def test_a_network_that_cannot_be_trained_on_the_batch_is_told_so(factory: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        train(factory(), rows(), loss=resolve_loss("cross_entropy"), settings=SETTINGS)


def test_a_convolution_that_wants_other_channels_is_told_so() -> None:
    pictures = TrainingData(np.zeros((8, 1, 8, 8), np.float32), np.zeros(8, np.int64))
    with pytest.raises(RequestError, match=r"training batch of \[8, 1, 8, 8\]"):
        train(nn.Conv2d(3, 2, 8), pictures, loss=resolve_loss("cross_entropy"), settings=SETTINGS)


def test_a_network_that_returns_no_tensor_is_refused() -> None:
    class Silent(Fixed):
        def forward(self, x: torch.Tensor) -> Any:
            return [x][1:]

    with pytest.raises(ModelError, match="first output is NoneType"):
        train(Silent(), rows(), loss=resolve_loss("cross_entropy"), settings=SETTINGS)


@pytest.mark.parametrize("what", ["inputs", "labels"])
def test_arrays_that_are_no_numbers_are_refused(what: str) -> None:
    numbers, words = np.zeros((3, 4), np.float32), np.array(["a", "b", "c"])
    with pytest.raises(DataError, match=f"training {what} have dtype <U1"):
        TrainingData(words, None) if what == "inputs" else TrainingData(numbers, words)
