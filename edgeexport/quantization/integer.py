"""Encoders in integers: linear layers multiply int8, all between them stays float; embedding tables are int8.

The rule: weights are symmetric int8, one scale per output channel (a table: one per row), rounded to nearest. The
activation's range is either a plan's ("static") or taken from each input as it comes ("dynamic"). Branches of If and
bodies of loops are walked like the main graph. `MatMulIntegerToFloat` (com.microsoft) is the kernel onnxruntime itself
fuses both forms to; written down, it takes the bias along, and no graph optimization is needed for speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.errors import DataError, ModelError
from edgeexport.graph.walk import graphs
from edgeexport.quantization.channels import linear_nodes, store, weight_matrix
from edgeexport.quantization.outliers import BESIDE
from edgeexport.quantization.pairs import pair_scales
from edgeexport.quantization.placement import attribute
from edgeexport.quantization.plan import weight_scales
from edgeexport.records.base import file_digest
from edgeexport.records.encoder import EncoderForm, EncoderPlan
from edgeexport.records.plan import Point, QuantizationPlan, WeightPoint
from edgeexport.records.target import NumberFormat
from edgeexport.runtimes.ort_saturation import neighbours

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto

# Below this many weights a layer costs more to quantize than it saves, and a table saves nothing to speak of.
LEAST_WEIGHTS = 4096
FLOOR = "1.8"
MICROSOFT = "com.microsoft"
UNSIGNED = NumberFormat(activations="uint8")
NO_POINTS: Mapping[str, WeightPoint] = MappingProxyType({})
_SMALL = f"fewer than {LEAST_WEIGHTS} weights"


def quantize_dynamic(
    model_path: Path, *, out: Path, keep_float: Mapping[str, str] | None = None, numbers: NumberFormat = UNSIGNED
) -> EncoderPlan:
    """Write the form whose activation ranges are found anew for each input; say what was quantized how.

    Every MatMul and Gemm with a stored weight multiplies u8 by s8 (weights per output channel, as
    `numbers` say), and every large table that a Gather reads is stored in int8, wherever in the model it stands.
    Raises ModelError when nothing can be quantized; onnxruntime's own function would copy such a file in silence.
    """
    return _written(model_path, out, job=_Job("dynamic", dict(keep_float or {}), numbers))


def quantize_static_encoder(model_path: Path, plan: QuantizationPlan, *, out: Path) -> EncoderPlan:
    """Write the form whose activation ranges are those of a plan (of this very file). Other nodes stay in float.

    The plan must have unsigned activations: with `keep_encoder_float` as its `keep_float` it has all that is needed.
    Where it has a scale for every output of a layer, or every row of a table, that scale is taken.
    """
    if plan.model_digest != file_digest(model_path):
        raise DataError(f"the plan belongs to the model {plan.model_digest}, not to {model_path}")
    if plan.numbers.activations != "uint8":
        raise DataError("the integer kernels of encoders take uint8 activations, the plan has int8 ones")
    job = _Job("static", dict(plan.keep_float), plan.numbers, plan.activations, plan.weights)
    return _written(model_path, out, job=job)


def keep_encoder_float(model_path: Path) -> dict[str, str]:
    """Return the nodes to leave in float for a static encoder, with the reason: all but its larger linear layers."""
    model = graph.load(model_path)
    stored = graph.initializers(model)
    linear = [node for node in linear_nodes(model.graph, stored) if not _too_small(node, stored)]
    mine = {id(node) for node in linear}
    return {
        node.name: "between linear layers an encoder is cheap, and its ranges are wide"
        for node in model.graph.node
        if id(node) not in mine and node.name
    }


@dataclass
class _Job:
    """What is asked for, and what has been done so far."""

    form: EncoderForm
    keep_float: dict[str, str]
    numbers: NumberFormat
    points: Mapping[str, Point] = field(default_factory=dict)
    weights: Mapping[str, WeightPoint] = field(default_factory=dict)
    done: dict[str, str] = field(default_factory=dict)
    inputs: dict[tuple[int, str], tuple[str, str, str]] = field(default_factory=dict)


def _written(model_path: Path, out: Path, *, job: _Job) -> EncoderPlan:
    model = graph.load(model_path)
    kept = dict(job.keep_float)
    for part, visible in scopes(model):
        for node in linear_nodes(part, visible):
            reason = job.keep_float.get(node.name) or _refusal(job, node, visible=visible)
            if reason:
                kept[label(node)] = reason
            else:
                _integer_linear(part, node, job=job, visible=visible)
                job.done[label(node)] = f"int8 weights per output channel, {job.form} uint8 activations"
    job.done.update(quantize_tables(model, job.weights))
    if not job.done:
        raise ModelError(f"it has no linear layer and no table that can be int8: {_reasons(kept)}")
    finish(model, out)
    return EncoderPlan(file_digest(model_path), job.form, job.done, kept, FLOOR)


def scopes(model: ModelProto) -> Iterator[tuple[GraphProto, dict[str, NDArray[Any]]]]:
    """Yield every graph of the model with the stored tensors that it can see, its own and those of the main graph."""
    from onnx import numpy_helper

    outer = graph.initializers(model)
    for part, depth in list(graphs(model)):
        own = {tensor.name: numpy_helper.to_array(tensor) for tensor in part.initializer}
        own |= {node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in part.node if _is_stored(node)}
        yield part, {**outer, **own} if depth else own


def label(node: NodeProto) -> str:
    """Return the name of a node, or else what it computes."""
    return str(node.name or node.output[0])


def take_bias(part: GraphProto, node: NodeProto, *, stored: Mapping[str, NDArray[Any]]) -> tuple[str, str]:
    """Return (bias, result) of a linear node; the Add of a stored vector that alone reads it is taken out."""
    if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]:
        return node.input[2], node.output[0]
    result = node.output[0]
    readers = [other for other in part.node if result in other.input]
    if len(readers) != 1 or readers[0].op_type != "Add" or any(value.name == result for value in part.output):
        return "", result
    other = next((name for name in readers[0].input if name != result), result)
    if other not in stored or stored[other].ndim != 1 or stored[other].size != _outputs(node, stored):
        return "", result
    following = readers[0].output[0]
    part.node.remove(readers[0])
    return other, following


def quantize_tables(model: ModelProto, points: Mapping[str, WeightPoint] = NO_POINTS) -> dict[str, str]:
    """Store the large tables that a Gather reads by rows in int8, a scale per row, in place; return node -> how.

    points: scales of tables that are not to be taken from their values.
    """
    done = {}
    for part, visible in scopes(model):
        for node in [node for node in part.node if node.op_type == "Gather" and node.input[0] in visible]:
            table = visible[node.input[0]]
            rows = not any(item.name == "axis" and item.i not in {0, -table.ndim} for item in node.attribute)
            if rows and table.ndim == 2 and table.dtype.name == "float32" and table.size >= LEAST_WEIGHTS:
                _integer_table(part, node, table=table, point=points.get(node.input[0]))
                done[label(node)] = "table in int8, a scale per row"
    return done


def finish(model: ModelProto, out: Path) -> None:
    """Drop what nothing reads any more, import com.microsoft, and publish the file."""
    from onnx import helper

    for part, _ in graphs(model):
        for node in [node for node in part.node if _is_stored(node) and not _is_read(model, node.output[0])]:
            part.node.remove(node)
        for tensor in [tensor for tensor in part.initializer if not _is_read(model, tensor.name)]:
            part.initializer.remove(tensor)
        del part.value_info[:]
    if not any(entry.domain == MICROSOFT for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    graph.save(model, out)


def _integer_linear(part: GraphProto, node: NodeProto, *, job: _Job, visible: Mapping[str, NDArray[Any]]) -> None:
    import numpy as np
    from onnx import helper

    matrix = weight_matrix(node, visible[node.input[1]])
    planned = _planned_scales(job.weights.get(node.input[1]), 0 if _is_turned(node) else 1)
    scales, integers = _integer_weight(matrix, planned, numbers=job.numbers)
    values, scale, zero_point = _integer_input(part, node, job=job)
    bias, result = take_bias(part, node, stored=visible)
    name = node.input[1]
    inputs = [values, store(part, f"{name}_quantized", value=np.ascontiguousarray(integers)), scale]
    inputs += [store(part, f"{name}_scale", value=scales), zero_point, *(["", bias] if bias else [])]
    node.CopyFrom(helper.make_node("MatMulIntegerToFloat", inputs, [result], node.name, domain=MICROSOFT))


def _integer_weight(
    matrix: NDArray[Any], planned: NDArray[Any] | None, *, numbers: NumberFormat
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (scales, int8 weights) of a matrix (inputs, outputs). planned: its scales, where the plan has them."""
    import numpy as np

    scales = weight_scales(matrix, 1, reduce_range=numbers.reduce_range) if planned is None else planned
    if numbers.fit_pairs:
        scales = np.maximum(scales, fitting_scales(matrix)).astype(np.float32)
    most = 64 if numbers.reduce_range else 127
    return scales, np.clip(np.rint(matrix / scales), -most, most).astype(np.int8)


