"""What a PyTorch step leaves behind: a file of weights, and what builds the network around them again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgeexport.pipeline.road import Road
from edgeexport.records.artifact import Artifact, TorchWeights
from edgeexport.records.base import file_digest
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import ModelSpec
from edgeexport.workspace import Stage

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = "weights.safetensors"


class Origin(NamedTuple):
    """Where a network comes from, but for its weights: see `TorchWeights`."""

    model: ModelSpec
    seed: int
    plans: tuple[PruningPlan, ...] = ()


def origin_of(kept: TorchWeights) -> Origin:
    """Return where a kept network comes from."""
    return Origin(kept.model, kept.seed, kept.plans)


def keep(module: nn.Module, origin: Origin, *, folder: Path, maker: str, parent: str) -> TorchWeights:
    """Write a network's weights into a stage's folder, and return what rebuilds it."""
    from edgeexport.compression.checkpoint import save_weights

    path = folder / WEIGHTS
    save_weights(module, path)
    artifact = Artifact(WEIGHTS, "torch", file_digest(path), path.stat().st_size, parent, maker)
    return TorchWeights(origin.model, artifact, origin.plans, origin.seed)


def load_weights(road: Road, stage: Stage[TorchWeights]) -> nn.Module:
    """Rebuild the network that a stage left behind."""
    from edgeexport.compression.source import load_torch

    kept = stage.record
    path, spec = stage.folder / kept.artifact.path, road.with_live(kept.model)
    return load_torch(spec, Path(road.recipe.folder), plans=kept.plans, weights=path, seed=kept.seed)
