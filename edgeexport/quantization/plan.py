"""Planning: Ranges and a NumberFormat become exact scales and zero points for every point of the model.

The rule: a scale is a normal float32 above zero, whatever the data; every range includes zero; a bias always fits its
32 bits. The arithmetic is onnxruntime's own (`compute_scale_zp`), so that equal ranges give equal bits.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.errors import DataError, ModelError, RequestError
from edgeexport.quantization.pairs import pair_scales
from edgeexport.quantization.placement import Placement, choose, place, prepared, weight_axis, writes_floats
from edgeexport.records.base import file_digest
from edgeexport.records.plan import Point, QuantizationPlan, WeightPoint
from edgeexport.records.ranges import Ranges
from edgeexport.records.target import NumberFormat
from edgeexport.runtimes.ort_saturation import partners, rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto

# The product of two scales, which a bias uses, is then a normal float32 too.
LEAST_SCALE = 2.0**-60
# A bias takes at most half of the 32 bits of the sum it is added to.
LARGEST_BIAS = 2.0**30
_LEAST_OPSET = 13


def plan_quantization(
    model_path: Path, ranges: Ranges, *, numbers: NumberFormat, keep_float: Mapping[str, str] | None = None
) -> QuantizationPlan:
    """Decide which nodes run in integers and with which numbers.

    keep_float: nodes to leave in float, name → reason; the plan's own `keep_float` adds those for which integers do
    not exist or do not pay. What only floats read of a layer that can write floats (`writes_floats`) is not rounded to
    8 bits: logits, say, or the input of an Add left in float.
    Raises DataError for ranges of another model, RequestError for unknown nodes, ModelError when nothing can be
    quantized.
    """
    _check_digest(model_path, ranges)
    model = prepared(graph.load(model_path))
    if graph.standard_opset(model) < _LEAST_OPSET:
        raise ModelError(f"{model_path}: opset {graph.standard_opset(model)}, per-channel scales need {_LEAST_OPSET}")
    check_nodes(keep_float or {}, known=_names(model))
    nodes, kept = choose(model, keep_float or {})
    if not nodes:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(kept.items())[:5])
        raise ModelError(f"{model_path}: no node can be quantized ({reasons or 'no Conv, Gemm or MatMul'})")
    placement = place(model, nodes, symmetric=numbers.symmetric_activations)
    floats = float_results(model, nodes, numbers=numbers)
    activations = {
        name: _activation(ranges, owner, numbers=numbers)
        for name, owner in placement.activations.items()
        if name not in floats
    }
    return QuantizationPlan(
        model_digest=ranges.model_digest,
        numbers=numbers,
        method=ranges.method,
        activations=activations,
        weights=_weights(model, placement, activations=activations, numbers=numbers),
        keep_float=kept,
    )


def activation_point(low: float, high: float, *, numbers: NumberFormat) -> Point:
    """Return scale and zero point for [low, high], widened to include zero; a range of nothing gets scale 1."""
    import numpy as np

    least, most = (0, 255) if numbers.activations == "uint8" else (-128, 127)
    if numbers.symmetric_activations and numbers.activations == "int8":
        least = -127
    low64, high64 = float(min(np.float32(low), np.float32(0))), float(max(np.float32(high), np.float32(0)))
    if numbers.symmetric_activations:
        low64, high64 = -max(-low64, high64), max(-low64, high64)
    scale = (high64 - low64) / (most - least)
    if scale < LEAST_SCALE:
        return Point(dtype=numbers.activations, scale=1.0, zero_point=0)
    zero = round((least + most) / 2.0) if numbers.symmetric_activations else round(least - low64 / scale)
    return Point(dtype=numbers.activations, scale=float(np.float32(scale)), zero_point=zero)


def weight_scales(values: NDArray[Any], axis: int | None, *, reduce_range: bool) -> NDArray[np.float32]:
    """Return symmetric int8 scales, one per index of `axis` or a single one. reduce_range: 7 bits, [-64, 64].

    A channel that is all zero takes the largest scale of the others, so that its bias keeps the precision of theirs.
    """
    import numpy as np

    others = tuple(index for index in range(values.ndim) if index != axis)
    largest = np.atleast_1d(np.abs(values).max(axis=others if axis is not None else None)).astype(np.float64)
    scales = 2.0 * largest / (128.0 if reduce_range else 254.0)
    dead = largest == 0.0
    scales[dead] = scales.max() if not dead.all() else 1.0
    return np.maximum(scales, LEAST_SCALE).astype(np.float32)


def _weights(
    model: ModelProto, placement: Placement, *, activations: Mapping[str, Point], numbers: NumberFormat
) -> dict[str, WeightPoint]:
    import numpy as np

    stored = graph.initializers(model)
    points: dict[str, WeightPoint] = {}
    for name in placement.weights:
        axis = weight_axis(model, name) if numbers.per_channel else None
        scales = weight_scales(stored[name], axis, reduce_range=numbers.reduce_range)
        if numbers.fit_pairs:
            scales = np.maximum(scales, fitting(model, name, value=stored[name], single=axis is None))
        least = _bias_scales(model, name, stored=stored, activations=activations, channels=len(scales))
        scales = np.maximum(scales, least).astype(np.float32)
        points[name] = WeightPoint("int8", axis, tuple(float(scale) for scale in scales), (0,) * len(scales))
    for name in placement.constants:
        value = stored[name]
        point = activation_point(float(value.min()), float(value.max()), numbers=numbers)
        points[name] = WeightPoint(numbers.activations, None, (point.scale,), (point.zero_point,))
    return points


def fitting(model: ModelProto, weight: str, *, value: NDArray[Any], single: bool) -> NDArray[np.float64]:
    """Return the scales at which a weight's pairs fit 16-bit sums: one for each output channel, or a single one."""
    import numpy as np

    readers = [node for node in model.graph.node if weight in node.input[1:2]]
    found = [pair_scales(rows(node, value), met=partners(node, value.shape)) for node in readers]
    scales: NDArray[np.float64] = np.concatenate(found).max(keepdims=True) if single else np.max(found, axis=0)
    return scales


