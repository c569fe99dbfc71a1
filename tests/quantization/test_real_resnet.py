"""The pretrained CIFAR ResNet-20, as users have it: every convolution in integers, and the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeexport.quantization import calibrate, plan_quantization, quantize
from edgeexport.records.target import NumberFormat
from edgeexport.runtimes.ort import open_session
from tests.needs import need
from tests.quantization.nets import integer_ops

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JUDGED = 400


def resnet20(real_data: Path, out: Path) -> Path:
    """Export the released checkpoint."""
    import torch

    from tests.real.models import resnet20 as build

    stored = torch.load(real_data / "checkpoints" / "resnet20-12fca82f.th", weights_only=True, map_location="cpu")
    module = build()
    module.load_state_dict({name.removeprefix("module."): value for name, value in stored["state_dict"].items()})
    batch = ({0: torch.export.Dim("batch")},)
    names = {"input_names": ["image"], "output_names": ["logits"]}
    example = (torch.zeros(2, 3, 32, 32),)
    torch.onnx.export(
        module.eval(), example, out, dynamo=True, opset_version=20, dynamic_shapes=batch, external_data=False,
        verbose=False, **names,
    )  # fmt: skip
    return out


def pictures_of(real_data: Path, part: str, count: int) -> list[NDArray[Any]]:
    """Every n-th picture of a zip, normalized, batch of one."""
    import io
    import zipfile

    from PIL import Image

    with zipfile.ZipFile(real_data / "cifar10" / f"{part}.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        chosen = [archive.read(name) for name in names[:: len(names) // count][:count]]
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (MEAN, STD))
    arrays = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32) for data in chosen]
    return [((array.transpose(2, 0, 1) / 255 - mean) / std)[None].astype(np.float32) for array in arrays]


@pytest.mark.real
@pytest.mark.slow
def test_resnet20_runs_in_integers_and_agrees_with_float(real_data: Path, tmp_path: Path) -> None:
    need("torch")
    path = resnet20(real_data, tmp_path / "net.onnx")
    samples = [{"image": picture} for picture in pictures_of(real_data, "train", 100)]
    ranges = calibrate(path, samples, samples_digest="sha256:0")
    out = tmp_path / "int8.onnx"
    quantize(path, plan_quantization(path, ranges, numbers=NumberFormat(activations="uint8")), out=out)
    assert integer_ops(out)["QLinearConv"] == 19
    assert path.stat().st_size / out.stat().st_size > 3.0
    judged = {"image": np.concatenate(pictures_of(real_data, "test", JUDGED))}
    ours, theirs = (open_session(file, threads=2).run(judged)["logits"].argmax(1) for file in (out, path))
    assert float(np.mean(ours == theirs)) >= 0.965  # 98.3 % expected, three standard errors at 400 pictures
