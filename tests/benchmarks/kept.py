"""Networks that a benchmark trains: each is kept in a workspace under what made it, so that a killed run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    fit: Callable[[nn.Module], TrainingRecord],
) -> nn.Module:
    """Return `build()` with the weights that `fit` left in it, in this run or in an earlier one of the same key."""

    def make(folder: Any) -> TrainingRecord:
        module = build()
        record = fit(module)
        save_weights(module, folder / WEIGHTS)
        return record

    stage = work.stage(name, key=key, make=make, kind=TrainingRecord)
    module = build()
    load_weights(module, stage.folder / WEIGHTS)
    return module.eval()
