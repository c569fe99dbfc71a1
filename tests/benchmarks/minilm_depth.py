"""MiniLM with half of its layers: cut from the tuned teacher, distilled, tuned in the same way, both in int8.

The full model is tuned on the pairs of STS-B train; the student learns the tuned model's vectors on the sentences of
that split and on variations of them, then is tuned as the full model was. Everything is kept in the cache: a killed run
goes on.
EDGEEXPORT_BENCHMARKS_SCALE scales all epochs, for a try that proves nothing but that it runs.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import edgeexport
from edgeexport.compression.distill import distill
from edgeexport.quantization import choose_encoder_form
from edgeexport.records.recipe import Distill, Training
from edgeexport.training import TrainingData, resolve_loss, train
from edgeexport.workspace import Workspace
from tests.benchmarks.bar import Bar
from tests.benchmarks.beside import speed_up
from tests.benchmarks.host import host_target
from tests.benchmarks.kept import trained, written
from tests.benchmarks.minilm_int8 import _judged
from tests.benchmarks.wheels import CACHE
from tests.needs import DATA
from tests.real import minilm

LAYERS = (0, 2, 4)
MOST_DROP, FASTER = 1.0, 1.8
SCALE = float(os.environ.get("EDGEEXPORT_BENCHMARKS_SCALE") or 1)
TUNE = Training(epochs=2 * SCALE, batch_size=32, learning_rate=3e-5, optimizer="adamw", loss="mse", weight_decay=0.01)
DISTIL = Distill(
    method="cosine",
    soft_share=1.0,
    training=Training(
        epochs=3 * SCALE, batch_size=32, learning_rate=3e-4, optimizer="adamw", loss="mse", weight_decay=0.01, views=1
    ),
)
# Longer sentences are cut in training, not in judging: 97 % of STS-B fit.
TRAINED_LENGTH = 32
CALIBRATION = 128
# Of each sentence, as many more are made for the student: what they mean is the teacher's to say.
VARIATIONS = 3


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Tune, cut, distil, tune, quantize both; judge on STS-B dev, measure one thread interleaved."""
    place = CACHE / "minilm-depth"
    with Workspace(place / "work") as work:
        full, student = networks(work)
    files = {name: exported(net, place / name) for name, net in {"full": full, "student": student}.items()}
    judged = _judged({"fp32": files["full"][0], **{f"{name} int8": both[1] for name, both in files.items()}})
    ours, theirs = judged["student int8"], judged["full int8"]
    feeds = minilm.words(minilm.pairs("train")[0][0])
    speed = speed_up(files["full"][1], files["student"][1], samples=[feeds])
    return {"layers": LAYERS, **judged, "speed_up": speed, "cosine_to_teacher": ours["cosine"]}, {
        "spearman_drop": Bar(theirs["spearman"] - ours["spearman"], MOST_DROP, "points below the full model in int8"),
        "spearman_drop_fp32": Bar(ours["spearman_drop"], MOST_DROP, "points below the full model in fp32"),
        "speed_up": Bar(speed, FASTER, "1 thread, interleaved with the full model's int8", "min"),
    }


class Likeness(nn.Module):
    """Two sentences → the cosine of their vectors, from 0 to 1 as the scores of STS-B by a fifth."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *sentences: torch.Tensor) -> torch.Tensor:
        ids, mask, other_ids, other_mask = sentences
        both = self.encoder(torch.cat([ids, other_ids]), torch.cat([mask, other_mask]))
        one, other = both.chunk(2)
        return (one * other).sum(dim=1, keepdim=True)


def networks(work: Workspace) -> tuple[nn.Module, nn.Module]:
    """Return the tuned full model, and the student cut from it, distilled and tuned."""
    made_by = written(Path(__file__), Path(minilm.__file__), DATA / "stsb" / "stsb-en-train.csv")
    key: dict[str, Any] = {"tune": msgspec.to_builtins(TUNE), "torch": torch.get_num_threads(), "made_by": made_by}
    full = trained(work, "full", key=key, build=minilm.minilm, fit=tune)
    key |= {"layers": LAYERS, "distil": msgspec.to_builtins(DISTIL)}

    def learn(student: nn.Module, state: Path) -> Any:
        return distill(student, full, data=_sentences(), step=DISTIL, progress=_say, state=state)

    distilled = trained(work, "distilled", key=key, build=lambda: cut(full, LAYERS), fit=learn)
    tuned = trained(work, "student", key=key, build=lambda: copy.deepcopy(distilled), fit=tune)
    return full, tuned


def cut(full: nn.Module, layers: tuple[int, ...]) -> nn.Module:
    """Return a copy of a sentence encoder that has only these of its layers."""
    student: Any = copy.deepcopy(full)
    stack = student.encoder.encoder
    stack.layer = nn.ModuleList(stack.layer[index] for index in layers)
    student.encoder.config.num_hidden_layers = len(layers)
    return student


def tune(encoder: nn.Module, state: Path) -> Any:
    """Train an encoder so that its cosines are the similarities of STS-B train."""
    pairs = minilm.pairs("train")
    sides = [_words([pair[side] for pair in pairs]) for side in (0, 1)]
    scores = np.array([[score / 5] for _, _, score in pairs], np.float32)
    data = TrainingData((*sides[0], *sides[1]), scores)
    return train(Likeness(encoder), data, loss=resolve_loss("mse"), settings=TUNE, progress=_say, state=state)


def _sentences() -> TrainingData:
    """Return the sentences of STS-B train, and variations of each in turn: the first half of one and the second of
    another, or about a third of its words from anywhere.
    """
    random = np.random.default_rng(0)
    found = sorted({text for one, other, _ in minilm.pairs("train") for text in (one, other)})
    split = [text.split() for text in found]
    known = [word for each in split for word in each]
    made = []
    for index in range(VARIATIONS * len(split)):
        own = split[index % len(split)]
        other = split[random.integers(len(split))]
        spliced = own[: (len(own) + 1) // 2] + other[len(other) // 2 :]
        mixed = [word if random.random() > 1 / 3 else known[random.integers(len(known))] for word in own]
        made.append(" ".join(spliced if index // len(split) % 2 == 0 else mixed))
    return TrainingData(_words(found + made))


def _words(sentences: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    found = [minilm.words(sentence) for sentence in sentences]
    ids, mask = (np.concatenate([each[name] for each in found])[:, :TRAINED_LENGTH] for name in ("ids", "mask"))
    return np.ascontiguousarray(ids), np.ascontiguousarray(mask)


def exported(network: nn.Module, folder: Path) -> tuple[Path, Path]:
    """Write a network as fp32 .onnx, and in the int8 form that `choose_encoder_form` puts first."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = [minilm.words(one) for one, _, _ in minilm.pairs("train")[:: 5749 // CALIBRATION][:CALIBRATION]]
    spec = edgeexport.InputSpec(shape=(1, minilm.LENGTH), dtype="int64")
    fp32 = folder / "fp32.onnx"
    edgeexport.export(network, {"ids": spec, "mask": spec}, out=fp32, samples=samples[:3], outputs=("embedding",))
    numbers = edgeexport.load_target(host_target()).numbers()
    choice = choose_encoder_form(fp32, samples, numbers=numbers, folder=folder, progress=_say)
    return fp32, folder / choice.trials[0].path


def _say(text: str, _: float | None) -> None:
    sys.stderr.write(f"{text}\n")
