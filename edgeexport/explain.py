"""Every value in force, and what this machine can do: answers that run nothing and import no user code."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edgeexport.records.base import Record
from edgeexport.records.recipe import Recipe
from edgeexport.records.target import Target, load_target, target_names
from edgeexport.validation.judge import POINTS, bars_in_force
from edgeexport.validation.metrics import METRICS
from edgeexport.workspace import version_of

ABILITIES = (
    ("read recipes, verify bundles, list targets", ("click", "msgspec", "numpy", "rich", "jinja2"), ""),
    ("load, train, prune and export PyTorch models", ("torch", "onnx", "onnxscript", "torch-pruning"), "export"),
    ("read pictures", ("pillow",), "export"),
    ("run ONNX and ORT format", ("onnxruntime",), "ort"),
    ("quantize ONNX, write ORT format", ("onnxruntime", "onnx"), "export"),
    ("convert to LiteRT", ("litert-torch", "ai-edge-quantizer", "torch"), "litert"),
    ("run LiteRT", ("ai-edge-litert",), "litert"),
    ("run tflite-runtime 2.14 (old boards)", ("tflite-runtime",), "legacy"),
)


def explanation(recipe: Recipe, targets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return section -> key -> value for a recipe and each target, defaults included, and the limits they add up to."""
    sections: dict[str, dict[str, Any]] = {
        "model": _plain(recipe.model),
        "data": _plain(recipe.data),
        "preprocess": _plain(recipe.preprocess)
        if isinstance(recipe.preprocess, Record)
        else {"use": recipe.preprocess},
        "limits": _plain(recipe.limits),
    }
    for number, step in enumerate(recipe.step, 1):
        sections[f"step {number}"] = _plain(step)
    for target in map(load_target, targets):
        sections[f"target {target.name}"] = {**_plain(target), "number_format": _plain(target.numbers())}
        sections[f"limits in force on {target.name}"] = _in_force(recipe, target)
    return sections


def _in_force(recipe: Recipe, target: Target) -> dict[str, Any]:
    """The limits that recipe and target add up to. The unit of a user's metric stands in code that is not run here."""
    metric = recipe.data.metric
    name = str(metric).partition(":")[0]
    if isinstance(metric, str) and name not in METRICS:
        shown = _plain(bars_in_force(recipe.limits, target, unit=POINTS))
        if recipe.limits.max_drop is None:
            shown["max_drop"] = f"{shown['max_drop']} if the metric's unit is points; else the recipe must give one"
        return shown
    unit = METRICS[name].unit if isinstance(metric, str) else str(getattr(metric, "unit", ""))
    return _plain(bars_in_force(recipe.limits, target, unit=unit))


def diagnosis() -> dict[str, Any]:
    """Return what this machine is, what it can do, and which targets it can judge, with what adds the rest."""
    from edgeexport import devices

    local = devices.get("local")
    rows = [_ability(what, packages, extra=extra) for what, packages, extra in ABILITIES]
    for name in target_names():
        able, reason = local.can_judge(load_target(name))
        rows.append(
            {"what": f"judge latency on {name}", "state": "yes" if able else "no", "next": reason if not able else ""}
        )
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    return {"machine": machine, "abilities": rows}


def _ability(what: str, packages: Sequence[str], *, extra: str) -> dict[str, str]:
    missing = [package for package in packages if version_of(package) == "absent"]
    if not missing:
        return {"what": what, "state": "yes", "next": ""}
    return {"what": what, "state": "no: " + ", ".join(missing), "next": f"pip install 'edgeexport[{extra}]'"}


def _plain(record: Record) -> dict[str, Any]:
    """Return a record as plain values; live objects are shown by their type."""
    values: Mapping[str, Any] = msgspec.to_builtins(record, enc_hook=lambda value: f"<live {type(value).__name__}>")
    return dict(values)
