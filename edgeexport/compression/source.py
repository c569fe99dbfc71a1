"""The module a recipe means: built by its factory, with its weights, and pruned as its plans say.

The rule: a module is never stored, only what rebuilds it: factory, plans, weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeexport.compression.checkpoint import build, load_weights
from edgeexport.compression.prune import apply_pruning
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import ModelSpec, expand

if TYPE_CHECKING:
    import numpy as np
    import torch


def load_torch(
    spec: ModelSpec, folder: Path, *, plans: Sequence[PruningPlan] = (), weights: Path | None = None
) -> torch.nn.Module:
    """Return the module of `spec` in eval mode, with `plans` applied in order.

    weights: a file for the pruned module, in place of `spec.weights` (which fits the module before pruning). Paths and
    "module:function" references are looked up in `folder`. A live module is copied, never changed.
    """
    module = build(spec.factory, folder).eval()
    if weights is None and spec.weights is not None:
        load_weights(module, (folder / expand(spec.weights)).resolve())
    for plan in plans:
        apply_pruning(module, plan, example=example_feeds(spec.inputs))
    if weights is not None:
        load_weights(module, weights)
    return module.eval()


def example_feeds(inputs: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return one sample of seeded float32 noise for each input: shape (1, ...), in order."""
    import numpy as np

    generator = np.random.default_rng(0)
    return {name: generator.standard_normal((1, *shape[1:]), np.float32) for name, shape in inputs.items()}
