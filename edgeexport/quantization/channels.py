"""Channel by channel: what the inputs of weighted layers show over samples, and edits that go with it.

The rule: the last axis is the channel axis, as it is for every MatMul and Gemm with a constant weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.errors import DataError
from edgeexport.graph.walk import subgraphs
from edgeexport.quantization.placement import attribute
from edgeexport.runtimes.ort import open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto

    from edgeexport.runtimes.protocol import Feeds

LINEAR = ("MatMul", "Gemm")


@dataclass
class ChannelRange:
    """Least and greatest value of every channel of one tensor."""

    low: NDArray[Any]
    high: NDArray[Any]

    @property
    def peak(self) -> NDArray[Any]:
        """The largest magnitude of every channel."""
        import numpy as np

        largest: NDArray[Any] = np.maximum(np.abs(self.low), np.abs(self.high))
        return largest


def linear_nodes(part: GraphProto, stored: Iterable[str]) -> list[NodeProto]:
    """Return the MatMul and plain Gemm nodes of a graph whose second input is stored."""
    known = set(stored)
    found = [node for node in part.node if node.op_type in LINEAR and not node.domain and node.input[1] in known]
    return [node for node in found if node.input[0] not in known and _plain(node)]


def weight_matrix(node: NodeProto, weight: NDArray[Any]) -> NDArray[Any]:
    """Return the weight of a linear node as (inputs, outputs), whichever way it is stored."""
    turned = node.op_type == "Gemm" and attribute(node, "transB", default=0)
    return weight.T if turned else weight


def channel_ranges(model: ModelProto, tensors: Iterable[str], *, samples: Iterable[Feeds]) -> dict[str, ChannelRange]:
    """Run the model and return the range of every channel of these tensors. Raises DataError without samples."""
    import numpy as np

    names = list(dict.fromkeys(tensors))
    given = {value.name for value in model.graph.input}
    exposed = graph.expose(model, [name for name in names if name not in given])
    session = open_session(exposed.SerializeToString(), threads=0)
    seen: dict[str, ChannelRange] = {}
    for feeds in samples:
        values = {**feeds, **session.run(feeds)}
        for name in names:
            rows = values[name].reshape(-1, values[name].shape[-1])
            low, high = rows.min(axis=0), rows.max(axis=0)
            known = seen.setdefault(name, ChannelRange(low, high))
            seen[name] = ChannelRange(np.minimum(known.low, low), np.maximum(known.high, high))
    if names and not seen:
        raise DataError("there are no samples to see the channels' ranges on", next_step="give at least one")
    return seen


def store(part: GraphProto, name: str, *, value: NDArray[Any]) -> str:
    """Add an initializer under a name that is free (this one, or with a number behind it); return the name."""
    from onnx import numpy_helper

    taken = {tensor.name for tensor in part.initializer} | {made for node in part.node for made in node.output}
    free = next(
        found for found in (name, *(f"{name}_{count}" for count in range(2, len(taken) + 3))) if found not in taken
    )
    part.initializer.append(numpy_helper.from_array(value, free))
    return free


def insert_after(part: GraphProto, node: NodeProto, *new: NodeProto) -> None:
    """Put nodes right behind another one of the same graph."""
    place = next(index for index, other in enumerate(part.node) if other is node or other == node)
    for offset, item in enumerate(new):
        part.node.insert(place + 1 + offset, item)


def drop_unused(model: ModelProto) -> None:
    """Take initializers of the main graph that nothing reads out of `model`, in place."""
    read = {value.name for value in model.graph.output} | set(_read(model.graph))
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in read]:
        model.graph.initializer.remove(tensor)


def captured(model: ModelProto) -> set[str]:
    """Return the tensors of the main graph that branches and loop bodies read: an edit must leave them as they are."""
    return {name for node in model.graph.node for inner in subgraphs(node) for name in _read(inner)}


def redirect(nodes: Iterable[NodeProto], old: str, *, new: str) -> None:
    """Make these nodes read another tensor, in place."""
    for node in nodes:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _read(part: GraphProto) -> Iterable[str]:
    for node in part.node:
        yield from node.input
        for inner in subgraphs(node):
            yield from _read(inner)


def _plain(node: NodeProto) -> bool:
    """Whether a Gemm is nothing but a product and a bias."""
    if node.op_type == "MatMul":
        return True
    scaled = any(attribute(node, name, default=1.0) != 1.0 for name in ("alpha", "beta"))
    return not scaled and not attribute(node, "transA", default=0)
