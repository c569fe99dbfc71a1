"""ResNet-56 on CIFAR-10 in JPEG: a shallower one cut from it, distilled, in int8, beside the source trained as long.

The source is the released checkpoint. The compression is: tune the source (the teacher), leave blocks out of it (the
student), distil, quantize. Its CPU time, from the costs of a step of each training, is what the control gets: the
source trained on by the same trainer. Everything is kept in the cache: a killed run goes on.
EDGEEXPORT_BENCHMARKS_SCALE scales all epochs, for a try that proves nothing but that it runs.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import edgeexport
from edgeexport.compression.checkpoint import load_weights
from edgeexport.compression.distill import distill
from edgeexport.compression.onnx_teacher import onnx_teacher
from edgeexport.data.pictures import Pictures, ZipStore
from edgeexport.records.recipe import Distill, Training
from edgeexport.records.training import TrainingRecord
from edgeexport.runtimes.ort import open_session
from edgeexport.training import TrainingData, resolve_loss, train
from edgeexport.workspace import Workspace
from tests.benchmarks.bar import Bar
from tests.benchmarks.beside import speed_up
from tests.benchmarks.cost import step_costs
from tests.benchmarks.host import host_target
from tests.benchmarks.kept import trained
from tests.benchmarks.wheels import CACHE
from tests.needs import DATA
from tests.real.models import resnet56

DROP, SMALLER, FASTER, LEAST_CONTROL = 1.0, 10.0, 5.5, 89.1
# Blocks of the source's 9 in each stage that the student keeps. Untrained, in int8, of all that are 10 times smaller:
# 3-3-3 is 5.5 times faster on AVX2 (1-thread, interleaved), 2-3-3 6.6, 1-4-3 6.6, 1-5-3 6.0, 2-4-3 5.7, 1-3-3 7.5.
KEPT = ((0, 8), (0, 4, 8), (0, 4, 8))
SCALE = float(os.environ.get("EDGEEXPORT_BENCHMARKS_SCALE") or 1)
# The teacher, whose answer takes nearly as long as a step of the student, is asked in so many epochs.
VIEWS = max(1, round(4 * SCALE))
TUNE = Training(epochs=1.5 * SCALE, batch_size=128, learning_rate=0.02, augment="crop-flip")
DISTIL = Distill(
    temperature=4.0,
    soft_share=0.9,
    training=Training(epochs=15 * SCALE, batch_size=128, learning_rate=0.08, augment="crop-flip", views=VIEWS),
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CALIBRATION = 256
INPUTS: Any = {"image": (1, 3, 32, 32)}

Fit = Callable[[nn.Module, Path | None], TrainingRecord]


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Compress, train the control for as long, judge both on the test pictures, measure one thread interleaved."""
    place = CACHE / "resnet56"
    heard, judging = pictures("train"), pictures("test")
    with Workspace(place / "work") as work:
        teacher, student, control, budget = networks(work, heard)
    fp32, int8 = shipped(student, heard, folder=place)
    source = place / "source.onnx"
    edgeexport.export(released(), INPUTS, out=source, samples=_feeds(heard, 1))
    scores = {"teacher": accuracy(teacher, judging), "control": accuracy(control, judging)}
    scores |= {"student": file_accuracy(fp32, judging), "compressed": file_accuracy(int8, judging)}
    smaller = source.stat().st_size / int8.stat().st_size
    faster = speed_up(source, int8, samples=_feeds(heard, 1))
    return {"top1": scores, "kept": KEPT, "budget": budget, "size_ratio": smaller, "speed_up": faster}, {
        "drop": Bar(scores["control"] - scores["compressed"], DROP, "points below the control"),
        "control": Bar(scores["control"], LEAST_CONTROL, "a control below this does not count", "min"),
        "size_ratio": Bar(smaller, SMALLER, ".onnx against the source's fp32 .onnx of the same exporter", "min"),
        "speed_up": Bar(faster, FASTER, "1 thread, interleaved with the source in fp32", "min"),
    }


def networks(work: Workspace, data: TrainingData) -> tuple[nn.Module, nn.Module, nn.Module, dict[str, float]]:
    """Return teacher, student and control, and what each was given in CPU seconds and epochs."""
    began = time.process_time()
    key = {"tune": msgspec.to_builtins(TUNE), "threads": torch.get_num_threads()}
    teacher = trained(work, "teacher", key=key, build=released, fit=_tuning(data, TUNE.epochs))
    says = _in_onnxruntime(teacher, data, folder=work.path)
    costs = step_costs(work.path / "costs.json", _trainings(teacher, says), data=data, batch_size=TUNE.batch_size)
    key |= {"distil": msgspec.to_builtins(DISTIL), "kept": KEPT}
    student = trained(work, "student", key=key, build=lambda: cut(teacher), fit=_distilling(says, data))
    asked = min(VIEWS, DISTIL.training.epochs)
    spent = DISTIL.training.epochs * costs["alone"] + asked * (costs["distil"] - costs["alone"])
    epochs = TUNE.epochs + spent / costs["tune"]
    key |= {"control": epochs}
    control = trained(work, "control", key=key, build=released, fit=_tuning(data, epochs))
    steps = len(data) / TUNE.batch_size
    budget = {"control_epochs": epochs, "cpu_seconds_each": costs["tune"] * steps * epochs}
    return teacher, student, control, budget | {"cpu_seconds_now": time.process_time() - began, **costs}


