"""The module a recipe means: built by its factory, with its weights, and pruned as its plans say.

The rule: a module is never stored, only what rebuilds it: factory, plans, weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeexport.compression.checkpoint import build, load_weights
from edgeexport.compression.onnx_teacher import onnx_teacher
from edgeexport.compression.prune import apply_pruning
from edgeexport.records.environment import expand
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import Inputs, ModelSpec, input_shapes, input_types

if TYPE_CHECKING:
    import numpy as np
    import torch


def load_torch(
    spec: ModelSpec, folder: Path, *, plans: Sequence[PruningPlan] = (), weights: Path | None = None, seed: int = 0
) -> torch.nn.Module:
    """Return the module of `spec` in eval mode, with `plans` applied in order.

    weights: a file for the pruned module, in place of `spec.weights` (which fits the module before pruning). Paths and
    "module:function" references are looked up in `folder`. A live module is copied, never changed. An .onnx file
    becomes a module that can teach. seed: of torch while the factory runs; torch's own generator stays as it was.
    """
    import torch

    if spec.onnx is not None:
        return onnx_teacher((folder / expand(spec.onnx)).resolve(), spec.inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(spec.factory, folder).eval()
    if weights is None and spec.weights is not None:
        load_weights(module, (folder / expand(spec.weights)).resolve())
    for plan in plans:
        apply_pruning(module, plan, example=example_feeds(spec.inputs))
    if weights is not None:
        load_weights(module, weights)
    return module.eval()


def example_feeds(inputs: Inputs) -> dict[str, np.ndarray]:
    """Return one sample of seeded noise for each input: shape (1, ...), in order.

    Integers are 0 or 1: indices that any table with two rows has.
    """
    import numpy as np

    generator = np.random.default_rng(0)
    types = input_types(inputs)

    def noise(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        if dtype == "float32":
            return generator.standard_normal(shape, np.float32)
        return generator.integers(0, 2, shape).astype(dtype)

    return {name: noise((1, *shape[1:]), types[name]) for name, shape in input_shapes(inputs).items()}
