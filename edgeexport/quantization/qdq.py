"""Applying a plan: the fp32 model becomes an int8 QDQ model.

The rule: onnxruntime's quantizer writes the file, the plan gives every number, and before the file is published each
scale and zero point in it is compared with the plan, bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.errors import DataError, ModelError
from edgeexport.quantization.compact import compact
from edgeexport.quantization.placement import (
    INPUT_SUFFIX,
    WEIGHT_SUFFIX,
    choose,
    place,
    prepared,
    write_draft,
    writes_floats,
)
from edgeexport.records.base import file_digest
from edgeexport.records.plan import Point, QuantizationPlan, WeightPoint
from edgeexport.runtimes.ort_saturation import predict_saturation

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto


def quantize(model_path: Path, plan: QuantizationPlan, *, out: Path) -> None:
    """Write the int8 QDQ form of a model to `out`. The bytes depend on model, plan and versions only.

    Raises DataError when the plan belongs to another model, ModelError when the file would not hold the plan.
    """
    digest = file_digest(model_path)
    if digest != plan.model_digest:
        raise DataError(
            f"the plan belongs to the model {plan.model_digest}, {model_path} is {digest}",
            next_step="plan the quantization of this model",
        )
    source = graph.load(model_path)
    model = prepared(source)
    nodes, _ = choose(model, plan.keep_float)
    symmetric = plan.numbers.symmetric_activations
    owners = set(place(model, nodes, symmetric=symmetric).activations.values())
    overrides = _overrides(plan, owners)
    draft = write_draft(model, nodes, symmetric=symmetric, overrides=overrides, activations=plan.numbers.activations)
    drop_points(draft, keep=frozenset(plan.activations))
    sums = {node.output[0] for node in model.graph.node if writes_floats(model, node, numbers=plan.numbers)}
    bypass_points(draft, floats={node.name for node in model.graph.node} - set(nodes), sums=sums)
    _restore_header(draft, source)
    compact(draft, tensors=_lasting(model), named={node.name for node in model.graph.node})
    prove(draft, plan)
    graph.save(draft, out)


def drop_points(model: ModelProto, *, keep: frozenset[str]) -> None:
    """Take the QuantizeLinear → DequantizeLinear pairs of all tensors but `keep` out of `model`, in place."""
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and _tensor(node) not in keep]
    outputs = {value.name for value in model.graph.output}
    for first in pairs:
        second = next(node for node in model.graph.node if node.input and node.input[0] == first.output[0])
        source, sink = first.input[0], second.output[0]
        old, new = (source, sink) if sink in outputs else (sink, source)
        model.graph.node.remove(first)
        model.graph.node.remove(second)
        for node in model.graph.node:
            _rename(node, old, new=new)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)


def bypass_points(model: ModelProto, *, floats: Collection[str], sums: Collection[str]) -> None:
    """Let nodes left in float read what nodes left in float wrote, in place, not its rounded form for the others.

    So a residual stream whose Adds are in float is rounded for the layers that read it, and not along the way.
    sums: what integer layers can write as floats, which nodes left in float read unrounded too.
    """
    made = {name: node for node in model.graph.node for name in node.output}
    for node in [node for node in model.graph.node if node.name in floats]:
        for index, name in enumerate(node.input):
            source = _unrounded(made, name)
            maker = made.get(source) if source else None  # an output that nobody wants is called "" too
            if maker is not None and (maker.name in floats or source in sums):
                node.input[index] = source


def _unrounded(made: Mapping[str, NodeProto], name: str) -> str:
    """The tensor that a Quantize → Dequantize pair rounds to `name`; empty if there is no such pair."""
    second = made.get(name)
    first = made.get(second.input[0]) if second is not None and second.op_type == "DequantizeLinear" else None
    return str(first.input[0]) if first is not None and first.op_type == "QuantizeLinear" else ""


def prove(model: ModelProto, plan: QuantizationPlan) -> None:
    """Raise ModelError unless the points of a QDQ model are those of the plan, with the same bits, and pairs fit."""
    import numpy as np

    found = stored_points(model)
    wanted: dict[str, Point | WeightPoint] = {**plan.activations, **plan.weights}
    if found.keys() != wanted.keys():
        missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        raise ModelError(f"the int8 file lacks the points {missing} of its plan and has {extra} beyond it")
    for name, (scales, zero_points) in found.items():
        point = wanted[name]
        planned = (point.scale,) if isinstance(point, Point) else point.scales
        zeros = (point.zero_point,) if isinstance(point, Point) else point.zero_points
        same = np.array_equal(scales, np.asarray(planned, np.float32)) and np.array_equal(zero_points, zeros)
        if not same:
            raise ModelError(f"the int8 file has scale {scales} for {name!r}, its plan has {planned}")
    if plan.numbers.fit_pairs and (found_sums := predict_saturation(model)).possible:
        raise ModelError(f"the plan asks for weights whose pairs fit 16-bit sums; {found_sums.sentence()}")


def stored_points(model: ModelProto) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Return tensor → (scales, zero points) of every point and 8-bit weight in a QDQ model written here."""
    import numpy as np

    stored = graph.initializers(model)
    points: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    for node in model.graph.node:
        weight = node.op_type == "DequantizeLinear" and node.input[0] in stored
        if node.op_type == "QuantizeLinear" or (weight and stored[node.input[0]].dtype.itemsize == 1):
            points[_tensor(node)] = (np.atleast_1d(stored[node.input[1]]), np.atleast_1d(stored[node.input[2]]))
    return points


