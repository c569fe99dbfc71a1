"""Where quantization points go: which nodes run in integers, and which tensors carry a scale.

The rule: what is worth it is decided here (`choose`), with a reason for every node left in float; where the points of
the chosen nodes lie is onnxruntime's own answer (`place` lets its QDQQuantizer write a draft and reads it), so that a
plan never names a point that the file would not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.errors import MissingExtra

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

    from edgeexport.records.target import NumberFormat

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
# Integer kernels, or moves that keep a scale: worth it only between two weighted nodes.
BETWEEN = frozenset({
    "Add", "Mul", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "Pad", "Reshape", "Transpose",
    "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Sigmoid", "LeakyRelu",
})  # fmt: skip
# Absorbed by the saturation of the point that follows.
FOLDED = frozenset({"Relu", "Clip"})
CANDIDATES = WEIGHTED | BETWEEN | FOLDED
INPUT_SUFFIX = "_QuantizeLinear_Input"
WEIGHT_SUFFIX = "_quantized"


@dataclass(frozen=True)
class Placement:
    """The points of a draft. activations: tensor → tensor whose scale it uses. weights: those quantized once, offline.

    constants: weights of element-wise nodes, which take the activations' type.
    """

    activations: dict[str, str]
    weights: tuple[str, ...]
    constants: tuple[str, ...]


def prepared(model: ModelProto) -> ModelProto:
    """Return a copy ready for onnxruntime's quantizer: shapes inferred, every node named, Gemm biases of rank 1."""
    import numpy as np
    import onnx

    copy = graph.infer_shapes(model)
    taken: set[str] = set()
    for node in copy.graph.node:
        node.name = node.name if node.name and node.name not in taken else f"{node.op_type}:{node.output[0]}"
        taken.add(node.name)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    for node in copy.graph.node:
        bias = stored.get(node.input[2]) if node.op_type == "Gemm" and len(node.input) == 3 else None
        if bias is not None and len(bias.dims) != 1 and uses(copy, bias.name) == 1:
            flat = np.ravel(onnx.numpy_helper.to_array(bias))
            bias.CopyFrom(onnx.numpy_helper.from_array(flat, bias.name))
    # Says that shapes are inferred, or onnxruntime would do so through a file in the system's temporary folder.
    onnx.helper.set_model_props(copy, {"onnx.infer": "onnxruntime.quant"})
    return copy


def uses(model: ModelProto, tensor: str) -> int:
    """Return how many node inputs of the main graph read this tensor."""
    return sum(list(node.input).count(tensor) for node in model.graph.node)


def supported(model: ModelProto) -> tuple[str, ...]:
    """Return the nodes that could run in integers, whether it pays or not. model: `prepared`."""
    nodes = [node for node in model.graph.node if node.op_type in CANDIDATES]
    return tuple(node.name for node in nodes if not _refusal(model, node, keep_float={}))


