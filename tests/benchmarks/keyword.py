"""Spoken digits of speakers that were never heard: a keyword net compressed, beside itself and a small net alone.

The compressed net (a smaller one, distilled, in int8) and the same small net trained alone get the same CPU time, and
both have the front-end of the large one, inside the graph. The one alone is judged in the form that ships of it, which
may be fp32. Speakers are held out in turn, and the mean over them is judged: EDGEEXPORT_BENCHMARKS_FULL=1 takes all
five. Trainings go on two at a time, each in a process of one thread; what is timed is timed when they are over.
Workspaces are kept in the cache: a killed run goes on. EDGEEXPORT_BENCHMARKS_SCALE scales all epochs, for a try that
proves nothing but that it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

import edgeexport
from edgeexport.records.recipe import DataSpec, Distill, Limits, ModelSpec, Quantize, Recipe, Step, Train, Training
from edgeexport.records.run import TargetResult
from edgeexport.training import TrainingData, resolve_loss, train
from tests.benchmarks.bar import Bar
from tests.benchmarks.cost import step_costs
from tests.benchmarks.host import host_target
from tests.benchmarks.kept import written
from tests.benchmarks.sides import THREADS, results, sides
from tests.benchmarks.wheels import CACHE
from tests.real import keywords

DROP, SMALLER, FASTER, MOST_PARAMETERS = 0.5, 6.0, 3.0, 150_000
SCALE = float(os.environ.get("EDGEEXPORT_BENCHMARKS_SCALE") or 1)
SPEAKERS, FEW = (keywords.HELD_OUT, "george", "jackson", "lucas", "nicolas"), 3
TRAINING = Training(
    epochs=50 * SCALE,
    batch_size=64,
    learning_rate=0.012,
    optimizer="tests.benchmarks.muon:muon",
    weight_decay=1e-3,
    augment="tests.real.keywords:varied",
)
# The teacher is asked in so many epochs; after them the same clips come again, and what it said is remembered.
VIEWS = max(1, round(40 * SCALE))
LARGE, SMALL = "tests.real.keywords:ds_cnn", "tests.real.keywords:small_ds_cnn"
INPUTS: Any = {"audio": (1, keywords.SAMPLES)}
# Four speakers are soon known by heart; mixtures of them are ever new, and a teacher answers them without labels.
DISTIL = Distill(
    student=ModelSpec(factory=SMALL, inputs=INPUTS),
    soft_share=1.0,
    training=msgspec.structs.replace(TRAINING, epochs=160 * SCALE, augment="tests.real.keywords:mixed", views=VIEWS),
)
FOLDER = Path(__file__).parents[2]
# Which form ships is no matter of a gate here: the heard speakers of the selection split say little of others.
LIMITS = Limits(max_drop=100.0)


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Train, distil, quantize and measure for each held-out speaker; compare on that speaker's clips."""
    speakers = SPEAKERS if os.environ.get("EDGEEXPORT_BENCHMARKS_FULL") == "1" else SPEAKERS[:FEW]
    (CACHE / "keyword").mkdir(parents=True, exist_ok=True)
    with sides() as pool:
        costs = pool.submit(_costs, speakers[0]).result()
        alone_epochs = epochs_alone(costs)
        trainings = [pool.submit(_compressed, speaker, device="none") for speaker in speakers]
        trainings += [pool.submit(_alone, speaker, alone_epochs, device="none") for speaker in speakers]
        results(trainings)
    torch.set_num_threads(THREADS)
    rows = {speaker: _row(speaker, alone_epochs) for speaker in speakers}
    mean = {key: float(np.mean([row[key] for row in rows.values()])) for key in next(iter(rows.values()))}
    parameters = sum(parameter.numel() for parameter in keywords.ds_cnn().parameters())
    found = {"speakers": rows, "mean": mean, "parameters": parameters, "alone_epochs": alone_epochs}
    return {**found, "cpu_seconds_a_step": costs}, {
        "drop": Bar(mean["drop"], DROP, "points of top-1 below the large net in fp32"),
        "gain_over_alone": Bar(mean["gain_over_alone"], 0.0, "the same small net trained alone for as long", "min"),
        "size_ratio": Bar(mean["size_ratio"], SMALLER, ".onnx against the large net's fp32 .onnx", "min"),
        "speed_up": Bar(mean["speed_up"], FASTER, "1 thread, interleaved with the large net in fp32", "min"),
        "parameters": Bar(parameters, MOST_PARAMETERS, "the large net is of the DS-CNN class"),
    }


