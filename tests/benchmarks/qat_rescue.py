"""A depthwise net, trained normally, that per-tensor min-max int8 breaks: quantization-aware training brings it back.

The rule: nothing is planted. The net (MobileNetV1's blocks with ReLU6, at CIFAR's size) is trained from scratch with
the house's trainer; every form is judged by onnxruntime on the same 5000 test pictures, which nothing else looks at.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import edgeexport
from edgeexport.quantization import calibrate, equalize, learn_rounding, plan_quantization, quantize
from edgeexport.quantization.qat import Lesson, train_quantized
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.recipe import Training, Tuning
from edgeexport.records.target import NumberFormat
from edgeexport.runtimes.ort import open_session
from edgeexport.training import TrainingData, resolve_loss, train
from tests.benchmarks.bar import Bar
from tests.needs import DATA

# One scale for each weight: the format of small integer engines, and of per-tensor delegates.
NUMBERS = NumberFormat(activations="uint8", per_channel=False)
STEM, WIDTHS = 24, ((32, 2), (64, 1), (64, 1), (64, 1), (128, 2), (128, 1))
NORMAL = Training(epochs=5, batch_size=128, learning_rate=0.1, augment="crop-flip")
RESCUE = Tuning(epochs=2, batch_size=128, augment="crop-flip")
CALIBRATED = 256
BROKEN, WITHIN = 5.0, 0.5
EXACT = {"config_entries": {"session.x64quantprecision": "1"}}

Pictures = NDArray[np.float32]


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Train the net, break it, try what changes no training, and rescue it."""
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        figures = rescued(Path(name), data=cifar("train"), judged=cifar("test"))
    figures["seconds"] = time.monotonic() - began
    fp32 = figures["top1"]["fp32"]
    lost = {form: fp32 - score for form, score in figures["top1"].items()}
    return {**figures, "points lost": lost}, {
        "broken": Bar(lost["per-tensor min-max"], BROKEN, "per-tensor min-max int8 breaks it", "min"),
        "rescued": Bar(lost["QAT"], WITHIN, "QAT within half a point of fp32"),
    }


def rescued(folder: Path, *, data: TrainingData, judged: TrainingData) -> dict[str, Any]:
    """Return top-1 of every form, in percent, and what the trainings were."""
    fp32 = folder / "fp32.onnx"
    source = trained_net(fp32, data)
    samples = [{"image": data.arrays[0][index : index + 1]} for index in chosen(len(data))]
    ranges = calibrate(fp32, samples, samples_digest="")
    plan = plan_quantization(fp32, ranges, numbers=NUMBERS)
    top1 = {"fp32": _top1(fp32, judged), "per-tensor min-max": _int8(fp32, plan, judged)}
    rounded = folder / "rounded.onnx"
    top1["learned rounding"] = _int8(rounded, learn_rounding(fp32, plan, samples=samples, out=rounded), judged)
    balanced, both = folder / "balanced.onnx", folder / "both.onnx"
    equalize(fp32, samples, out=balanced, per_channel=False)
    ranges = calibrate(balanced, samples, samples_digest="")
    even = plan_quantization(balanced, ranges, numbers=NUMBERS)
    top1["equalized, learned rounding"] = _int8(both, learn_rounding(balanced, even, samples=samples, out=both), judged)
    found: dict[str, Any] = {}
    for form, learn_steps in (("QAT", False), ("QAT, learned steps", True)):
        sys.stderr.write(f"{form}\n")
        out = folder / "qat.onnx"
        trained = train_quantized(
            fp32, plan, data=data, out=out, lesson=Lesson(training=RESCUE, learn_steps=learn_steps), progress=_said
        )
        top1[form] = _int8(out, trained.plan, judged)
        found[form] = {"steps": trained.record.steps, "agreement": trained.agreement}
    return {"top1": top1, "trained": source, **found}


def trained_net(out: Path, data: TrainingData) -> dict[str, Any]:
    """Train the net from scratch and export it to `out`."""
    torch.manual_seed(0)
    net = DepthwiseNet()
    record = train(net, data, loss=resolve_loss("cross_entropy"), settings=NORMAL, progress=_said)
    edgeexport.export(net, {"image": (1, 3, 32, 32)}, out=out)
    return {"steps": record.steps, "epochs": record.epochs, "parameters": sum(p.numel() for p in net.parameters())}


class DepthwiseNet(nn.Module):
    """MobileNetV1 (Howard et al. 2017, arXiv:1704.04861) with ReLU6, for pictures (n, 3, 32, 32) and ten classes."""

    def __init__(self) -> None:
        super().__init__()
        layers, width = [_block(3, STEM, stride=2)], STEM
        for into, stride in WIDTHS:
            layers += [_block(width, width, stride=stride, groups=width), _block(width, into, size=1)]
            width = into
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(image).mean(dim=(2, 3)))
        return logits


def _block(channels: int, into: int, *, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, into, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(into), nn.ReLU6())


def cifar(part: str) -> TrainingData:
    """Return a part of CIFAR-10 with its labels, normalized."""
    from PIL import Image

    with zipfile.ZipFile(DATA / "cifar10" / f"{part}.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        pictures = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names])
    classes = sorted({name.split("/")[-2] for name in names})
    labels = np.array([classes.index(name.split("/")[-2]) for name in names], np.int64)
    mean, deviation = np.array([125.3, 123.0, 113.9], np.float32), np.array([63.0, 62.1, 66.7], np.float32)
    values = ((pictures.astype(np.float32) - mean) / deviation).transpose(0, 3, 1, 2)
    return TrainingData(np.ascontiguousarray(values), labels)


def chosen(count: int) -> NDArray[np.int64]:
    """Return which training pictures calibrate."""
    return np.random.default_rng(0).permutation(count)[:CALIBRATED]


def _int8(path: Path, plan: QuantizationPlan, judged: TrainingData) -> float:
    out = path.with_suffix(".int8.onnx")
    quantize(path, plan, out=out)
    return _top1(out, judged)


def _top1(path: Path, judged: TrainingData) -> float:
    session = open_session(path, options=EXACT if "int8" in path.name else {})
    assert judged.labels is not None
    right = 0
    for start in range(0, len(judged), 250):
        (logits,) = session.run({"image": judged.arrays[0][start : start + 250]}).values()
        right += int((logits.argmax(axis=1) == judged.labels[start : start + 250]).sum())
    return 100.0 * right / len(judged)


def _said(text: str, fraction: float | None = None) -> None:
    sys.stderr.write(f"\r{text}          ")
