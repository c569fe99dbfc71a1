"""From a network or an .onnx file to the spine: one cleaned fp32 ONNX file, checked against what it came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import graph, onnx_export, runtimes
from edgeexport.errors import ModelError, RecipeError
from edgeexport.pipeline.road import Road, declared_signature, model_key
from edgeexport.records.artifact import Artifact
from edgeexport.records.base import file_digest
from edgeexport.records.parity import Parity
from edgeexport.records.recipe import InputSpec, Recipe, input_shapes
from edgeexport.records.stages import Spine
from edgeexport.records.target import Tolerance
from edgeexport.validation.compare import compare_sessions
from edgeexport.workspace import Stage, versions

if TYPE_CHECKING:
    from onnx import ModelProto
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
        told = (*exported.notes, *notes)
        return _record(artifact, folder, exporter=exported.exporter, parity=exported.parity, notes=told)

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
        return _record(artifact, folder, exporter="given as ONNX", parity=parity, notes=notes)

    key = {"what": model_key(recipe.model, recipe, workspace=road.workspace), "versions": versions(*PACKAGES)}
    return road.workspace.stage("clean", key={**key, **road.data_key("calibration")}, make=make, kind=Spine)


def _record(artifact: Artifact, folder: Path, *, exporter: str, parity: Parity | None, notes: tuple[str, ...]) -> Spine:
    model = graph.load(folder / SPINE)
    operators = tuple(sorted({node.op_type for node in model.graph.node}))
    return Spine(artifact, graph.signature(model), exporter, parity, notes, operators)


def read_source(recipe: Recipe) -> Any:
    """Load the recipe's .onnx file with its weights checked and its inputs fixed to the recipe's shapes."""
    model = graph.load(recipe.resolve(str(recipe.model.onnx)))
    graph.check_weights(model)
    asked = recipe.model.inputs
    own = {spec.name: spec.dtype for spec in graph.signature(model).inputs}
    for name, spec in asked.items():
        if isinstance(spec, InputSpec) and own.get(name, spec.dtype) != spec.dtype:
            raise RecipeError(f"`model.inputs.{name}` is {spec.dtype}, the .onnx file's input is {own[name]}")
    return graph.fix_inputs(model, graph.complete_inputs(model, input_shapes(asked)), free_batch=True)


def _clean(road: Road, folder: Path, *, maker: str, parent: str) -> tuple[Artifact, Parity, tuple[str, ...]]:
    """Turn RAW into SPINE by the first rewriting that keeps the numbers on real samples, and drop RAW."""
    raw, path = folder / RAW, folder / SPINE
    given = graph.load(raw)
    feeds = list(road.parity_feeds(graph.signature(given)))
    notes: list[str] = []
    for name, rewrite in REWRITINGS:
        try:
            model, told = rewrite(given)
            graph.save(model, path)
            parity = _same_numbers(raw, path, feeds=feeds)
        except ModelError as error:
            notes.append(f"{name}: {error}")
            continue
        if parity.holds:
            raw.unlink()
            artifact = Artifact(SPINE, "onnx", file_digest(path), path.stat().st_size, parent, maker)
            return artifact, parity, (*notes, *told)
        notes.append(f"{name}: changes the numbers: {parity.reason}")
    raise ModelError(f"the model does not give the same finite numbers twice: {'; '.join(notes)}")


def _same_numbers(raw: Path, path: Path, *, feeds: list[Feeds]) -> Parity:
    digests = (file_digest(raw), file_digest(path))
    return compare_sessions(
        _runner(raw), _runner(path), samples=feeds, artifacts=digests, float_error=Tolerance().float_error
    )


def _cleaned(model: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    cleaned, record = onnx_export.clean(model)
    return cleaned, tuple(record.notes)


def _raised_and_cleaned(model: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    has = graph.standard_opset(model)
    cleaned, notes = _cleaned(graph.raise_opset(model, opset=OPSET))
    return cleaned, notes if has >= OPSET else (f"opset {has} raised to {OPSET}", *notes)


def _as_given(model: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    return model, ()


# Tried in this order. Int8 per channel needs opset 13; from 17 on, normalization layers are operators of their own.
OPSET = 17
REWRITINGS: tuple[tuple[str, Callable[[Any], tuple[Any, tuple[str, ...]]]], ...] = (
    ("raise the opset and clean", _raised_and_cleaned),
    ("clean", _cleaned),
    ("leave as given", _as_given),
)


def _runner(path: Path) -> Callable[[Feeds], dict[str, Any]]:
    return runtimes.get("ort").open(path).run
