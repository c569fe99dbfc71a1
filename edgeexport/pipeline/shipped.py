"""The form that ships first, for networks that are not on the ladder yet: what is timed before any training.

The rule: nothing here decides what a form is. What stays in float, and which form an encoder's linear layers take, is
asked of what the ladder itself asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeexport import graph, quantization, runtimes
from edgeexport.errors import ModelError
from edgeexport.pipeline.encoders import SAMPLES, first_linear
from edgeexport.pipeline.forms import left_in_float
from edgeexport.pipeline.lower import Lane
from edgeexport.pipeline.road import PARITY_SAMPLES, Road
from edgeexport.pipeline.torch_rungs import TorchRung
from edgeexport.records.artifact import Signature
from edgeexport.records.base import file_digest
from edgeexport.runtimes.protocol import Conversion
from edgeexport.validation.subjects import Subject

if TYPE_CHECKING:
    from edgeexport.pipeline.layer_times import Place
    from edgeexport.runtimes.protocol import Feeds


def fitted(road: Road, place: Place, *, rung: TorchRung) -> Place:
    """Return the place with the recipe's own floats, and the form in which the ladder tries this rung first.

    What is cut from the rung is timed in the same form as the rung. Makes an encoder's forms, as a stage.
    """
    step = road.recipe.quantize
    if place.form != "int8" or step is None:
        return place
    lane = Lane(road, place.target, rung, None, place.device)
    return replace(place, keep_float=step.keep_float, linear=first_linear(lane, rung, step=step))


def samples_for(road: Road, place: Place, *, signature: Signature) -> list[Feeds]:
    """Return what `shipped` needs to make the form of `place`: calibration samples in a network's signature."""
    prepared = road.prepared("calibration", signature)
    count = PARITY_SAMPLES if place.linear is None else SAMPLES
    return [prepared.feeds(index) for index in range(min(count, len(prepared)))]


def remaining(place: Place, path: Path) -> Place:
    """Return the place without those of its floats that an .onnx file does not have: they were cut away."""
    names = quantization.node_names(path)
    return replace(place, keep_float=tuple(name for name in place.keep_float if name in names))


def shipped(path: Path, samples: Sequence[Feeds], *, place: Place, folder: Path) -> Subject:
    """Return the file that a float .onnx file becomes on the target, in the form of `place`, as something to measure.

    samples: the first is what it is timed with; a few say what stays in float, while times do not depend on ranges. A
    network of which nothing can be quantized stays in float. Raises RequestError for floats that are not in the file.
    """
    target = msgspec.structs.replace(place.target, format="onnx") if place.target.format == "ort" else place.target
    job = Conversion(path, None, None, None, lambda: iter(samples), target)
    if place.form == "int8":
        try:
            job = _quantized(job, samples, place=place, out=folder / "int8.onnx")
        except ModelError:
            job = replace(job, quantized=None)
    out = folder / f"runs.{target.format}"
    converted = runtimes.get(target.runtime).convert(job, out)
    return Subject(
        path.stem, out, file_digest(out), target.runtime, samples[0], target.threads, converted.session_options
    )


def _quantized(job: Conversion, samples: Sequence[Feeds], *, place: Place, out: Path) -> Conversion:
    numbers = job.target.numbers()
    if place.linear is not None:
        quantization.quantize_encoder(job.spine, samples, how=place.linear, numbers=numbers, out=out)
        return replace(job, quantized=out)
    ranges = quantization.calibrate(job.spine, samples, samples_digest="sha256:0")
    kept = left_in_float(job.spine, ranges, asked=dict.fromkeys(place.keep_float, "asked for in the recipe"))
    plan = quantization.plan_quantization(job.spine, ranges, numbers=numbers, keep_float=kept)
    quantization.quantize(job.spine, plan, out=out)
    return replace(job, quantized=out, ranges=ranges, plan=plan)


def float_layers(subject: Subject, *, place: Place) -> frozenset[str]:
    """Return the layers, by the names of their weights, that an int8 file of `shipped` has in float.

    None for other forms: what an encoder's form leaves in float, it leaves so in sheets of single layers too.
    """
    if place.form != "int8" or place.linear is not None or subject.path.suffix != ".onnx":
        return frozenset()
    from onnx import TensorProto

    model = graph.load(subject.path)
    read = {node.input[1] for node in model.graph.node if len(node.input) > 1 and node.op_type != "DequantizeLinear"}
    floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    return frozenset(name.removesuffix(".weight") for name in read & floats if name.endswith(".weight"))
