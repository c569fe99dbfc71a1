"""Quantization-aware training that is exact: the int8 file itself, simulated and trained, ends in weights and a plan.

The rule: what is trained is what ships. The simulation's graph is read off the file that `quantize` writes; after the
training the same `quantize` writes the file of the trained weights, and what it stores must be what was trained, bit
for bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeexport import graph
from edgeexport.errors import DataError as DataError
from edgeexport.errors import ModelError, RequestError
from edgeexport.progress import Progress, silent
from edgeexport.quantization.integer import quantize_static_encoder
from edgeexport.quantization.qat.twin import Twin, encoder_twin, qdq_twin
from edgeexport.quantization.qdq import quantize
from edgeexport.records.base import file_digest
from edgeexport.records.labels import Answers
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.training import Training, TrainingRecord, Tuning

if TYPE_CHECKING:
    from torch import Tensor

    from edgeexport.graph.lifting.module import Lifted
    from edgeexport.quantization.qat.simulation import Simulation
    from edgeexport.runtimes.protocol import Feeds
    from edgeexport.training import Loss, TrainingData

# Which function writes the int8 file: that of whole networks, or that of encoders' linear layers.
Form = Literal["qdq", "encoder"]
# The teacher is the network itself in float: its answers are near, and say more than labels do.
TEMPERATURE, SOFT_SHARE = 2.0, 0.9
_GENTLE = Tuning()
# Samples on which the file is compared with its simulation.
CHECKED = 8
# Samples in which a channel must be zero for its weights to be taken out, and how many run together.
LISTENED, TOGETHER = 512, 32


@dataclass(frozen=True)
class Lesson:
    """How a model is trained for its integers.

    teacher: an .onnx file whose outputs are learnt; the model itself, in float, when None. classes: outputs are class
    logits (else their squared difference is the loss). learn_steps: train scales too (LSQ). form: what writes the file.
    state: a folder of this very training, where a killed one is gone on with (see `train`).
    arm: the kernels of Arm are simulated, not those of x86; sums of two tensors differ by a step here and there.
    """

    training: Training = _GENTLE
    teacher: Path | None = None
    classes: bool = True
    learn_steps: bool = False
    form: Form = "qdq"
    state: Path | None = None
    arm: bool = False


@dataclass(frozen=True)
class Trained:
    """The plan for the trained file, what the training did, and how far onnxruntime was from the simulation."""

    plan: QuantizationPlan
    record: TrainingRecord
    agreement: str


def train_quantized(
    model_path: Path,
    plan: QuantizationPlan,
    *,
    data: TrainingData,
    out: Path,
    lesson: Lesson | None = None,
    progress: Progress = silent,
) -> Trained:
    """Train a float model's weights for the integers of its plan, and write it to `out`; return the plan for it.

    The simulation rounds where, and how, the int8 file does; gradients pass by the straight-through estimator (Jacob
    et al. 2018, arXiv:1712.05877) and, with `learn_steps`, scales are learnt (LSQ, Esser et al. 2020,
    arXiv:1902.08153). The loss is distillation from the teacher, and labels where `data` has them.
    Raises DataError for a plan of another model or samples that it fails on, UnsupportedOperator for what torch cannot
    express, and ModelError for a form without steps, a model that takes no batch of two, a training that diverges, or
    an int8 file that would not store what was trained, or does not compute what the simulation does: of the untrained
    one that is known before any training.
    """
    from edgeexport.quantization.qat.agreement import prove_agrees, prove_stored
    from edgeexport.quantization.qat.silent import rest_silent
    from edgeexport.training import train

    taken = lesson or Lesson()
    real = graph.lift(graph.load(model_path))
    _check_batch(real, data, path=model_path)
    module = _proven(model_path, plan, lesson=taken, data=data)
    rest_silent(module, real, batches=_listened(data))
    loss = _loss(taken, data, teacher=taken.teacher or model_path)
    record = train(module, data, loss=loss, settings=taken.training, progress=progress, state=taken.state)
    _save(model_path, module, out=out)
    trained = module.plan(file_digest(out))
    with tempfile.TemporaryDirectory(prefix=".qat-", dir=out.parent) as folder:
        int8 = Path(folder) / "int8.onnx"
        twin = twin_of(out, trained, form=taken.form, int8=int8)
        prove_stored(module, twin)
        found = prove_agrees(module, twin, int8=int8, samples=_few_feeds(module, data))
    return Trained(trained, record, found.sentence())


def simulate(
    model_path: Path, plan: QuantizationPlan, *, form: Form = "qdq", learn_steps: bool = False, arm: bool = False
) -> Simulation:
    """Return the module that computes what the int8 file of a plan computes, trainable under the ONNX names.

    arm: as onnxruntime does it on Arm, not on x86.
    Raises DataError for a plan of another model, and ModelError or UnsupportedOperator for what has no simulation.
    """
    with tempfile.TemporaryDirectory(prefix="edgeexport-qat-") as folder:
        lesson = Lesson(form=form, learn_steps=learn_steps, arm=arm)
        return _simulated(model_path, plan, lesson=lesson, int8=Path(folder) / "int8.onnx")[0]


def _simulated(model_path: Path, plan: QuantizationPlan, *, lesson: Lesson, int8: Path) -> tuple[Simulation, Twin]:
    graph.files.need("torch", purpose="training for integers")
    from edgeexport.quantization.qat.simulation import Simulation

    twin = twin_of(model_path, plan, form=lesson.form, int8=int8)
    return Simulation(twin, plan, learn_steps=lesson.learn_steps, arm=lesson.arm), twin


def _proven(model_path: Path, plan: QuantizationPlan, *, lesson: Lesson, data: TrainingData) -> Simulation:
    """Return the simulation of a plan's file, compared with it: what differs now would be trained for nothing."""
    from edgeexport.quantization.qat.agreement import prove_agrees

    with tempfile.TemporaryDirectory(prefix="edgeexport-qat-") as folder:
        int8 = Path(folder) / "int8.onnx"
        module, twin = _simulated(model_path, plan, lesson=lesson, int8=int8)
        prove_agrees(module, twin, int8=int8, samples=_few_feeds(module, data))
    return module


