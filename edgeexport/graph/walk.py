"""Walking an ONNX model: every graph, node and tensor in it, subgraphs and functions included.

The rule: iterative, never recursive, and each thing comes with the words that locate it in a message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto


def graphs(model: ModelProto) -> Iterator[tuple[GraphProto, int]]:
    """Yield the main graph (depth 0), then every subgraph with its depth, those inside functions included."""
    waiting: list[tuple[GraphProto, int]] = [(model.graph, 0)]
    for function in model.functions:
        waiting += [(inner, 1) for node in function.node for inner in subgraphs(node)]
    while waiting:
        graph, depth = waiting.pop(0)
        yield graph, depth
        waiting += [(inner, depth + 1) for node in graph.node for inner in subgraphs(node)]


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs held by a node's attributes (the branches of If, the body of Loop and Scan)."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Yield every node of every graph, then those of the model's functions."""
    for graph, _ in graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def tensors(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Yield every tensor stored in the model with words that locate it: initializers, sparse ones, attributes."""
    for graph, _ in graphs(model):
        for tensor in graph.initializer:
            yield f"initializer {tensor.name!r}", tensor
        for sparse in graph.sparse_initializer:
            yield f"values of sparse initializer {sparse.values.name!r}", sparse.values
            yield f"indices of sparse initializer {sparse.values.name!r}", sparse.indices
    for node in nodes(model):
        yield from _attribute_tensors(node)


def describe(node: NodeProto) -> str:
    """Say which node this is: its operator, and its name or what it computes."""
    called = repr(node.name) if node.name else "computing " + ", ".join(repr(name) for name in node.output)
    return f"{node.op_type} node {called}"


def _attribute_tensors(node: NodeProto) -> Iterator[tuple[str, TensorProto]]:
    for attribute in node.attribute:
        where = f"attribute {attribute.name!r} of {describe(node)}"
        if attribute.HasField("t"):
            yield where, attribute.t
        for tensor in attribute.tensors:
            yield where, tensor
        if attribute.HasField("sparse_tensor"):
            yield where, attribute.sparse_tensor.values
            yield where, attribute.sparse_tensor.indices
        for sparse in attribute.sparse_tensors:
            yield where, sparse.values
            yield where, sparse.indices
