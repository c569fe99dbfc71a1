"""Artifact and Signature: a model file with identity, and what goes in and out of it.

The rule: an artifact never changes. What is made from it is a new artifact whose `parent` is this one's digest.
"""

from __future__ import annotations

from typing import Literal

from edgeexport.records.base import Record
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import ModelSpec

Layout = Literal["NCHW", "NHWC", "as-is"]


class TensorSpec(Record):
    """One input or output: name, numpy dtype, shape (an int, or a name for a free dimension), layout of pictures.

    scale, zero_point: set when an int8 tensor stands for real numbers: real = (q - zero_point) * scale.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    layout: Layout = "as-is"
    scale: float | None = None
    zero_point: int | None = None


class Signature(Record):
    """Inputs and outputs of a model, in the order the model lists them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Artifact(Record):
    """A model file with identity.

    path: relative to the folder of the stage that made it. maker: that stage's name. parent: digest of what it was
    made from, empty for a source. bytes: size on disk.
    """

    path: str
    format: Literal["torch", "onnx", "ort", "tflite"]
    digest: str
    bytes: int
    parent: str
    maker: str
    signature: Signature | None = None


class TorchWeights(Record):
    """What rebuilds a PyTorch module without pickle: its factory, the pruning done to it, and its weights file.

    seed: of torch while the factory runs. A module may hold random numbers that are not among its weights.
    """

    model: ModelSpec
    artifact: Artifact
    plans: tuple[PruningPlan, ...] = ()
    seed: int = 0
