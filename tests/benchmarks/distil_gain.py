"""What distillation is worth: a small student of few pictures, with and without its teacher, for the same CPU time.

The student is a ResNet-8 (CIFAR-10), the teacher the released ResNet-20, which has seen more pictures: that is what a
teacher is for. It is asked about VIEWS augmented views of each picture, and its answers are remembered. Its time
counts: the student that learns alone takes so many more steps, on pictures that are augmented anew each time.
"""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from edgeexport.compression.distill import distill
from edgeexport.compression.source import load_torch
from edgeexport.data import Prepared, arrays, open_samples, resolve_preprocess
from edgeexport.pipeline.road import declared_signature
from edgeexport.records.recipe import Distill, Training, load_recipe
from edgeexport.training import TrainingData, resolve_loss, train
from tests.benchmarks.bar import Bar
from tests.benchmarks.cost import step_costs
from tests.real.models import ResNet

RECIPE = Path(__file__).parents[1] / "real" / "resnet20.toml"
PICTURES, TESTED, STEPS, BATCH, VIEWS = 1500, 5000, 1200, 64, 8
SEEDS = (0, 1, 2)
# Student's t for two degrees of freedom, and the normal deviate, both for 95 % two-sided.
T_OF_THREE, Z = 4.303, 1.96


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Train three students each way on one thread; the gain in top-1 points, with intervals over seeds and pictures."""
    torch.set_num_threads(1)
    recipe = load_recipe(RECIPE)
    teacher = load_torch(recipe.model, Path(recipe.folder))
    data, test = _pictures(recipe, "train", PICTURES), _pictures(recipe, "pool", TESTED)
    step = Distill(
        training=Training(steps=STEPS, batch_size=BATCH, learning_rate=0.1, augment="crop-flip", views=VIEWS)
    )
    taught = [_taught(seed, teacher, data, step) for seed in SEEDS]
    new = msgspec.structs.replace(step.training, views=None)
    costs = _costs(teacher, data, step=step, new=new)
    asked = VIEWS * len(data) / BATCH  # steps in which the teacher is asked; the others cost what they cost alone
    alone_steps = round(STEPS + asked * (costs["taught"] / costs["alone"] - 1))
    alone = [_alone(seed, data, _for(new, seed, steps=alone_steps)) for seed in SEEDS]
    hits = [[_hits(module, test) for module, _ in arm] for arm in (taught, alone)]
    gains = [100 * float((one - other).mean()) for one, other in zip(*hits, strict=True)]
    over_seeds = T_OF_THREE * statistics.stdev(gains) / math.sqrt(len(gains))
    by_picture = 100 * np.mean([one - other for one, other in zip(*hits, strict=True)], axis=0)
    over_pictures = Z * float(by_picture.std(ddof=1)) / math.sqrt(len(by_picture))
    gain = statistics.mean(gains)
    figures = {
        "top1_teacher": 100 * float(_hits(teacher, test).mean()),
        "top1_taught": [100 * float(found.mean()) for found in hits[0]],
        "top1_alone": [100 * float(found.mean()) for found in hits[1]],
        "gain": gain,
        "gain_interval_over_seeds": [gain - over_seeds, gain + over_seeds],
        "gain_interval_over_pictures": [gain - over_pictures, gain + over_pictures],
        "steps_taught": STEPS,
        "steps_alone": alone_steps,
        "cpu_seconds_taught": [seconds for _, seconds in taught],
        "cpu_seconds_alone": [seconds for _, seconds in alone],
    }
    return figures, {
        "gain_over_seeds": Bar(gain - over_seeds, 0.0, "lower end of the 95 % interval over three seeds", "min"),
        "gain_over_pictures": Bar(gain - over_pictures, 0.0, "the same over the pictures of the test", "min"),
    }


def _pictures(recipe: Any, source: str, count: int) -> TrainingData:
    """The first `count` pictures of a seeded order."""
    samples = open_samples(getattr(recipe.data, source), recipe)
    chosen = np.random.default_rng(0).permutation(len(samples))[:count]
    signature = declared_signature(recipe.model.inputs)
    inputs, labels = arrays(Prepared(samples, tuple(chosen.tolist()), resolve_preprocess(recipe), signature))
    return TrainingData(tuple(inputs.values()), labels)


def _costs(teacher: torch.nn.Module, data: TrainingData, *, step: Distill, new: Training) -> dict[str, float]:
    student, single = _student(0), _student(0)
    lesson = msgspec.structs.replace(step, training=msgspec.structs.replace(new, epochs=1.0, steps=None))
    trainings: Any = {
        "taught": lambda few: distill(student, copy.deepcopy(teacher), data=few, step=lesson),
        "alone": lambda few: train(single, few, loss=resolve_loss("cross_entropy"), settings=lesson.training),
    }
    with tempfile.TemporaryDirectory() as folder:
        return step_costs(Path(folder), trainings, data=data, batch_size=BATCH, key=None)


def _for(settings: Training, seed: int, *, steps: int) -> Training:
    return msgspec.structs.replace(settings, seed=seed, steps=steps)


def _student(seed: int) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(1)


def _taught(seed: int, teacher: torch.nn.Module, data: TrainingData, step: Distill) -> tuple[torch.nn.Module, float]:
    student, start = _student(seed), time.process_time()
    lesson = msgspec.structs.replace(step, training=_for(step.training, seed, steps=STEPS))
    distill(student, copy.deepcopy(teacher), data=data, step=lesson)
    return student, time.process_time() - start


def _alone(seed: int, data: TrainingData, settings: Training) -> tuple[torch.nn.Module, float]:
    student, start = _student(seed), time.process_time()
    train(student, data, loss=resolve_loss("cross_entropy"), settings=settings)
    return student, time.process_time() - start


def _hits(module: torch.nn.Module, test: TrainingData) -> np.ndarray:
    with torch.no_grad():
        guesses = [module.eval()(part).argmax(1) for part in torch.from_numpy(test.arrays[0]).split(100)]
    return (torch.cat(guesses).numpy() == test.labels).astype(np.float64)