def choose(model: ModelProto, keep_float: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Decide node by node. Returns the names of nodes to quantize, and node → reason for candidates left in float.

    model: `prepared`. keep_float: nodes that the caller wants in float, with the reason.
    """
    kept = {node.name: reason for node in model.graph.node if (reason := _refusal(model, node, keep_float=keep_float))}
    weighted = [node for node in model.graph.node if node.op_type in WEIGHTED and node.name not in kept]
    below = _reached(model, {name for node in weighted for name in node.output}, forward=True)
    above = _reached(model, {name for node in weighted for name in node.input}, forward=False)
    chosen = {node.name for node in weighted}
    for node in model.graph.node:
        if node.name in kept or node.op_type in WEIGHTED or node.op_type not in CANDIDATES:
            continue
        after = any(name in below for name in node.input)
        before = any(name in above for name in node.output)
        if after and (before or _folds(model, node, chosen=chosen)):
            chosen.add(node.name)
        elif node.op_type not in FOLDED:
            kept[node.name] = "no weighted node follows it" if after else "no weighted node comes before it"
    return tuple(node.name for node in model.graph.node if node.name in chosen), kept


def place(model: ModelProto, nodes: tuple[str, ...], *, symmetric: bool) -> Placement:
    """Ask onnxruntime where the points of these nodes lie. model: `prepared`. symmetric: of activations."""
    import onnx

    draft = write_draft(model, nodes, symmetric=symmetric, overrides={}, activations="uint8")
    stored = {tensor.name: tensor.data_type for tensor in draft.graph.initializer}
    points: dict[str, str] = {}
    weights: list[str] = []
    constants: list[str] = []
    for node in draft.graph.node:
        if node.op_type == "QuantizeLinear":
            points[node.input[0].removesuffix(INPUT_SUFFIX)] = node.input[1].removesuffix("_scale")
        elif node.op_type == "DequantizeLinear" and node.input[0] in stored:
            kind = stored[node.input[0]]
            group = {onnx.TensorProto.INT8: weights, onnx.TensorProto.UINT8: constants}.get(kind)
            if group is not None:
                group.append(node.input[0].removesuffix(WEIGHT_SUFFIX))
    order = graph.float_tensors(model)
    ordered = {name: points[name] for name in order if name in points}
    return Placement(ordered, tuple(weights), tuple(constants))


def write_draft(
    model: ModelProto, nodes: tuple[str, ...], *, symmetric: bool, overrides: Mapping[str, Any], activations: str
) -> ModelProto:
    """Run onnxruntime's QDQQuantizer over a copy of `model` (`prepared`) with these TensorQuantOverrides."""
    import numpy as np
    import onnx

    try:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import TensorData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    except ModuleNotFoundError as error:
        raise MissingExtra("onnxruntime", extra="export", purpose="writing int8 ONNX") from error
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # Every scale comes from `overrides`; the ranges only say that a tensor may be a point.
    unit = {"lowest": np.float32(0), "highest": np.float32(1)}
    quantizer = QDQQuantizer(
        copy,
        per_channel=False,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8 if activations == "uint8" else QuantType.QInt8,
        tensors_range={name: TensorData(**unit) for name in graph.float_tensors(model)},
        nodes_to_quantize=list(nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=sorted(CANDIDATES),
        extra_options={
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            "TensorQuantOverrides": dict(overrides),
            "QDQDisableWeightAdjustForInt32Bias": True,
        },
    )
    draft: ModelProto = quantizer.quantize_model()
    quantizer.model.topological_sort()
    return draft


def weight_axis(model: ModelProto, weight: str) -> int | None:
    """Return the axis of output channels on which every node that reads this weight agrees, None if there is none."""
    rank = next(len(tensor.dims) for tensor in model.graph.initializer if tensor.name == weight)
    axes = {_axis(node, weight, rank=rank) for node in model.graph.node if weight in node.input}
    return axes.pop() if len(axes) == 1 else None


def writes_floats(model: ModelProto, node: NodeProto, *, numbers: NumberFormat) -> bool:
    """Whether the node's integer kernel can write floats: Gemm, MatMul, and, if the format says so, a pointwise Conv.

    Of those only what is added up: there rounding is lost twice, and the sum goes on in float.
    """
    if node.op_type != "Conv" or not numbers.float_sums:
        return node.op_type in {"Gemm", "MatMul"}
    weight = next((tensor for tensor in model.graph.initializer if tensor.name == node.input[1]), None)
    steps = [*attribute(node, "strides", default=[]), attribute(node, "group", default=1)]
    alone = set(steps) == {1} and not any(attribute(node, "pads", default=[]))
    added = any(other.op_type == "Add" and node.output[0] in other.input for other in model.graph.node)
    return weight is not None and set(weight.dims[2:]) == {1} and alone and added


def attribute(node: NodeProto, name: str, *, default: Any) -> Any:
    """Return an attribute's value, or the default."""
    import onnx

    return next((onnx.helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def _axis(node: NodeProto, weight: str, *, rank: int) -> int | None:
    if node.op_type == "Conv" and node.input[1] == weight:
        return 0
    if node.op_type == "Gemm" and node.input[1] == weight:
        return 0 if attribute(node, "transB", default=0) else 1
    if node.op_type == "MatMul" and node.input[1] == weight and rank == 2:
        return 1
    return None


def _refusal(model: ModelProto, node: NodeProto, *, keep_float: Mapping[str, str]) -> str:
    """Why this node must stay in float; empty if it need not, or is no candidate."""
    if node.name in keep_float:
        return keep_float[node.name]
    if node.op_type == "ConvTranspose":
        return "onnxruntime has no integer kernel for it"
    if node.op_type in WEIGHTED:
        return _weighted_refusal(model, node)
    if node.op_type == "Clip" and not _crosses_zero(model, node):
        return "its bounds do not include zero, so no point can stand for it"
    return ""


def _weighted_refusal(model: ModelProto, node: NodeProto) -> str:
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = stored.get(node.input[1])
    if weight is None or node.input[0] in stored:
        return "its weight is not a constant"
    if weight.data_type != 1:
        return "its weight is not float32"
    has_bias = len(node.input) > 2 and bool(node.input[2])
    if has_bias and node.input[2] not in stored:
        return "its bias is not a constant"
    if node.op_type != "Gemm":
        return ""
    return _gemm_refusal(node, weight, bias=stored[node.input[2]] if has_bias else None)


def _gemm_refusal(node: NodeProto, weight: TensorProto, *, bias: TensorProto | None) -> str:
    scaled = any(attribute(node, name, default=1.0) != 1.0 for name in ("alpha", "beta"))
    if scaled or attribute(node, "transA", default=0):
        return "integer Gemm knows neither alpha, beta nor transA"
    channels = weight.dims[0 if attribute(node, "transB", default=0) else 1]
    if bias is not None and list(bias.dims) != [channels]:
        return f"its bias does not have one value for each of the {channels} channels"
    return ""


def _crosses_zero(model: ModelProto, node: NodeProto) -> bool:
    """True when both bounds are constants (or absent) with low ≤ 0 ≤ high: the point's saturation replaces the Clip."""
    import onnx

    given = [name for name in node.input[1:3] if name]
    stored = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in given}
    values = {**graph.constants(model), **{name: onnx.numpy_helper.to_array(each) for name, each in stored.items()}}
    if any(name not in values for name in given):
        return False
    inputs = [*node.input[1:3], "", ""]
    low = float(values[inputs[0]]) if inputs[0] else attribute(node, "min", default=-float("inf"))
    high = float(values[inputs[1]]) if inputs[1] else attribute(node, "max", default=float("inf"))
    return bool(low <= 0.0 <= high)


def _folds(model: ModelProto, node: NodeProto, *, chosen: set[str]) -> bool:
    """True for a Relu or Clip right after a chosen node that nothing else reads: it costs nothing in integers."""
    maker = next((other for other in model.graph.node if node.input[0] in other.output), None)
    alone = uses(model, node.input[0]) == 1
    return node.op_type in FOLDED and alone and maker is not None and maker.name in chosen


def _reached(model: ModelProto, start: set[str], *, forward: bool) -> set[str]:
    """Return all tensors that `start` flows into (forward), or is made from (backward), itself included."""
    reached = set(start)
    for node in model.graph.node if forward else reversed(model.graph.node):
        source, sink = (node.input, node.output) if forward else (node.output, node.input)
        if any(name in reached for name in source):
            reached.update(name for name in sink if name)
    return reached