def _overrides(plan: QuantizationPlan, owners: set[str]) -> dict[str, list[dict[str, Any]]]:
    """The plan as onnxruntime's TensorQuantOverrides: one entry per tensor, or one per channel."""
    import numpy as np

    activation = np.uint8 if plan.numbers.activations == "uint8" else np.int8
    overrides: dict[str, list[dict[str, Any]]] = {}
    for name, point in plan.activations.items():
        if name in owners:
            overrides[name] = [_entry(point.scale, point.zero_point, kind=activation)]
    for name, weight in plan.weights.items():
        kind = np.int8 if weight.dtype == "int8" else np.uint8
        numbers = zip(weight.scales, weight.zero_points, strict=True)
        entries = [_entry(scale, zero_point, kind=kind) for scale, zero_point in numbers]
        if weight.axis is not None:
            for entry in entries:
                entry["axis"] = weight.axis
        overrides[name] = entries
    return overrides


def _entry(scale: float, zero_point: int, *, kind: Any) -> dict[str, Any]:
    import numpy as np

    return {"scale": np.array(scale, np.float32), "zero_point": np.array(zero_point, kind)}


def _restore_header(model: ModelProto, source: ModelProto) -> None:
    """Take back what the quantizer says about itself."""
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    del model.metadata_props[:]
    model.metadata_props.extend(source.metadata_props)


def _lasting(model: ModelProto) -> set[str]:
    """Names that stay in the file: the tensors of the fp32 model, and what a quantized one of them is called."""
    tensors = {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input}
    tensors |= {name for node in model.graph.node for name in node.output}
    return tensors | {name + suffix for name in tensors for suffix in (INPUT_SUFFIX, WEIGHT_SUFFIX)}


def _tensor(node: NodeProto) -> str:
    """The fp32 tensor or weight that a QuantizeLinear, or the DequantizeLinear of a stored weight, stands for."""
    suffix = INPUT_SUFFIX if node.op_type == "QuantizeLinear" else WEIGHT_SUFFIX
    return str(node.input[0].removesuffix(suffix))


def _rename(node: NodeProto, old: str, *, new: str) -> None:
    for names in (node.input, node.output):
        for index, name in enumerate(names):
            if name == old:
                names[index] = new
