"""What is trained is what answers: a file that computes otherwise is refused, trained ones give the same class."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeexport import graph
from edgeexport.errors import ModelError
from edgeexport.quantization import qat
from edgeexport.quantization.qat import Lesson, arithmetic, train_quantized
from edgeexport.quantization.qat.agreement import EXACT
from edgeexport.quantization.qat.simulation import Simulation
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.training import Tuning
from edgeexport.runtimes.ort import open_session
from edgeexport.training import TrainingData
from tests.quantization.encoder_nets import LENGTH, WORDS, small_encoder
from tests.quantization.nets import FORMATS, small_mobilenet
from tests.quantization.qat.making import ENCODERS, noise, planned, planned_encoder

ARM = platform.machine() == "aarch64"
SHORT = Tuning(steps=2, batch_size=16)


def off(monkeypatch: pytest.MonkeyPatch, steps: Callable[[bool], int]) -> None:
    """Let sums of two tensors be simulated so many steps too large. steps: whether Arm's are meant -> how many."""
    real = arithmetic.total

    def total(inputs: Any, *, sources: Any, into: Any, arm: bool) -> torch.Tensor:
        return real(inputs, sources=sources, into=into, arm=arm) + steps(arm)

    monkeypatch.setattr(arithmetic, "total", total)


def made(folder: Path) -> tuple[Path, QuantizationPlan]:
    path = small_mobilenet(folder / "net.onnx")
    return path, planned(path, FORMATS["per-channel"])


def test_a_file_that_computes_something_else_is_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off(monkeypatch, lambda _: 2)
    monkeypatch.setattr("edgeexport.training.train", lambda *_, **__: pytest.fail("trained for nothing"))
    path, plan = made(tmp_path)
    with pytest.raises(ModelError, match=r"computes something else .* 2 steps \(at 'add_\d+_out'\)") as caught:
        train_quantized(path, plan, data=noise(16), out=tmp_path / "never.onnx", lesson=Lesson(SHORT))
    assert "in float" in caught.value.next_step
    assert not (tmp_path / "never.onnx").exists()


def test_a_single_step_is_no_other_computation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    off(monkeypatch, lambda _: 1)
    path, plan = made(tmp_path)
    trained = train_quantized(path, plan, data=noise(16), out=tmp_path / "out.onnx", lesson=Lesson(SHORT))
    assert ", 1 steps (at 'add_" in trained.agreement


def test_what_differs_only_once_it_is_trained_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    off(monkeypatch, lambda _: 2 * bool(batches))

    def augment(batch: NDArray[np.float32], _: np.random.Generator) -> NDArray[np.float32]:
        batches.append(len(batch))
        return batch

    path, plan = made(tmp_path)
    data = TrainingData(noise(16).arrays, augment=augment)
    with pytest.raises(ModelError, match="computes something else than its simulation"):
        train_quantized(path, plan, data=data, out=tmp_path / "out.onnx", lesson=Lesson(SHORT))
    assert len(batches) == 2


def test_the_kernels_of_another_cpu_are_not_held_against_this_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off(monkeypatch, lambda arm: 0 if arm == ARM else 3)
    path, plan = made(tmp_path)
    trained = train_quantized(path, plan, data=noise(16), out=tmp_path / "out.onnx", lesson=Lesson(SHORT, arm=not ARM))
    assert "100.000 % of" in trained.agreement
    assert trained.agreement.endswith(f", as {platform.machine()} computes")


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[Simulation]:
    """The simulations that are trained, as they are when that is over."""
    seen: list[Simulation] = []
    real = qat._proven

    def proven(*given: Any, **more: Any) -> Simulation:
        seen.append(real(*given, **more))
        return seen[-1]

    monkeypatch.setattr(qat, "_proven", proven)
    return seen


def classes(answer: Callable[[NDArray[Any]], NDArray[Any]], samples: NDArray[Any]) -> NDArray[np.int64]:
    """The first class of each sample, of batches of a hundred."""
    return np.concatenate([answer(samples[at : at + 100]).argmax(axis=1) for at in range(0, len(samples), 100)])


def three(module: Simulation, files: dict[str, Path], samples: NDArray[Any]) -> list[NDArray[np.int64]]:
    """The classes by the simulation, by its file, and by the float network that it was trained from."""

    def simulation(batch: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            found: NDArray[Any] = module(torch.from_numpy(batch)).numpy()
        return found

    answers = [simulation]
    for path in files.values():
        session = open_session(path, options=EXACT)
        name = session.signature.inputs[0].name
        answers.append(lambda batch, run=session.run, name=name: next(iter(run({name: batch}).values())))
    return [classes(answer, samples) for answer in answers]


def undecided(path: Path) -> None:
    """Move the last bias so that a random network answers with every class, by small margins."""
    model = graph.load(path)
    (logits,) = open_session(path).run({"image": noise(256).arrays[0]}).values()
    name = model.graph.node[-1].input[2]
    bias = graph.initializers(model)[name] - logits.mean(axis=0)
    graph.save(graph.with_initializers(model, {name: bias}), path)


LEARN = pytest.mark.parametrize("learn_steps", [False, True], ids=["following", "learned"])


@LEARN
def test_a_trained_network_and_its_simulation_give_the_same_classes(
    learn_steps: bool, tmp_path: Path, simulated: list[Simulation]
) -> None:
    path, out, int8 = small_mobilenet(tmp_path / "net.onnx"), tmp_path / "trained.onnx", tmp_path / "int8.onnx"
    undecided(path)
    plan = planned(path, FORMATS["per-channel"])
    lesson = Lesson(Tuning(epochs=4, batch_size=16), learn_steps=learn_steps, arm=ARM)
    trained = train_quantized(path, plan, data=noise(64), out=out, lesson=lesson)
    qat.twin_of(out, trained.plan, form="qdq", int8=int8)
    judged = noise(2000, seed=9).arrays[0]
    ours, theirs, real = three(simulated[0], {"int8": int8, "float": path}, judged)
    assert (ours == theirs).mean() >= 0.999
    # What 8 bits and the training do is seen at all.
    assert (real == theirs).mean() < 0.99


@LEARN
def test_a_trained_encoder_and_its_simulation_give_the_same_classes(
    learn_steps: bool, tmp_path: Path, simulated: list[Simulation]
) -> None:
    path, out, int8 = small_encoder(tmp_path / "net.onnx"), tmp_path / "trained.onnx", tmp_path / "int8.onnx"
    random = np.random.default_rng(9)
    words = random.integers(0, WORDS, (2256, LENGTH)).astype(np.int64)
    training = Tuning(epochs=2, batch_size=16, learning_rate=0.0003, optimizer="adamw")
    lesson = Lesson(training, classes=False, learn_steps=learn_steps, form="encoder", arm=ARM)
    plan = planned_encoder(path, numbers=ENCODERS)
    trained = train_quantized(path, plan, data=TrainingData(words[:256]), out=out, lesson=lesson)
    qat.twin_of(out, trained.plan, form="encoder", int8=int8)
    ours, theirs, real = three(simulated[0], {"int8": int8, "float": path}, words[256:])
    assert (ours == theirs).mean() >= 0.999
    assert (real == theirs).mean() < 0.99
