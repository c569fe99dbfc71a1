"""The networks of the comparison: an fp32 file as edgeexport exports it, calibration pictures, judged pictures."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgeexport
from tests.needs import DATA
from tests.quantization.test_real_resnet import MEAN, STD

CIFAR_CALIBRATION = 128


@dataclass(frozen=True)
class Network:
    """fp32: the .onnx file. calibration: the .npz file that every script is given. pictures, labels: what judges."""

    fp32: Path
    calibration: Path
    pictures: NDArray[np.float32]
    labels: NDArray[np.int64]


def cifar_resnet(name: str, folder: Path) -> Network:
    """Return a released CIFAR-10 checkpoint; all of the test half judges, 128 training pictures calibrate."""
    import torch

    from tests.real import models

    module = getattr(models, name)()
    (path,) = (DATA / "checkpoints").glob(f"{name}-*.th")
    stored = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    module.load_state_dict({key.removeprefix("module."): value for key, value in stored.items()})
    train, _ = _cifar("train", CIFAR_CALIBRATION)
    return _made(module.eval(), folder / f"{name}.onnx", calibration=train, judged=_cifar("test", None))


def lite0(name: str, folder: Path) -> Network:
    """Return EfficientNet-Lite0; every fifth of 500 ImageNet pictures calibrates, the others judge."""
    from tests.real.lite0 import efficientnet_lite0

    archive = zipfile.ZipFile(DATA / "imagenet_sample" / "val.zip")
    lines = (DATA / "imagenet_sample" / "classes.txt").read_text(encoding="utf-8").splitlines()
    classes = {line.split()[1]: int(line.split()[0]) for line in lines}
    names = sorted(entry for entry in archive.namelist() if entry.lower().endswith((".jpg", ".jpeg")))
    pictures = np.concatenate([_cropped(archive.read(entry)) for entry in names])
    labels = np.array([classes[entry.split("/")[-2]] for entry in names])
    fifth = np.arange(len(names)) % 5 == 0
    module = efficientnet_lite0().eval()
    judged = pictures[~fifth], labels[~fifth]
    return _made(module, folder / f"{name}.onnx", calibration=pictures[fifth], judged=judged)


NETWORKS: dict[str, Callable[[Path], Network]] = {
    "resnet20": partial(cifar_resnet, "resnet20"),
    "resnet56": partial(cifar_resnet, "resnet56"),
    "lite0": partial(lite0, "lite0"),
}


def _made(module: Any, fp32: Path, *, calibration: NDArray[Any], judged: tuple[NDArray[Any], NDArray[Any]]) -> Network:
    feeds = [{"image": picture[None]} for picture in calibration[:2]]
    shape = (1, *calibration.shape[1:])
    edgeexport.export(module, {"image": shape}, out=fp32, samples=feeds, outputs=["logits"])
    stored = fp32.with_suffix(".npz")
    np.savez(stored, image=calibration)
    return Network(fp32, stored, *judged)


def _cifar(part: str, count: int | None) -> tuple[NDArray[Any], NDArray[Any]]:
    from PIL import Image

    with zipfile.ZipFile(DATA / "cifar10" / f"{part}.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        step = len(names) // count if count else 1
        chosen = names[::step][:count]
        raw = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in chosen])
    classes = sorted({name.split("/")[-2] for name in names})
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    pictures = ((raw.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pictures), np.array([classes.index(name.split("/")[-2]) for name in chosen])


def _cropped(data: bytes) -> NDArray[np.float32]:
    """The middle 224 pixels, as (value - 127) / 128."""
    from PIL import Image

    picture = Image.open(io.BytesIO(data)).convert("RGB")
    left, top = (picture.width - 224) // 2, (picture.height - 224) // 2
    pixels = np.asarray(picture.crop((left, top, left + 224, top + 224)), np.float32)
    return ((pixels - 127) / 128).transpose(2, 0, 1)[None]
