"""From a network or an .onnx file to the spine: one cleaned fp32 ONNX file, checked against what it came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import graph, onnx_export, runtimes
from edgeexport.pipeline.road import Road, declared_signature, model_key
from edgeexport.records.artifact import Artifact
from edgeexport.records.base import file_digest
from edgeexport.records.parity import Parity
from edgeexport.records.recipe import Recipe
from edgeexport.records.stages import Spine
from edgeexport.records.target import Tolerance
from edgeexport.validation.compare import compare_sessions
from edgeexport.workspace import Stage, versions

if TYPE_CHECKING:
    from torch import nn

    from edgeexport.runtimes.protocol import Feeds

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")
RAW = "before-cleaning.onnx"
SPINE = "spine.onnx"


def export_spine(
    road: Road, name: str, *, parent: str, load: Callable[[], nn.Module], key: dict[str, Any]
) -> Stage[Spine]:
    """Export a network, clean the graph, and check both steps numerically on real samples."""
    model = road.recipe.model

    def make(folder: Path) -> Spine:
        road.progress(f"export {name}", None)
        exported = onnx_export.export_module(
            load(),
            model,
            path=folder / RAW,
            samples=list(road.parity_feeds(declared_signature(model.inputs))),
            tolerance=Tolerance().float_error,
            progress=road.detail,
        )
        artifact, _, notes = _clean(road, folder, maker=f"export {name}", parent=parent)
        signature = graph.signature(graph.load(folder / SPINE))
        return Spine(artifact, signature, exported.exporter, exported.parity, (*exported.notes, *notes))

    full = {"what": key, "inputs": model.inputs, "outputs": model.outputs, "versions": versions(*PACKAGES)}
    return road.workspace.stage("export", key={**full, **road.data_key("calibration")}, make=make, kind=Spine)


def onnx_spine(road: Road) -> Stage[Spine]:
    """Read the recipe's .onnx file, fix the inputs that it leaves open, and clean it."""
    recipe = road.recipe
    origin = recipe.resolve(str(recipe.model.onnx))

    def make(folder: Path) -> Spine:
        road.progress("read the .onnx source", None)
        graph.save(read_source(recipe), folder / RAW)
        artifact, parity, notes = _clean(road, folder, maker="clean", parent=file_digest(origin))
        signature = graph.signature(graph.load(folder / SPINE))
        return Spine(artifact, signature, "given as ONNX", parity, notes)

    key = {"what": model_key(recipe.model, recipe, workspace=road.workspace), "versions": versions(*PACKAGES)}
    return road.workspace.stage("clean", key={**key, **road.data_key("calibration")}, make=make, kind=Spine)


def read_source(recipe: Recipe) -> Any:
    """Load the recipe's .onnx file with its weights checked and its inputs fixed to the recipe's shapes."""
    model = graph.load(recipe.resolve(str(recipe.model.onnx)))
    graph.check_weights(model)
    return graph.fix_inputs(model, recipe.model.inputs, free_batch=True)


def _clean(road: Road, folder: Path, *, maker: str, parent: str) -> tuple[Artifact, Parity, tuple[str, ...]]:
    """Clean RAW into SPINE, compare the two on real samples, and drop RAW."""
    raw = folder / RAW
    cleaned, record = onnx_export.clean(graph.load(raw))
    path = folder / SPINE
    graph.save(cleaned, path)
    digest = file_digest(path)
    feeds = list(road.parity_feeds(graph.signature(cleaned)))
    parity = compare_sessions(
        _runner(raw),
        _runner(path),
        samples=feeds,
        artifacts=(file_digest(raw), digest),
        float_error=Tolerance().float_error,
    )
    raw.unlink()
    return Artifact(SPINE, "onnx", digest, path.stat().st_size, parent, maker), parity, tuple(record.notes)


def _runner(path: Path) -> Callable[[Feeds], dict[str, Any]]:
    return runtimes.get("ort").open(path).run
