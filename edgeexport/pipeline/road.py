"""Road: what every stage of one run shares, and how stage keys are made.

The rule: a key is made of records and file digests only, so that a finished run is recognised without importing user
code, torch or a runtime.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeexport import data, graph, ranks
from edgeexport.devices.local import host_features
from edgeexport.graph.external import locations
from edgeexport.graph.files import parse
from edgeexport.pipeline.callables import callable_key
from edgeexport.pipeline.live import attach, detach, is_live
from edgeexport.progress import Progress, details
from edgeexport.records.artifact import Signature, TensorSpec
from edgeexport.records.base import digest
from edgeexport.records.labels import Answers, answers_of
from edgeexport.records.recipe import Inputs, ModelSpec, Preprocess, Recipe, input_shapes, input_types
from edgeexport.records.splits import SplitIndices, SplitName
from edgeexport.records.stages import ExternalFiles
from edgeexport.records.training import Training
from edgeexport.validation.metrics import METRICS
from edgeexport.workspace import Workspace, versions

if TYPE_CHECKING:
    from torch import nn

    from edgeexport.data import Prepared
    from edgeexport.runtimes.protocol import Feeds

PARITY_SAMPLES = 8
ALONE = "taught by the teacher alone: the training samples have no labels"


@dataclass(frozen=True)
class Road:
    """One run's recipe (live networks named), workspace, progress callback, sample splits, resolved preprocessing."""

    recipe: Recipe
    workspace: Workspace
    progress: Progress
    splits: SplitIndices
    splits_key: str
    preprocess: Preprocess | None
    live: Mapping[str, nn.Module]

    def with_live(self, spec: ModelSpec) -> ModelSpec:
        """Return a model spec that can be loaded: a live network's name replaced by the network."""
        return attach(spec, self.live)

    @property
    def detail(self) -> Progress:
        """The callback for what is done within the step that was told last."""
        return details(self.progress)

    def prepared(self, split: SplitName, signature: Signature) -> Prepared:
        """Return the samples of a split as inputs for `signature`."""
        return data.open_split(self.recipe, self.splits, name=split, signature=signature)

    def data_key(self, split: SplitName) -> dict[str, Any]:
        """What the samples of a split and their preprocessing add to a key."""
        return {"splits": self.splits_key, "split": split, "preprocess": msgspec.to_builtins(self.preprocess)}

    @property
    def answers(self) -> Answers | None:
        """What the recipe's metric takes the model's outputs for."""
        return answers_of(self.recipe.data.metric)

    @property
    def taught_alone(self) -> tuple[str, ...]:
        """What a row says of a training by a teacher whose samples have no labels; nothing where they have some."""
        return (ALONE,) if self.splits.train.unlabelled else ()

    def parity_feeds(self, signature: Signature) -> Iterator[Feeds]:
        """Yield a few real inputs, batch 1, from the calibration split: what numbers are compared on."""
        prepared = self.prepared("calibration", signature)
        for index in range(min(PARITY_SAMPLES, len(prepared))):
            yield prepared.feeds(index)


def open_road(recipe: Recipe, workspace: Workspace, *, progress: Progress) -> Road:
    """Split the samples (or find them split already) and return the road. Raises DataError for missing labels too."""
    recipe, live = detach(recipe)
    key = {"data": data.data_identity(recipe, digest=workspace.digest), "versions": versions("numpy", "pillow")}

    def make(_: Path) -> SplitIndices:
        progress("read and split the samples", 0.0)
        return data.splits(recipe, progress=details(progress))

    stage = workspace.stage("splits", key=key, make=make, kind=SplitIndices)
    data.check_labels(recipe, stage.record)  # whenever it runs: who needs labels is not in the key
    return Road(recipe, workspace, progress, stage.record, stage.key, data.resolve_preprocess(recipe), live)


def model_key(spec: ModelSpec, recipe: Recipe, *, workspace: Workspace) -> dict[str, Any]:
    """What a model's factory, sources and weights files add to a key; a live network's name says it all."""
    files: list[Path] = _external_files(recipe.resolve(spec.onnx), workspace) if spec.onnx else []
    if spec.factory and not is_live(spec):
        files += data.source_files(spec.factory, Path(recipe.folder))
    files += [recipe.resolve(name) for name in (spec.weights, spec.onnx) if name]
    return {"spec": msgspec.to_builtins(spec), "files": [workspace.digest(data.existing(path)) for path in files]}


def _external_files(path: Path, workspace: Workspace) -> list[Path]:
    """Return the files beside an .onnx file that hold its weights; which they are is read once and kept."""

    def make(_: Path) -> ExternalFiles:
        graph.load(path)  # refuses what is hostile
        return ExternalFiles(locations(parse(path.read_bytes(), origin=str(path))))

    key = {"onnx": workspace.digest(data.existing(path)), "versions": versions("onnx")}
    found = workspace.stage("external", key=key, make=make, kind=ExternalFiles).record
    return [path.parent / location for location in found.locations]


def code_key(code: Any, recipe: Recipe, *, workspace: Workspace) -> Any:
    """What a loss, augmentation or metric adds to a key: its name, or what a user's function is made of."""
    if code is None or (isinstance(code, str) and not data.is_reference(code)):
        return code
    return data.code_identity(code, recipe, digest=workspace.digest) if isinstance(code, str) else callable_key(code)


def metric_key(recipe: Recipe, workspace: Workspace) -> Any:
    """What the metric adds to a key: its name, or what a user's function is made of."""
    metric = recipe.data.metric
    built_in = isinstance(metric, str) and metric.partition(":")[0] in METRICS
    return metric if built_in else code_key(metric, recipe, workspace=workspace)


def training_key(settings: Training, recipe: Recipe, *, workspace: Workspace) -> dict[str, Any]:
    """What decides the outcome of a training besides its settings: user code, libraries, threads, CPU features."""
    codes = {"loss": settings.loss, "augment": settings.augment, "optimizer": settings.optimizer}
    return {**_machine(), "code": {name: code_key(code, recipe, workspace=workspace) for name, code in codes.items()}}


@functools.cache
def _machine() -> dict[str, Any]:
    return {
        "versions": versions("torch", "numpy", "torch-pruning"),
        "threads": os.environ.get("OMP_NUM_THREADS") or os.cpu_count(),
        "cpu": digest(sorted(host_features())),  # what `precision = "auto"` means follows from it
        "processes": ranks.count(),
    }


def declared_signature(inputs: Inputs) -> Signature:
    """The signature that a recipe's `inputs` promise, with a free batch; float32 of rank 4 means pictures, NCHW."""
    types = input_types(inputs)
    specs = [
        TensorSpec(
            name,
            types[name],
            ("batch", *shape[1:]),
            "NCHW" if len(shape) == 4 and types[name] == "float32" else "as-is",
        )
        for name, shape in input_shapes(inputs).items()
    ]
    return Signature(tuple(specs), ())
