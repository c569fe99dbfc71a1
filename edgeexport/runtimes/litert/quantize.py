"""fp32 .tflite → int8 .tflite, in the worker: ai-edge-quantizer's static recipe, fed with our numbers.

The rule: its own moving-average calibration is never used. Tensors that have no number of ours get the true minimum
and maximum over all samples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.errors import CorruptFile
from edgeexport.runtimes.litert import flatbuffer
from edgeexport.runtimes.litert.lower import FLOAT_FILE, read_sample
from edgeexport.runtimes.protocol import adapt_feeds

if TYPE_CHECKING:
    from edgeexport.runtimes.litert.assign import Assignment

INT8_FILE = "int8.tflite"
NUMBERS_FILE = "numbers.json"


def write_numbers(assignment: Assignment, path: Path) -> None:
    """Store the ranges and weight bounds for the worker."""
    weights = {name: [list(bound.shape), bound.ravel().tolist()] for name, bound in assignment.weights.items()}
    content = {"ranges": assignment.ranges, "weights": weights, "float_outputs": assignment.float_outputs}
    path.write_text(json.dumps(content), encoding="utf-8")


def quantize(folder: Path, settings: dict[str, Any]) -> None:
    """Read `float.tflite`, `numbers.json` and the samples (one is enough without leftovers), write `int8.tflite`."""
    from ai_edge_quantizer import quantizer

    numbers = json.loads((folder / NUMBERS_FILE).read_text(encoding="utf-8"))
    recipe = _recipe(per_channel=settings["per_channel"], float_io=settings["float_io"], keep=numbers["float_outputs"])
    tool = quantizer.Quantizer(str(folder / FLOAT_FILE), recipe.get_quantization_recipe())
    seen = _calibrated(folder, settings, recipe=recipe)
    result = tool.quantize({**seen, **_ours(numbers, seen)}, enable_progress_bar=False, enable_progress_report=False)
    (folder / INT8_FILE).write_bytes(bytes(result.quantized_model))


def _recipe(*, per_channel: bool, float_io: bool, keep: Iterable[str]) -> Any:
    """Static int8 everywhere it is supported; inputs, outputs and the operators giving `keep` in float where asked."""
    from ai_edge_quantizer import qtyping, recipe_manager

    granularity = qtyping.QuantGranularity.CHANNELWISE if per_channel else qtyping.QuantGranularity.TENSORWISE
    names = qtyping.TFLOperationName
    recipe = recipe_manager.RecipeManager()
    recipe.add_static_config(".*", names.ALL_SUPPORTED, 8, 8, granularity)
    if float_io:
        for side in (names.INPUT, names.OUTPUT):
            recipe.add_quantization_config(".*", side, algorithm_key=recipe_manager.AlgorithmName.NO_QUANTIZE)
    for name in keep:
        scope = f"^{re.escape(name)};?$"
        recipe.add_quantization_config(
            scope, names.ALL_SUPPORTED, algorithm_key=recipe_manager.AlgorithmName.NO_QUANTIZE
        )
    return recipe


def _calibrated(folder: Path, settings: dict[str, Any], *, recipe: Any) -> dict[str, Any]:
    """Minimum and maximum of every tensor over the stored samples, one sample in memory at a time."""
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer.utils import qsv_utils

    from edgeexport.records.artifact import Signature
    from edgeexport.records.base import from_json

    spine = from_json(settings["spine_signature"].encode(), Signature, origin="the worker's job")
    path = folder / FLOAT_FILE
    file = flatbuffer.stored_signature(flatbuffer.read(path), origin=path.name)
    if file is None:
        raise CorruptFile(f"{path}: it holds no signature, so `lower` did not write it")
    tool = calibrator.Calibrator(str(path), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    for sample in sorted(folder.glob("sample-*.npz")):
        feeds = adapt_feeds(read_sample(sample), spine, to=file)
        tool.calibrate({flatbuffer.SIGNATURE_KEY: [feeds]}, recipe)
    found: dict[str, Any] = tool.get_model_qsvs()
    return found


def _ours(numbers: dict[str, Any], seen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Our numbers in the quantizer's own form: min and max arrays that broadcast over the tensor."""
    import numpy as np

    ours = {}
    for name, (low, high) in numbers["ranges"].items():
        shape = np.shape(seen[name]["min"]) if name in seen else (1, 1)
        ours[name] = {"min": np.full(shape, low, np.float32), "max": np.full(shape, high, np.float32)}
    for name, (shape, flat) in numbers["weights"].items():
        bound = np.array(flat, np.float32).reshape(shape)
        ours[name] = {"min": -bound, "max": bound}
    return ours