def fitting_scales(matrix: NDArray[Any]) -> NDArray[Any]:
    """Return the least scales of a matrix (inputs, outputs) at which its pairs fit 16-bit sums."""
    import numpy as np

    return pair_scales(matrix.T, met=neighbours(np.arange(len(matrix)))[None])


def _integer_input(part: GraphProto, node: NodeProto, *, job: _Job) -> tuple[str, str, str]:
    """Return (values, scale, zero point) of the input in uint8; layers that read the same tensor share them."""
    import numpy as np
    from onnx import helper

    tensor = node.input[0]
    key = (id(part), tensor)
    if key in job.inputs:
        return job.inputs[key]
    names = (f"{tensor}_quantized", f"{tensor}_scale", f"{tensor}_zero_point")
    if job.form == "dynamic":
        new = helper.make_node("DynamicQuantizeLinear", [tensor], list(names), names[0])
    else:
        point = job.points[tensor]
        scale = store(part, names[1], value=np.array(point.scale, np.float32))
        zero_point = store(part, names[2], value=np.array(point.zero_point, np.uint8))
        names = (names[0], scale, zero_point)
        new = helper.make_node("QuantizeLinear", [tensor, scale, zero_point], [names[0]], names[0])
    part.node.insert(next(index for index, other in enumerate(part.node) if other is node), new)
    job.inputs[key] = names
    return names


