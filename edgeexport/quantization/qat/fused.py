"""Which nodes of a twin an integer kernel of onnxruntime computes, in place of the float operator that the file names.

The rule: a node is fused where nothing stands against it (`causes`); the numbers of its inputs and of its result are
those of the sites around it. Where a float kernel runs, the graph is already what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeexport.quantization.causes import Wiring, cause, wiring
from edgeexport.quantization.placement import WEIGHTED, attribute, writes_floats

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from edgeexport.quantization.qat.twin import ActivationSite, Twin
    from edgeexport.records.target import NumberFormat

_PAIRS, _MEANS = frozenset({"Add", "Mul"}), frozenset({"AveragePool", "GlobalAveragePool"})


@dataclass(frozen=True)
class KernelSite:
    """A node that an integer kernel computes. tensor: its result in the twin; sources: its 8-bit inputs there.

    weight: the stored one of a layer, and axis that of its output channels. into: the sites that take the result in
    steps; without any it is a float. whole_bias: the bias is added in integers.
    """

    op: str
    tensor: str
    sources: tuple[str, ...]
    into: tuple[ActivationSite, ...] = ()
    weight: str = ""
    axis: int = 0
    whole_bias: bool = True


def kernel_sites(spine: ModelProto, quantized: ModelProto, *, twin: Twin, numbers: NumberFormat) -> list[KernelSite]:
    """Return the kernels of a QDQ file. spine: the float model that it was made of. twin: with all its other sites."""
    wires = wiring(quantized, signed_allowed=True)
    real = {node.name: node for node in spine.graph.node}
    found: list[KernelSite] = []
    for node in quantized.graph.node:
        fused = not cause(node, wires)
        alone = not fused and node.name in real and writes_floats(spine, real[node.name], numbers=numbers)
        if node.op_type in WEIGHTED and (fused or alone):
            found += _layer(node, twin, into=_takers(node, wires, twin=twin) if fused else (), fused=fused)
        elif node.op_type in _PAIRS | _MEANS and fused:
            sources = tuple(node.input[: 2 if node.op_type in _PAIRS else 1])
            into = _takers(node, wires, twin=twin)
            if into and set(sources) <= _eight_bits(twin):
                found.append(KernelSite(node.op_type, node.output[0], sources, into))
    return found


def read_by_kernels(twin: Twin) -> set[str]:
    """Return the rounded activations that integer kernels alone read: they may come in steps."""
    kernels = {kernel.tensor: kernel.sources for kernel in twin.kernels}
    wanted = {name for sources in kernels.values() for name in sources}
    outputs = {value.name for value in twin.model.graph.output}
    read = {
        name for node in twin.model.graph.node for name in node.input if name not in kernels.get(node.output[0], ())
    }
    return {site.tensor for site in twin.activations} & wanted - read - outputs


def linear_site(node: NodeProto, *, axis: int) -> KernelSite:
    """Return the kernel of an encoder's linear layer, whose bias and result are floats."""
    return KernelSite(node.op_type, node.output[0], (node.input[0],), (), node.input[1], axis, whole_bias=False)


def _layer(node: NodeProto, twin: Twin, *, into: tuple[ActivationSite, ...], fused: bool) -> Iterator[KernelSite]:
    weights, biases = {site.tensor for site in twin.weights}, {site.tensor for site in twin.biases}
    source, weight, *rest = node.input
    known = source in _eight_bits(twin) and weight in weights and all(name in biases for name in rest if name)
    if known and (into or not fused or node.op_type != "Conv"):
        turned = node.op_type == "Conv" or attribute(node, "transB", default=0)
        axis = 0 if turned else 1
        yield KernelSite(node.op_type, node.output[0], (source,), into, weight, axis, whole_bias=fused)


def _takers(node: NodeProto, wires: Wiring, *, twin: Twin) -> tuple[ActivationSite, ...]:
    """The sites of the one QuantizeLinear that reads a result."""
    readers = wires.readers.get(node.output[0], [])
    points = {reader.output[0] for reader in readers if reader.op_type == "QuantizeLinear"}
    return tuple(site for site in twin.activations if site.integers in points)


def _eight_bits(twin: Twin) -> set[str]:
    return {site.tensor for site in twin.activations} | {site.tensor for site in twin.weights if site.constant}