def twin_of(model_path: Path, plan: QuantizationPlan, *, form: Form, int8: Path) -> Twin:
    """Write the int8 file of a plan to `int8`, and return its float twin."""
    spine = graph.load(model_path)
    if form == "encoder":
        done = quantize_static_encoder(model_path, plan, out=int8)
        return encoder_twin(spine, graph.load(int8), plan=plan, done=done)
    quantize(model_path, plan, out=int8)
    return qdq_twin(spine, graph.load(int8), plan=plan)


def _loss(lesson: Lesson, data: TrainingData, *, teacher: Path) -> Loss:
    from edgeexport.training import distillation_loss, hard_loss

    answers: Answers = "classes" if lesson.classes else "values"
    hard = hard_loss(data, lesson.training, soft_share=SOFT_SHARE, answers=answers)
    frozen = graph.lift(graph.load(teacher)).requires_grad_(requires_grad=False)
    return distillation_loss(frozen, temperature=TEMPERATURE, soft_share=SOFT_SHARE, hard=hard, classes=lesson.classes)


def _check_batch(real: Lifted, data: TrainingData, *, path: Path) -> None:
    """Raise DataError for samples that the model fails on, ModelError for a model that takes single ones only."""
    import torch

    from edgeexport.training import forward

    def ask(count: int) -> None:
        with torch.no_grad():
            forward(real, [torch.from_numpy(array[:count]) for array in data.arrays])

    try:
        ask(1)
    except RequestError as error:
        found = ", ".join(f"{array.dtype} {[1, *array.shape[1:]]}" for array in data.arrays)
        specs = graph.signature(graph.load(path)).inputs
        wanted = ", ".join(f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in specs)
        raise DataError(
            f"{path}: it fails on the first training sample, {found}: {error}",
            next_step=f"give training data as the model's inputs, in this order: {wanted}",
        ) from error
    try:
        ask(2)
    except RequestError as error:
        raise ModelError(
            f"{path}: it cannot be trained, since it takes no batch of two: {error}",
            next_step='export the network with a free batch axis, or say qat = "never"',
        ) from error


def _listened(data: TrainingData) -> Iterator[tuple[Tensor, ...]]:
    """Samples from all over the data, a few at a time."""
    import torch

    chosen = range(0, len(data), max(1, len(data) // LISTENED))
    for start in range(0, len(chosen), TOGETHER):
        taken = chosen[start : start + TOGETHER]
        yield tuple(torch.from_numpy(array[taken.start : taken.stop : taken.step].copy()) for array in data.arrays)


def _save(model_path: Path, module: Simulation, *, out: Path) -> None:
    """Write the float model with the trained weights, each in the shape in which it was stored."""
    model = graph.load(model_path)
    stored = graph.initializers(model)
    values = {name: value for name, value in module.stored_weights().items() if name in stored}
    graph.save(graph.with_initializers(model, {n: v.reshape(stored[n].shape) for n, v in values.items()}), out)


def _few_feeds(module: Simulation, data: TrainingData) -> list[Feeds]:
    """Single samples from all over the data."""
    names = module.lifted.input_names
    return [
        {name: array[index : index + 1] for name, array in zip(names, data.arrays, strict=True)}
        for index in range(0, len(data), max(1, len(data) // CHECKED))
    ][:CHECKED]