def _integer_table(part: GraphProto, node: NodeProto, *, table: NDArray[Any], point: WeightPoint | None) -> None:
    import numpy as np
    from onnx import helper

    planned = _planned_scales(point, 0)
    scales = (weight_scales(table, 0, reduce_range=False) if planned is None else planned)[:, None]
    integers = np.clip(np.rint(table / scales), -127, 127).astype(np.int8)
    name, result, rows = node.input[0], node.output[0], node.input[1]
    picked, real, scale = f"{result}_quantized", f"{result}_integers", f"{result}_scale"
    node.input[0] = store(part, f"{name}_quantized", value=integers)
    node.output[0] = picked
    stored = store(part, f"{name}_scale", value=scales.astype(np.float32))
    new = [
        helper.make_node("Cast", [picked], [real], real, to=1),
        helper.make_node("Gather", [stored, rows], [scale], scale),
        helper.make_node("Mul", [real, scale], [result], f"{result}_real"),
    ]
    place = next(index for index, other in enumerate(part.node) if other is node)
    for offset, item in enumerate(new):
        part.node.insert(place + 1 + offset, item)


def _planned_scales(point: WeightPoint | None, axis: int) -> NDArray[Any] | None:
    """The plan's scales along this axis of a weight; None if it has no such ones."""
    import numpy as np

    return None if point is None or point.axis != axis else np.array(point.scales, np.float32)


def _is_turned(node: NodeProto) -> bool:
    return bool(node.op_type == "Gemm" and attribute(node, "transB", default=0))


def _refusal(job: _Job, node: NodeProto, *, visible: Mapping[str, NDArray[Any]]) -> str:
    """Why this linear node stays in float; empty if it need not."""
    weight = visible[node.input[1]]
    if weight.ndim != 2 or weight.dtype.name != "float32":
        return "its weight is not a float32 matrix"
    if node.input[1].endswith(BESIDE):
        return "it carries the outliers"
    if _too_small(node, visible):
        return _SMALL
    if job.form == "static" and node.input[0] not in job.points:
        return "the plan has no point for its input"
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
    if bias and (bias not in visible or visible[bias].shape != (_outputs(node, visible),)):
        return "its bias is not a stored vector"
    return ""


def _too_small(node: NodeProto, stored: Mapping[str, NDArray[Any]]) -> bool:
    return stored[node.input[1]].size < LEAST_WEIGHTS


def _outputs(node: NodeProto, stored: Mapping[str, NDArray[Any]]) -> int:
    return int(weight_matrix(node, stored[node.input[1]]).shape[-1])


def _is_stored(node: NodeProto) -> bool:
    """Whether a node is a Constant that holds a tensor."""
    return node.op_type == "Constant" and node.attribute[0].name == "value"


def _is_read(model: ModelProto, name: str) -> bool:
    parts = [part for part, _ in graphs(model)]
    read = any(name in node.input for part in parts for node in part.node)
    return read or any(value.name == name for part in parts for value in part.output)


def _reasons(kept: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in list(kept.items())[:3]) or "there are none"
