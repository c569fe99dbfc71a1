"""A model while it is being edited: who makes and who reads each tensor, what is stored, and the few moves edits need.

The rule: an edit keeps the names of the tensors that others read, and gives every changed weight an initializer of its
own, since another node may read the old one.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from edgeexport import graph

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto


class Sketch:
    """A copy of a model, indexed. `index` again after nodes were changed other than through these methods."""

    def __init__(self, model: ModelProto) -> None:
        import onnx

        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.outputs = {value.name for value in model.graph.output}
        self.types = graph.tensor_types(model)
        self.stored: dict[str, np.ndarray] = {**graph.constants(model), **graph.initializers(model)}
        self.index()

    def index(self) -> None:
        """Look anew at who makes and who reads each tensor."""
        self.maker: dict[str, NodeProto] = {}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.model.graph.node:
            for name in filter(None, node.output):
                self.maker[name] = node
            for name in filter(None, node.input):
                self.readers[name].append(node)

    def nodes(self, *ops: str) -> list[NodeProto]:
        """Return the nodes of these operators, in graph order."""
        return [node for node in self.model.graph.node if node.op_type in ops and node.domain in {"", "ai.onnx"}]

    def only_reader(self, tensor: str) -> NodeProto | None:
        """Return the node that alone reads a tensor, None if there are others or it is an output of the model."""
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def shape(self, tensor: str) -> list[int]:
        """Return a tensor's sizes, 0 for a free one; empty when not even the rank is known."""
        value = self.types.get(tensor)
        return [dim.dim_value for dim in value.type.tensor_type.shape.dim] if value is not None else []

    def store(self, value: NDArray[Any], *, name: str) -> str:
        """Add an initializer and return its name, `name` itself or with a number behind it."""
        from onnx import numpy_helper

        taken = self.stored.keys() | self.maker.keys() | self.types.keys()
        free = name if name not in taken else next(
            other for count in range(1, len(taken) + 2) if (other := f"{name}_{count}") not in taken
        )  # fmt: skip
        self.model.graph.initializer.append(numpy_helper.from_array(value, free))
        self.stored[free] = value
        return free

    def replace(self, old: list[NodeProto], new: list[NodeProto]) -> None:
        """Put `new` in the place of the last of `old`; what only those read vanishes in `finished`."""
        gone = {node.output[0] for node in old}
        nodes = list(self.model.graph.node)
        at = max(position for position, node in enumerate(nodes) if node.output[0] in gone)
        kept = [[node for node in part if node.output[0] not in gone] for part in (nodes[:at], nodes[at + 1 :])]
        copies = [type(node).FromString(node.SerializeToString()) for node in [*kept[0], *new, *kept[1]]]
        del self.model.graph.node[:]
        self.model.graph.node.extend(copies)
        self.index()

    def finished(self) -> ModelProto:
        """Return the model without initializers that nothing reads any more, shapes inferred anew."""
        read = {name for node in self.model.graph.node for name in node.input} | self.outputs
        read |= {name for node in self.model.graph.node for item in node.attribute for name in _inner_reads(item)}
        for tensor in [tensor for tensor in self.model.graph.initializer if tensor.name not in read]:
            self.model.graph.initializer.remove(tensor)
        del self.model.graph.value_info[:]
        return graph.infer_shapes(self.model)


def _inner_reads(attribute: Any) -> set[str]:
    """The names that a node's subgraphs read, theirs and ours alike."""
    graphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
    names: set[str] = set()
    while graphs:
        inner = graphs.pop()
        for node in inner.node:
            names.update(node.input)
            graphs += [graph for item in node.attribute for graph in (*item.graphs, *([item.g] if item.g.node else []))]
        names.update(value.name for value in inner.output)
    return names
