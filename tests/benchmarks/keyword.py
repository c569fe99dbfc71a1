"""Spoken digits of a speaker that was never heard: a keyword net compressed, beside itself and a small net alone.

The compressed net (a smaller one, distilled, in int8) and the same small net trained alone get the same CPU time, and
both have the front-end of the large one, inside the graph. The one alone is judged in the form that ships of it, which
may be fp32. EDGEEXPORT_BENCHMARKS_FULL=1 holds out each of the five speakers in turn. Workspaces are kept in the cache:
a killed run goes on.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import edgeexport
from edgeexport.records.recipe import DataSpec, Distill, Limits, ModelSpec, Quantize, Recipe, Train, Training
from edgeexport.records.run import TargetResult
from edgeexport.training import TrainingData, resolve_loss, train
from tests.benchmarks.bar import Bar
from tests.benchmarks.cost import step_costs
from tests.benchmarks.host import host_target
from tests.benchmarks.kept import written
from tests.benchmarks.wheels import CACHE
from tests.real import keywords

DROP, SMALLER, FASTER, MOST_PARAMETERS = 0.5, 6.0, 3.0, 150_000
LARGE_EPOCHS, STUDENT_EPOCHS, VIEWS = 20.0, 40.0, 10
SPEAKERS = (keywords.HELD_OUT, "george", "jackson", "lucas", "nicolas")
TRAINING = Training(batch_size=64, learning_rate=0.003, optimizer="adamw", weight_decay=1e-3, augment="keywords:varied")
LARGE, SMALL = "keywords:ds_cnn", "keywords:small_ds_cnn"
INPUTS: Any = {"audio": (1, keywords.SAMPLES)}
FOLDER = Path(keywords.__file__).parent
# Which form ships is no matter of a gate here: the heard speakers of the selection split say little of others.
LIMITS = Limits(max_drop=100.0)


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Train, distil, quantize and measure for each held-out speaker; compare on that speaker's clips."""
    speakers = SPEAKERS if os.environ.get("EDGEEXPORT_BENCHMARKS_FULL") == "1" else SPEAKERS[:1]
    rows = {speaker: _row(speaker) for speaker in speakers}
    mean = {key: float(np.mean([row[key] for row in rows.values()])) for key in next(iter(rows.values()))}
    parameters = sum(parameter.numel() for parameter in keywords.ds_cnn().parameters())
    return {"speakers": rows, "parameters": parameters, "mean": mean}, {
        "drop": Bar(mean["drop"], DROP, "points of top-1 below the large net in fp32"),
        "gain_over_alone": Bar(mean["gain_over_alone"], 0.0, "the same small net trained alone for as long", "min"),
        "size_ratio": Bar(mean["size_ratio"], SMALLER, ".onnx against the large net's fp32 .onnx", "min"),
        "speed_up": Bar(mean["speed_up"], FASTER, "1 thread, interleaved with the large net in fp32", "min"),
        "parameters": Bar(parameters, MOST_PARAMETERS, "the large net is of the DS-CNN class"),
    }


def _row(speaker: str) -> dict[str, float]:
    heard = keywords.Clips(lambda one: one != speaker)
    judging = keywords.Clips(lambda one: one == speaker)
    data = DataSpec(train=heard, evaluate=judging)
    key = [msgspec.to_builtins(TRAINING), written(Path(__file__), Path(keywords.__file__))]
    costs = step_costs(CACHE / "keyword", _trainings(), data=_arrays(heard), batch_size=64, key=key)
    # The teacher is asked in the epochs whose views are new; in the others a step costs what it costs alone.
    alone_epochs = STUDENT_EPOCHS + VIEWS * (costs["distil"] / costs["alone"] - 1)
    small = ModelSpec(factory=SMALL, inputs=INPUTS)
    distil = Distill(student=small, training=_for(STUDENT_EPOCHS, views=VIEWS))
    compressed = _shipped(
        f"{speaker}-compressed",
        Recipe(
            model=ModelSpec(factory=LARGE, inputs=INPUTS),
            data=data,
            limits=LIMITS,
            step=(Train(training=_for(LARGE_EPOCHS)), distil, Quantize(keep_float=keywords.FRONT)),
            folder=str(FOLDER),
        ),
        form="int8",
    )
    alone = _shipped(
        f"{speaker}-alone",
        Recipe(
            model=small,
            data=data,
            limits=LIMITS,
            step=(Train(training=_for(alone_epochs)), Quantize(keep_float=keywords.FRONT)),
            folder=str(FOLDER),
        ),
    )
    return {
        "large": _score(compressed.source_score),
        "compressed": _score(compressed.score),
        "alone": _score(alone.score),
        "alone_epochs": alone_epochs,
        "drop": _score(compressed.source_score) - _score(compressed.score),
        "gain_over_alone": _score(compressed.score) - _score(alone.score),
        "size_ratio": 1 / (compressed.size_ratio or float("nan")),
        "speed_up": 1 / compressed.comparison.ratio.value
        if compressed.comparison and compressed.comparison.ratio
        else float("nan"),
    }


def _for(epochs: float, *, views: int | None = None) -> Training:
    return msgspec.structs.replace(TRAINING, epochs=epochs, views=views)


def _score(score: Any) -> float:
    return float("nan") if score is None else float(score.value)


def _shipped(name: str, recipe: Recipe, *, form: str = "") -> TargetResult:
    """Run a recipe for this machine's target; the workspace stays in the cache."""
    place = CACHE / "keyword" / name
    record = edgeexport.run(recipe, [host_target()], out=place / "out", workspace=place / "work", progress=_say)
    result = record.targets[0]
    if result.shipped is None or form not in result.shipped:
        sys.exit(f"{name}: shipped {result.shipped}, not in {form}: {result.nearest_miss}")
    return result


def _arrays(clips: keywords.Clips) -> TrainingData:
    inputs, labels = zip(*(clips[index] for index in range(len(clips))), strict=True)
    return TrainingData(np.stack(inputs), np.array(labels), folder=str(FOLDER))


def _trainings() -> Any:
    """What the two small nets go through, for the timing of a step."""
    large, student, single = keywords.ds_cnn(), keywords.small_ds_cnn(), keywords.small_ds_cnn()
    return {
        "distil": lambda data: edgeexport.distill(student, large, data=data, step=Distill(training=_for(1.0))),
        "alone": lambda data: train(single, data, loss=resolve_loss("cross_entropy"), settings=_for(1.0)),
    }


def _say(text: str, _: float | None) -> None:
    sys.stderr.write(f"{text}\n")
