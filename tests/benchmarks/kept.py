"""What a benchmark works out, kept under what made it: a killed run goes on where it was, a changed one begins anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeexport.compression.checkpoint import load_weights, save_weights
from edgeexport.devices.local import host_features
from edgeexport.records.base import digest, file_digest
from edgeexport.records.training import TrainingRecord
from edgeexport.workspace import Workspace, tool_digest, versions

WEIGHTS = "weights.safetensors"


def kept_file(folder: Path, name: str, *, key: Any) -> Path:
    """Where a benchmark keeps a figure that holds for `key` by this edgeexport, on such a CPU with as many threads."""
    made_by = [tool_digest(), versions("torch", "onnxruntime", "numpy")]
    what = [key, made_by, sorted(host_features()), torch.get_num_threads()]
    return folder / f"{name}-{digest(what).removeprefix('sha256:')[:12]}.json"


def written(*files: Path) -> list[str]:
    """Return digests of files that a training depends on and no settings tell apart: code, checkpoints, samples."""
    return [file_digest(path) for path in files]


def trained(
    work: Workspace,
    name: str,
    *,
    key: Mapping[str, Any],
    build: Callable[[], nn.Module],
    fit: Callable[[nn.Module, Path], TrainingRecord],
) -> nn.Module:
    """Return `build()` with the weights that `fit` left in it, in this run or in an earlier one of the same key.

    fit: trains a network in place; the folder is for what it keeps of a training that is not over.
    """

    def make(folder: Path) -> TrainingRecord:
        module = build()
        record = fit(module, work.unfinished(name, key=key))
        save_weights(module, folder / WEIGHTS)
        return record

    stage = work.stage(name, key=key, make=make, kind=TrainingRecord)
    module = build()
    load_weights(module, stage.folder / WEIGHTS)
    return module.eval()
