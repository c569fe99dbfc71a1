"""Names that mean something and are the same every time: what exporters numbered is named after what it does.

The rule: inputs, outputs and names that somebody chose stay as they are; only numbered ones are replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

# What torch's exporters, onnxscript and converters write when they have no name of their own.
_NUMBERED_NODE = re.compile(r"node_\w*|n?\d*|[A-Za-z]+_\d+")
_NUMBERED_TENSOR = re.compile(r"onnx::\w+|_?val_\d+|anonymous.*|\d+|.*_size_\d+|const_.*")
_ROLES = {
    ("Conv", 1): "weight",
    ("Conv", 2): "bias",
    ("ConvTranspose", 1): "weight",
    ("ConvTranspose", 2): "bias",
    ("Gemm", 1): "weight",
    ("Gemm", 2): "bias",
    ("MatMul", 1): "weight",
}


def rename(model: ir.Model) -> None:
    """Rename nodes, tensors and initializers of `model` in place, in graph order."""
    import onnx_ir as ir

    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    fixed = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    taken = {str(value.name) for value in _values(model)}
    node_names: set[str] = set()
    for node in nodes:
        numbered = not node.name or _NUMBERED_NODE.fullmatch(node.name) or node.name in node_names
        node.name = _free(_meaning(node) if numbered else str(node.name), node_names)
        if numbered:
            _rename_outputs(node, fixed, taken=taken)
        _rename_initializers(node, fixed, taken=taken)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    import onnx_ir as ir

    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        yield from node.outputs


def _meaning(node: ir.Node) -> str:
    """`layer1.conv2` for the node that holds `layer1.conv2.weight`, else the operator's name."""
    for value in node.inputs:
        if value is not None and value.is_initializer() and str(value.name).endswith(".weight"):
            return str(value.name).removesuffix(".weight")
    return node.op_type.lower()


def _rename_outputs(node: ir.Node, fixed: set[str | None], *, taken: set[str]) -> None:
    for index, value in enumerate(node.outputs):
        if value.name and value.name not in fixed:
            taken.discard(value.name)
            value.name = _free(f"{node.name}.out{index or ''}", taken)


def _rename_initializers(node: ir.Node, fixed: set[str | None], *, taken: set[str]) -> None:
    for index, value in enumerate(node.inputs):
        if value is None or not value.is_initializer() or value.name in fixed:
            continue
        name = str(value.name)
        if name.endswith(".weight_bias"):  # what onnxscript calls the bias that it folded a normalization into
            wanted = f"{name.removesuffix('.weight_bias')}.bias"
        elif _NUMBERED_TENSOR.fullmatch(name):
            wanted = f"{node.name}.{_ROLES.get((node.op_type, index), f'in{index}')}"
        else:
            continue
        taken.discard(name)
        value.name = _free(wanted, taken)


def _free(wanted: str, taken: set[str]) -> str:
    """Return `wanted`, or with the first number that makes it unique, and mark it as taken."""
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name
