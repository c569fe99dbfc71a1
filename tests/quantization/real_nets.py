"""The released networks of `tests/real` as cleaned fp32 spines, with a few samples each."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from edgeexport import graph
from edgeexport.onnx_export import clean
from tests.quantization.nets import pictures
from tests.quantization.test_real_resnet import pictures_of


def exported(real_data: Path, name: str, out: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A released network as a cleaned spine, and a few pictures. The older exporter is the quicker one."""
    import torch

    from tests.real import lite0, models

    if name == "lite0":
        module, samples = lite0.efficientnet_lite0(), pictures(2, shape=(1, 3, 224, 224))
    else:
        (checkpoint,) = (real_data / "checkpoints").glob(f"{name}-*.th")
        stored = torch.load(checkpoint, weights_only=True, map_location="cpu")["state_dict"]
        module = getattr(models, name)()
        module.load_state_dict({key.removeprefix("module."): value for key, value in stored.items()})
        samples = [{"image": picture} for picture in pictures_of(real_data, "train", 4)]
    example = torch.from_numpy(samples[0]["image"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (example,), out, input_names=["image"], dynamo=False, opset_version=17)
    graph.save(clean(graph.load(out))[0], out)
    return out, samples
