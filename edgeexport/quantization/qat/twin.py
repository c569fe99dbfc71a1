"""The float twin of an int8 file: the same graph node by node, each rounding a marked place, the weights those of the
float model.

The rule: where something is rounded is read off the int8 file that `quantize` wrote, never decided a second time; what
the quantizer removed, shared or bypassed is so in the twin too. A rounding is an Identity, for a tap to sit on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.errors import ModelError
from edgeexport.quantization.channels import LINEAR
from edgeexport.quantization.integer import fitting_scales, label
from edgeexport.quantization.placement import INPUT_SUFFIX, WEIGHT_SUFFIX, WEIGHTED, attribute, choose, place, prepared
from edgeexport.quantization.plan import fitting
from edgeexport.quantization.qat.fused import KernelSite, kernel_sites, linear_site
from edgeexport.records.encoder import EncoderPlan
from edgeexport.records.plan import QuantizationPlan

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

# Operators of int8 files whose ranges or blocks are found at run time: there is no step that could be trained for.
_WITHOUT_STEPS = {"DynamicQuantizeLinear": "its ranges are those of each input", "MatMulNBits": "it rounds in blocks"}

# Element-wise operators whose stored tensor is a bias or a scale, which `lift` lets training move.
_TRAINED = frozenset({"Add", "Mul"})


@dataclass(frozen=True)
class ActivationSite:
    """A rounded activation. tensor: of the twin, after rounding; step: the tensor whose scale it has.

    source: the tensor of the float model, a key of the plan. integers, scale, zero_point: names in the int8 file.
    """

    tensor: str
    source: str
    step: str
    integers: str
    scale: str
    zero_point: str


@dataclass(frozen=True)
class WeightSite:
    """A rounded weight. axis: of its scales in the float model, None for a single one; limit: the largest integer.

    integers, scales: names in the int8 file; turned: it stores the weight transposed. constant: of an element-wise
    node, in the type of the activations, with the plan's scale and zero point.
    """

    tensor: str
    weight: str
    axis: int | None
    limit: int
    integers: str
    scales: str
    turned: bool = False
    constant: bool = False


@dataclass(frozen=True)
class BiasSite:
    """A bias in 32 bits; its scale is the product of that of an activation (`step`) and of a weight."""

    tensor: str
    bias: str
    step: str
    weight: str
    integers: str
    scales: str


@dataclass
class Twin:
    """A float model with the sites at which the int8 file rounds. stored: the int8 file's tensors.

    kernels: the nodes that are computed in integers. fits: weight → what gives the least scales at which its pairs fit
    16-bit sums, where the plan asks for that.
    """

    model: ModelProto
    stored: Mapping[str, NDArray[Any]]
    activations: list[ActivationSite] = field(default_factory=list)
    weights: list[WeightSite] = field(default_factory=list)
    biases: list[BiasSite] = field(default_factory=list)
    kernels: list[KernelSite] = field(default_factory=list)
    fits: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = field(default_factory=dict)

    def shape(self) -> list[tuple[str, str]]:
        """What computes, in order: equal for two int8 forms of one model that differ in their numbers alone."""
        return [(node.op_type, "" if node.op_type == "Identity" else node.name) for node in self.model.graph.node]


def qdq_twin(spine: ModelProto, quantized: ModelProto, *, plan: QuantizationPlan) -> Twin:
    """Return the twin of the QDQ file that `quantize` wrote of `spine` by `plan`."""
    import onnx

    _refuse_without_steps(quantized)
    model = prepared(spine)
    owners = place(model, choose(model, plan.keep_float)[0], symmetric=plan.numbers.symmetric_activations).activations
    twin = Twin(onnx.ModelProto(), graph.initializers(quantized))
    job = _Qdq(model, quantized, plan, owners, twin)
    nodes = [kept for node in quantized.graph.node if (kept := job.converted(node)) is not None]
    _assemble(twin, quantized, nodes=[*job.front, *nodes], floats=job.floats)
    twin.kernels += kernel_sites(model, quantized, twin=twin, numbers=plan.numbers)
    return twin


def encoder_twin(spine: ModelProto, quantized: ModelProto, *, plan: QuantizationPlan, done: EncoderPlan) -> Twin:
    """Return the twin of the file that `quantize_static_encoder` wrote of `spine`; done: what that function said."""
    import onnx

    _refuse_without_steps(quantized)
    twin = Twin(onnx.ModelProto(), graph.initializers(quantized))
    job = _Encoder(graph.initializers(spine), quantized, plan, twin)
    nodes = [made for node in spine.graph.node for made in job.converted(node, done=done.quantized)]
    _assemble(twin, spine, nodes=[*job.front, *nodes], floats={})
    return twin


@dataclass
class _Qdq:
    """What is known while a QDQ file is walked. front: Identities of stored tensors; floats: tensors to store."""

    spine: ModelProto
    quantized: ModelProto
    plan: QuantizationPlan
    owners: Mapping[str, str]
    twin: Twin
    front: list[NodeProto] = field(default_factory=list)
    floats: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        nodes = self.quantized.graph.node
        self.real = graph.initializers(self.spine)
        self.makers = {name: node for node in nodes for name in node.output}
        self.readers = {name: node for node in nodes for name in node.input}
        self.named = {node.name: node for node in self.spine.graph.node}

    def converted(self, node: NodeProto) -> NodeProto | None:
        """Return what stands for a node of the file in the twin; None for what only describes numbers."""
        if node.op_type == "QuantizeLinear":
            return None
        if node.op_type != "DequantizeLinear":
            return node
        if node.input[0] in self.twin.stored:
            self._stored(node)
            return None
        source = self.makers[node.input[0]]
        tensor = source.input[0].removesuffix(INPUT_SUFFIX)
        names = (node.input[0], source.input[1], source.input[2])
        self.twin.activations.append(ActivationSite(node.output[0], tensor, self.owners[tensor], *names))
        return _identity(source.input[0], node.output[0])

    def _stored(self, node: NodeProto) -> None:
        integers, tensor = node.input[0], node.output[0]
        value, reader = self.twin.stored[integers], self.readers[node.output[0]]
        name = integers.removesuffix(WEIGHT_SUFFIX)
        if value.dtype.itemsize == 4:
            name = self._bias(node)
        elif reader.op_type in WEIGHTED or (reader.op_type in _TRAINED and value.size > 1):
            axis, limit = self.plan.weights[name].axis, _limit(self.plan)
            constant = reader.op_type not in WEIGHTED
            site = WeightSite(tensor, name, axis, limit, integers, node.input[1], constant=constant)
            self.twin.weights.append(site)
            if self.plan.numbers.fit_pairs and not constant:
                self.twin.fits[name] = functools.partial(_fitting, self.spine, weight=name, single=axis is None)
        else:
            self.floats[tensor] = _real(value, [self.twin.stored[each] for each in node.input[1:3]])
            return
        self.floats[name] = self.real[name]
        self.front.append(_identity(name, tensor))

    def _bias(self, node: NodeProto) -> str:
        """Note where a bias is read, and return its name in the float model."""
        layer = self.readers[node.output[0]]
        source, weight = self.makers[layer.input[0]], self.makers[layer.input[1]]
        tensor = self.makers[source.input[0]].input[0].removesuffix(INPUT_SUFFIX)
        name = str(self.named[layer.name].input[2])
        of = weight.input[0].removesuffix(WEIGHT_SUFFIX)
        self.twin.biases.append(BiasSite(node.output[0], name, self.owners[tensor], of, node.input[0], node.input[1]))
        return name


@dataclass
class _Encoder:
    """What is known while the float model of an encoder is walked beside its int8 file."""

    real: Mapping[str, NDArray[Any]]
    quantized: ModelProto
    plan: QuantizationPlan
    twin: Twin
    front: list[NodeProto] = field(default_factory=list)
    rounded: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers = {node.name: node for node in self.quantized.graph.node}
        self.makers = {name: node for node in self.quantized.graph.node for name in node.output}

    def converted(self, node: NodeProto, *, done: Collection[str]) -> Iterator[NodeProto]:
        """Yield what stands for a node of the float model in the twin."""
        if label(node) not in done:
            yield node
            return
        if not node.name:
            raise ModelError(f"the node that makes {node.output[0]!r} has no name, so its int8 form cannot be found")
        copy = type(node)()
        copy.CopyFrom(node)
        if node.op_type in LINEAR:
            yield from self._input(copy)
            self._weight(copy)
        else:
            self._table(copy)
        yield copy

    def _input(self, node: NodeProto) -> Iterator[NodeProto]:
        """Let a layer read its input rounded; layers that share an input share the rounding."""
        tensor = node.input[0]
        if tensor not in self.rounded:
            self.rounded[tensor] = f"{tensor}_rounded"
            integers, _, scale, _, zero_point, *_ = self.layers[node.name].input
            site = ActivationSite(self.rounded[tensor], tensor, tensor, integers, scale, zero_point)
            self.twin.activations.append(site)
            yield _identity(tensor, self.rounded[tensor])
        node.input[0] = self.rounded[tensor]

    def _weight(self, node: NodeProto) -> None:
        turned = bool(node.op_type == "Gemm" and attribute(node, "transB", default=0))
        layer = self.layers[node.name]
        axis, limit = 0 if turned else 1, _limit(self.plan)
        self._site(node, 1, integers=layer.input[1], scales=layer.input[3], axis=axis, limit=limit)
        self.twin.kernels.append(linear_site(node, axis=axis))
        if self.plan.numbers.fit_pairs:
            self.twin.fits[self.twin.weights[-1].weight] = functools.partial(_fitting_matrix, turned=turned)

    def _table(self, node: NodeProto) -> None:
        layer = self.layers[node.name]
        scales = self.makers[f"{node.output[0]}_scale"].input[0]
        self._site(node, 0, integers=layer.input[0], scales=scales, axis=0, limit=127)

    def _site(self, node: NodeProto, place: int, **facts: Any) -> None:
        weight = node.input[place]
        tensor = f"{weight}_rounded_{len(self.twin.weights)}"
        turned = facts["axis"] == 0 and place == 1
        self.twin.weights.append(WeightSite(tensor, weight, turned=turned, **facts))
        self.front.append(_identity(weight, tensor))
        node.input[place] = tensor


def _assemble(twin: Twin, origin: ModelProto, *, nodes: list[NodeProto], floats: Mapping[str, NDArray[Any]]) -> None:
    """Fill the twin's model: these nodes, and of the stored tensors those that they read."""
    from onnx import numpy_helper

    model = twin.model
    model.CopyFrom(origin)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _round_other_readers(twin)
    read = {name for node in model.graph.node for name in node.input}
    kept = [each for each in origin.graph.initializer if each.name in read and each.name not in floats]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in floats.items())
    del model.graph.value_info[:]
    model.CopyFrom(graph.infer_shapes(model))