def epochs_alone(costs: Mapping[str, float]) -> float:
    """Return the epochs of the small net alone that take as long as distilling it.

    costs: CPU seconds of a step of each; twice: of a step of distilling and of one more on the same clips.
    """
    asked = min(VIEWS, DISTIL.training.epochs)
    again = costs["twice"] - costs["distil"]
    return (asked * costs["distil"] + (DISTIL.training.epochs - asked) * again) / costs["alone"]


def _row(speaker: str, alone_epochs: float) -> dict[str, float]:
    """Judge what was trained for a speaker, and measure it here."""
    compressed, alone = _compressed(speaker), _alone(speaker, alone_epochs)
    if compressed.shipped is None or "int8" not in compressed.shipped:
        sys.exit(f"{speaker}: shipped {compressed.shipped}, not in int8: {compressed.nearest_miss}")
    ratio = compressed.comparison.ratio if compressed.comparison else None
    return {
        "large": _score(compressed.source_score),
        "compressed": _score(compressed.score),
        "alone": _score(alone.score),
        "drop": _score(compressed.source_score) - _score(compressed.score),
        "gain_over_alone": _score(compressed.score) - _score(alone.score),
        "size_ratio": 1 / (compressed.size_ratio or float("nan")),
        "speed_up": 1 / ratio.value if ratio else float("nan"),
    }


def _compressed(speaker: str, *, device: str | None = None) -> TargetResult:
    """Train the large net, distil the small one, quantize it; of `device`, see `edgeexport.run`."""
    recipe = _recipe(LARGE, (Train(training=TRAINING), DISTIL), speaker=speaker)
    return _shipped(f"{speaker}-compressed", recipe, device=device)


def _alone(speaker: str, epochs: float, *, device: str | None = None) -> TargetResult:
    training = msgspec.structs.replace(TRAINING, epochs=epochs)
    return _shipped(f"{speaker}-alone", _recipe(SMALL, (Train(training=training),), speaker=speaker), device=device)


def _recipe(factory: str, trainings: tuple[Step, ...], *, speaker: str) -> Recipe:
    heard = keywords.Clips(lambda one: one != speaker)
    judging = keywords.Clips(lambda one: one == speaker)
    return Recipe(
        model=ModelSpec(factory=factory, inputs=INPUTS),
        data=DataSpec(train=heard, evaluate=judging),
        limits=LIMITS,
        step=(*trainings, Quantize(keep_float=keywords.FRONT)),
        folder=str(FOLDER),
    )


def _score(score: Any) -> float:
    return float("nan") if score is None else float(score.value)


def _shipped(name: str, recipe: Recipe, *, device: str | None) -> TargetResult:
    """Run a recipe for this machine's target; the workspace stays in the cache."""
    place = CACHE / "keyword" / name
    say = partial(_say, who=name)
    out, work = place / "out", place / "work"
    record = edgeexport.run(recipe, [host_target()], device=device, out=out, workspace=work, progress=say)
    return record.targets[0]


def _costs(speaker: str) -> dict[str, float]:
    """Return the CPU seconds of a step, see `epochs_alone`."""
    clips = keywords.Clips(lambda one: one != speaker)
    inputs, labels = zip(*(clips[index] for index in range(len(clips))), strict=True)
    data = TrainingData(np.stack(inputs), np.array(labels), folder=str(FOLDER))
    key = [msgspec.to_builtins(TRAINING), msgspec.to_builtins(DISTIL), written(Path(__file__), Path(keywords.__file__))]
    return step_costs(CACHE / "keyword", _trainings(), data=data, batch_size=TRAINING.batch_size, key=key)


def _trainings() -> Any:
    """What the two small nets go through, for the timing of a step."""
    large, student, single = keywords.ds_cnn(), keywords.small_ds_cnn(), keywords.small_ds_cnn()
    once = msgspec.structs.replace(TRAINING, epochs=1.0)
    loss = resolve_loss("cross_entropy")

    def distilling(few: TrainingData, *, epochs: float) -> None:
        training = msgspec.structs.replace(DISTIL.training, epochs=epochs, views=1)
        edgeexport.distill(student, large, data=few, step=msgspec.structs.replace(DISTIL, training=training))

    return {
        "distil": partial(distilling, epochs=1.0),
        "twice": partial(distilling, epochs=2.0),
        "alone": lambda few: train(single, few, loss=loss, settings=once),
    }


def _say(text: str, _: float | None, *, who: str) -> None:
    sys.stderr.write(f"{who}: {text}\n")
