"""Networks that a benchmark trains, kept in a workspace under what made them: a killed run goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from edgeexport.compression.checkpoint import load_weights, save_weights
from edgeexport.records.training import TrainingRecord
from edgeexport.workspace import Workspace

WEIGHTS = "weights.safetensors"


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