def _bias_scales(
    model: ModelProto,
    weight: str,
    *,
    stored: Mapping[str, NDArray[Any]],
    activations: Mapping[str, Point],
    channels: int,
) -> NDArray[np.float64]:
    """Return the least weight scales with which every bias, in steps of input scale · weight scale, fits its sum."""
    import numpy as np

    least: NDArray[np.float64] = np.zeros(channels)
    for node in model.graph.node:
        if weight not in node.input[1:2] or len(node.input) < 3 or node.input[2] not in stored:
            continue
        point = activations.get(node.input[0])
        if point is not None:
            bias = np.abs(stored[node.input[2]].astype(np.float64))
            needed = (bias if channels > 1 else bias.max()) / (point.scale * LARGEST_BIAS)
            least = np.maximum(least, needed)
    return least


def _activation(ranges: Ranges, tensor: str, *, numbers: NumberFormat) -> Point:
    found = ranges.tensors.get(tensor)
    if found is None:
        raise DataError(f"the ranges know nothing of {tensor!r}", next_step="calibrate again for this number format")
    return activation_point(found.low, found.high, numbers=numbers)


def float_results(model: ModelProto, nodes: tuple[str, ...], *, numbers: NumberFormat) -> set[str]:
    """Return the results that only floats read, of layers whose integer kernels write floats: they get no point."""
    chosen = set(nodes)
    read = {name for node in model.graph.node if node.name in chosen for name in node.input}
    made = [node for node in model.graph.node if node.name in chosen and writes_floats(model, node, numbers=numbers)]
    return {node.output[0] for node in made} - read


def _check_digest(model_path: Path, ranges: Ranges) -> None:
    digest = file_digest(model_path)
    if digest != ranges.model_digest:
        raise DataError(
            f"the ranges belong to the model {ranges.model_digest}, {model_path} is {digest}",
            next_step="calibrate this model",
        )


def node_names(model_path: Path) -> list[str]:
    """Return the nodes of a float file by the names that a plan knows them by: those without a name have one there."""
    return _names(prepared(graph.load(model_path)))


def _names(model: ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]


def check_nodes(names: Iterable[str], *, known: Sequence[str]) -> None:
    """Raise RequestError for the name of a node to keep in float that is not among the known ones."""
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            tip = f"did you mean {close[0]!r}?" if close else ""
            raise RequestError(f"the model has no node {name!r} to keep in float", next_step=tip)
