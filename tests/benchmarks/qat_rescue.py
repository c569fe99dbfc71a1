"""EfficientNet-Lite0 with one scale for each weight: what min-max loses of it, and what training for its integers.

The weights are the released ones; nothing is done to make them break. 100 of the shared pictures calibrate and, by
crops of them, train: the float network is the teacher, labels are not used. Training starts from equalized weights, of
which min-max loses nearly as much; rounding by learning would leave it nothing to rescue. 10 crops each of the other
400 judge, in onnxruntime. A killed run goes on. EDGEEXPORT_BENCHMARKS_SCALE scales the epochs, for a try that only
proves that it runs.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

import edgeexport
from edgeexport import graph
from edgeexport.quantization import Lesson, equalize, plan_quantization, quantize, train_quantized
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.target import load_target
from edgeexport.records.training import Tuning
from edgeexport.training import TrainingData
from edgeexport.workspace import Workspace
from tests.benchmarks.bar import Bar
from tests.benchmarks.lite0 import SIDE, Pictures, all_names, crops, judged, judged_names, logits
from tests.benchmarks.peers import NETWORKS
from tests.benchmarks.wheels import CACHE
from tests.needs import DATA

BROKEN, DROP, MOVED = 5.0, 0.5, 1e-3
CROPS = 16
SCALE = float(os.environ.get("EDGEEXPORT_BENCHMARKS_SCALE") or 1)
FOR_INTEGERS = Tuning(epochs=6 * SCALE, batch_size=16, learning_rate=5e-4, optimizer="adamw-relative")


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Quantize by min-max and by training, and judge both beside fp32."""
    place = CACHE / "qat-rescue"
    place.mkdir(parents=True, exist_ok=True)
    network = NETWORKS["lite0"](place)
    pictures = np.load(network.calibration)["image"]
    with Workspace(place / "work") as work:
        key = {"training": msgspec.to_builtins(FOR_INTEGERS), "crops": CROPS, "threads": torch.get_num_threads()}
        state = work.unfinished("qat", key=key)
        files, found = _forms(network.fp32, pictures, folder=place, state=state)
        shutil.rmtree(state)  # a later run measures a training of its own
    names, labels = judged_names()
    answers = {name: logits(path, crops(names)) for name, path in files.items()}
    tenfold = np.repeat(labels, 10)
    rows = {name: judged(answer, answers["fp32"], labels=tenfold) for name, answer in answers.items()}
    return {**rows, **found}, {
        "broken": Bar(rows["minmax"]["drop"], BROKEN, "points lost by per-tensor min-max", "min"),
        "drop": Bar(rows["trained"]["drop"], DROP, "points of top-1 below fp32"),
        "moved": Bar(
            found["moved_integers"], MOVED, "share of int8 weights: training that moves none rescues none", "min"
        ),
    }


def _forms(fp32: Path, pictures: Pictures, *, folder: Path, state: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """Write int8 by min-max, with equalized weights, and trained from those; say what the training was."""
    files = {"fp32": fp32, **{name: folder / f"{name}.onnx" for name in ("minmax", "equalized", "trained")}}
    feeds = [{"image": picture[None]} for picture in pictures]
    quantize(fp32, _plan(fp32, feeds), out=files["minmax"])
    equal, learnt = (folder / f"spine-{name}.onnx" for name in ("equalized", "trained"))
    equalize(fp32, feeds, out=equal, per_channel=False)
    plan = _plan(equal, feeds)
    quantize(equal, plan, out=files["equalized"])
    lesson = Lesson(FOR_INTEGERS, teacher=fp32, learn_steps=True, state=state)
    data = TrainingData((_heard(),))
    found = train_quantized(equal, plan, data=data, out=learnt, lesson=lesson, progress=_say)
    quantize(learnt, found.plan, out=files["trained"])
    moved = moved_integers(files["equalized"], files["trained"])
    training = {"steps": found.record.steps, "loss": found.record.final_loss, "moved_integers": moved}
    return files, {**training, "agreement": found.agreement}


def moved_integers(before: Path, after: Path) -> float:
    """Return the share of a file's int8 weights that another one of the same network has otherwise."""
    old, new = (graph.initializers(graph.load(path)) for path in (before, after))
    weights = [name for name, value in old.items() if value.dtype == np.int8 and value.ndim > 1]
    return float(np.mean(np.concatenate([(old[name] != new[name]).ravel() for name in weights])))


def _plan(path: Path, feeds: list[dict[str, Any]]) -> QuantizationPlan:
    """One scale for each tensor, of its extremes, as a CPU with exact sums has it."""
    ranges = edgeexport.calibrate(path, feeds, method="minmax")
    numbers = msgspec.structs.replace(load_target("linux-x86_64-vnni").numbers(), per_channel=False)
    return plan_quantization(path, ranges, numbers=numbers)


def _heard() -> Pictures:
    """Crops at seeded places of the pictures that calibrate, every other one mirrored: (n, 3, SIDE, SIDE)."""
    from PIL import Image

    random, made = np.random.default_rng(0), []
    with zipfile.ZipFile(DATA / "imagenet_sample" / "val.zip") as archive:
        for name in all_names()[::5]:
            picture = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"), np.float32)
            for index in range(CROPS):
                top, left = (random.integers(0, side - SIDE + 1) for side in picture.shape[:2])
                crop = picture[top : top + SIDE, left : left + SIDE]
                made.append(crop[:, ::-1] if index % 2 else crop)
    return np.ascontiguousarray(((np.stack(made) - 127) / 128).transpose(0, 3, 1, 2), np.float32)


def _say(text: str, _: float | None) -> None:
    sys.stderr.write(f"{text}\n")
