"""Our ranges on LiteRT's tensors: which (low, high) each tensor of the fp32 .tflite gets, and which are left over.

The rule: a number of the plan is used as it is; without one, the range that calibration saw. Where several ONNX
tensors fit one LiteRT tensor and their ranges differ, nothing is guessed: the tensor is left to LiteRT's calibrator
and named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeexport.records.plan import Point, QuantizationPlan, WeightPoint
from edgeexport.records.ranges import Ranges
from edgeexport.runtimes.litert import flatbuffer, pairing

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

# Operators whose output takes over the numbers of its input: a pair of its own would be ignored.
_CARRIERS = frozenset(
    {
        "BROADCAST_TO",
        "DEPTH_TO_SPACE",
        "EXPAND_DIMS",
        "GATHER",
        "GATHER_ND",
        "MAX_POOL_2D",
        "MIRROR_PAD",
        "PAD",
        "PADV2",
        "RESHAPE",
        "RESIZE_BILINEAR",
        "RESIZE_NEAREST_NEIGHBOR",
        "REVERSE_V2",
        "SLICE",
        "SPACE_TO_DEPTH",
        "SPLIT",
        "SQUEEZE",
        "STRIDED_SLICE",
        "TILE",
        "TRANSPOSE",
        "UNPACK",
    }
)
_LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}
# Two ranges are one when they would give the same int8 numbers but for a hundredth of a step.
_SAME = 1.0 / 25500.0


@dataclass(frozen=True)
class Assignment:
    """Tensor name -> (low, high); tensors without; weights -> symmetric bounds per channel; tensors left in float."""

    ranges: dict[str, tuple[float, float]]
    leftovers: tuple[str, ...]
    weights: dict[str, NDArray[Any]]
    float_outputs: tuple[str, ...]


def assign(
    model: Any,
    pairs: Mapping[str, Mapping[str, Any]],
    *,
    spine: onnx.ModelProto,
    plan: QuantizationPlan,
    ranges: Ranges,
) -> Assignment:
    """Give every activation of the fp32 .tflite tree `model` its range, and every paired weight its bounds.

    pairs: what `lower` wrote: "activations" name -> ONNX names that fit, "weights" name -> ONNX initializer.
    """
    activations = [flatbuffer.tensor_name(tensor) for tensor in flatbuffer.activations(model).values()]
    found: dict[str, tuple[float, float]] = {}
    for name in activations:
        interval = _agreed([_interval(other, plan=plan, ranges=ranges) for other in pairs["activations"].get(name, ())])
        if interval is not None:
            found[name] = interval
    _carry(model, found)
    return Assignment(
        ranges=found,
        leftovers=tuple(name for name in activations if name not in found),
        weights=_weights(model, pairs["weights"], spine=spine, plan=plan),
        float_outputs=_float_outputs(model, pairs["activations"], spine=spine, keep_float=plan.keep_float),
    )


def _interval(name: str, *, plan: QuantizationPlan, ranges: Ranges) -> tuple[float, float] | None:
    """The real numbers that the tensor's int8 range stands for."""
    point = plan.activations.get(name)
    if point is not None:
        return _ends(point)
    seen = ranges.tensors.get(name)
    return None if seen is None else (seen.low, seen.high)


def _ends(point: Point) -> tuple[float, float]:
    low, high = _LIMITS[point.dtype]
    return (low - point.zero_point) * point.scale, (high - point.zero_point) * point.scale


def _agreed(intervals: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    """The interval that all known ones agree on; None when none is known or two differ."""
    known = [interval for interval in intervals if interval is not None]
    if not known:
        return None
    slack = _SAME * max(high - low for low, high in known)
    first = known[0]
    alike = all(abs(low - first[0]) <= slack and abs(high - first[1]) <= slack for low, high in known)
    return first if alike else None


def _carry(model: Any, found: dict[str, tuple[float, float]]) -> None:
    """Hand ranges on through operators that only move values (a padded zero is in every int8 range)."""
    graph = model.subgraphs[0]
    names = [flatbuffer.tensor_name(tensor) for tensor in graph.tensors]
    for op in graph.operators:
        if flatbuffer.op_name(model, op) not in _CARRIERS:
            continue
        source = next((names[index] for index in op.inputs if names[index] in found), None)
        for index in op.outputs:
            if source is not None and names[index] not in found:
                found[names[index]] = found[source]


def _weights(
    model: Any, pairs: Mapping[str, str], *, spine: onnx.ModelProto, plan: QuantizationPlan
) -> dict[str, NDArray[Any]]:
    """Symmetric bounds (127 steps) of each weight that the plan has numbers for, one per channel along its axis."""
    import numpy as np

    from edgeexport import graph

    originals = graph.initializers(spine)
    tensors = model.subgraphs[0].tensors
    bounds = {}
    for index, values in flatbuffer.constants(model).items():
        name = flatbuffer.tensor_name(tensors[index])
        point = plan.weights.get(pairs.get(name, ""))
        axes = None if point is None else pairing.weight_axes(values, originals[pairs[name]])
        if point is not None and axes is not None:
            bounds[name] = 127.0 * np.asarray(point.scales, np.float32).reshape(_shape(point, values.ndim, axes=axes))
    return bounds


def _shape(point: WeightPoint, rank: int, *, axes: tuple[int, ...]) -> list[int]:
    shape = [1] * rank
    if point.axis is not None:
        shape[axes.index(point.axis % rank)] = len(point.scales)
    return shape


def _float_outputs(
    model: Any, pairs: Mapping[str, Sequence[str]], *, spine: onnx.ModelProto, keep_float: Mapping[str, str]
) -> tuple[str, ...]:
    """Outputs of the LiteRT operators that do the work of an ONNX node which the plan leaves in float.

    Such an operator may do several nodes at once (Conv, Clip): walk back from its output to the tensors that other
    LiteRT operators give.
    """
    if not keep_float:
        return ()
    makers = {name: node for node in spine.graph.node for name in node.output}
    paired = {other for fits in pairs.values() for other in fits}
    kept = []
    for op in model.subgraphs[0].operators:
        names = [flatbuffer.tensor_name(model.subgraphs[0].tensors[index]) for index in op.outputs]
        covered = _covered([pairs[name][0] for name in names if pairs.get(name)], makers, paired=paired)
        if covered & keep_float.keys():
            kept += names
    return tuple(kept)


def _covered(outputs: list[str], makers: Mapping[str, onnx.NodeProto], *, paired: set[str]) -> set[str]:
    """Names of the ONNX nodes between `outputs` and the nearest paired tensors above them."""
    covered: set[str] = set()
    waiting = list(outputs)
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or f"{node.op_type}:{node.output[0]}" in covered:
            continue
        # A plan knows a node without a name of its own by its operator and output.
        covered |= {node.name, f"{node.op_type}:{node.output[0]}"}
        waiting += [name for name in node.input if name not in paired]
    return covered