def released() -> nn.Module:
    """Return the source: ResNet-56 with its released weights."""
    module = resnet56()
    load_weights(module, DATA / "checkpoints" / "resnet56-4bfd9763.th")
    return module.eval()


def cut(teacher: nn.Module) -> nn.Module:
    """Return a copy of the teacher with the blocks of KEPT alone, weights and all."""
    student: Any = copy.deepcopy(teacher)
    for name, kept in zip(("layer1", "layer2", "layer3"), KEPT, strict=True):
        stage = getattr(student, name)
        setattr(student, name, nn.Sequential(*(stage[index] for index in kept)))
    return student


def _tuning(data: TrainingData, epochs: float) -> Fit:
    settings = msgspec.structs.replace(TUNE, epochs=epochs)

    def fit(module: nn.Module, state: Path | None = None) -> TrainingRecord:
        loss = resolve_loss("cross_entropy")
        return train(module, data, loss=loss, settings=settings, progress=_say, state=state)

    return fit


def _distilling(teacher: nn.Module, data: TrainingData, step: Distill = DISTIL) -> Fit:
    def fit(student: nn.Module, state: Path | None = None) -> TrainingRecord:
        return distill(student, teacher, data=data, step=step, progress=_say, state=state)

    return fit


def _in_onnxruntime(teacher: nn.Module, data: TrainingData, *, folder: Path) -> nn.Module:
    """Return a teacher as its .onnx file, which answers in 0.6 of the time."""
    path = folder / "teacher.onnx"
    edgeexport.export(teacher, INPUTS, out=path, samples=_feeds(data, 1))
    return onnx_teacher(path, INPUTS)


def _trainings(teacher: nn.Module, says: nn.Module) -> Any:
    source, student, single = released(), cut(teacher), cut(teacher)
    once = msgspec.structs.replace(DISTIL, training=msgspec.structs.replace(DISTIL.training, epochs=1.0))
    return {
        "tune": lambda few: _tuning(few, 1.0)(source, None),
        "distil": lambda few: _distilling(says, few, once)(student, None),
        "alone": lambda few: _tuning(few, 1.0)(single, None),
    }


def pictures(split: str) -> TrainingData:
    """Return all pictures of a split as the network takes them, with their classes."""
    source = Pictures(ZipStore(DATA / "cifar10" / f"{split}.zip"), labelled=True)
    images: NDArray[np.float32] = np.empty((len(source), 3, 32, 32), np.float32)
    labels = np.empty(len(source), np.int64)
    for index in range(len(source)):
        picture, labels[index] = source[index]
        images[index] = ((picture / np.float32(255) - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)
    return TrainingData(images, labels)


def _feeds(data: TrainingData, count: int) -> list[dict[str, Any]]:
    chosen = np.random.default_rng(0).permutation(len(data))[:count]
    return [{"image": data.arrays[0][index : index + 1]} for index in chosen]


def shipped(student: nn.Module, data: TrainingData, *, folder: Path) -> tuple[Path, Path]:
    """Write the student as fp32 .onnx, and as the int8 file that this machine's target gets."""
    fp32, int8 = folder / "student.onnx", folder / "student.int8.onnx"
    feeds = _feeds(data, CALIBRATION)
    edgeexport.export(student, INPUTS, out=fp32, samples=feeds[:1])
    ranges = edgeexport.calibrate(fp32, feeds)
    edgeexport.convert(fp32, target=host_target(), out=int8, samples=feeds[:8], ranges=ranges)
    return fp32, int8


def accuracy(module: nn.Module, data: TrainingData) -> float:
    """Return top-1 in points."""
    with torch.no_grad():
        found = [module(part).argmax(1).numpy() for part in torch.from_numpy(data.arrays[0]).split(250)]
    return 100 * float(np.mean(np.concatenate(found) == data.labels))


def file_accuracy(path: Path, data: TrainingData) -> float:
    """Return top-1 of a model file in points."""
    session = open_session(path, threads=0)
    parts = np.array_split(data.arrays[0], len(data) // 50)
    found = [next(iter(session.run({"image": part}).values())).argmax(1) for part in parts]
    return 100 * float(np.mean(np.concatenate(found) == data.labels))


def _say(text: str, _: float | None) -> None:
    sys.stderr.write(f"{text}\n")