def _round_other_readers(twin: Twin) -> None:
    """Let float readers of a rounded weight read it rounded too: it is stored on its grid in the end."""
    rounded = {site.weight: site.tensor for site in twin.weights}
    for node in twin.model.graph.node:
        if node.op_type != "Identity":
            node.input[:] = [rounded.get(name, name) for name in node.input]


def _fitting(model: ModelProto, value: NDArray[Any], *, weight: str, single: bool) -> NDArray[Any]:
    return fitting(model, weight, value=value, single=single)


def _fitting_matrix(value: NDArray[Any], *, turned: bool) -> NDArray[Any]:
    return fitting_scales(value.T if turned else value)


def _limit(plan: QuantizationPlan) -> int:
    return 64 if plan.numbers.reduce_range else 127


def _real(integers: NDArray[Any], point: list[NDArray[Any]]) -> NDArray[Any]:
    """Integers as floats. point: their scale and zero point."""
    import numpy as np

    scale, zero_point = point
    real: NDArray[Any] = (integers.astype(np.int32) - zero_point.astype(np.int32)).astype(np.float32) * scale
    return real


def _identity(source: str, tensor: str) -> NodeProto:
    from onnx import helper

    return helper.make_node("Identity", [source], [tensor], tensor)


def _refuse_without_steps(quantized: ModelProto) -> None:
    for node in quantized.graph.node:
        if node.op_type in _WITHOUT_STEPS:
            raise ModelError(
                f"{node.name!r} is a {node.op_type}: {_WITHOUT_STEPS[node.op_type]}, so it has no steps to train",
                next_step="plan a static form",
            )
