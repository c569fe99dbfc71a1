"""Splitting outliers: a tensor whose range a few channels blow up is cut to the range of all others, for the layer
after it, and what was cut off goes through a narrow float layer beside it.

The rule: the float model computes the same as long as no other channel leaves the range that the samples showed; beyond
it the tensor saturates, as its int8 form would. Dettmers et al. 2022, "LLM.int8()", decompose by channel alike; the
giant values are the "massive activations" of Sun et al. 2024: in very few channels, the same ones for every input.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.quantization.channels import (
    ChannelRange,
    captured,
    channel_ranges,
    drop_unused,
    insert_after,
    linear_nodes,
    store,
    weight_matrix,
)
from edgeexport.records.base import file_digest
from edgeexport.records.encoder import OutlierSplit, SplitTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto, NodeProto

    from edgeexport.runtimes.protocol import Feeds

CHANNELS = 8
RATIO = 2.0
BESIDE = "_beside"


def split_outliers(
    model_path: Path, samples: Iterable[Feeds], *, out: Path, channels: int = CHANNELS, ratio: float = RATIO
) -> OutlierSplit:
    """Write a model whose outlier channels have a way of their own to `out`; say which tensors were split.

    samples: feeds in the model's signature. channels: how many are taken out of one tensor. ratio: a tensor is split
    if its range is at least this many times that of the channels which stay.
    """
    model = graph.load(model_path)
    stored = graph.initializers(model)
    held = captured(model)
    nodes = [node for node in linear_nodes(model.graph, stored) if node.input[0] not in held]
    tensors = list(dict.fromkeys(node.input[0] for node in nodes))
    ranges = channel_ranges(model, tensors, samples=samples)
    split = {
        name: found for name in tensors if (found := outliers(ranges[name], channels=channels, ratio=ratio)) is not None
    }
    for name, found in split.items():
        readers = [node for node in nodes if node.input[0] == name]
        _split(model.graph, name, found=found, readers=readers, stored=stored)
    drop_unused(model)
    del model.graph.value_info[:]
    graph.save(graph.infer_shapes(model), out)
    return OutlierSplit(model_digest=file_digest(model_path), tensors=split)


def outliers(seen: ChannelRange, *, channels: int, ratio: float) -> SplitTensor | None:
    """Return the channels of largest magnitude with the range of the rest, or None if that is not `ratio` times less.

    A tensor of fewer than four times as many channels is not worth it.
    """
    import numpy as np

    if len(seen.peak) < 4 * channels:
        return None
    order = np.argsort(-seen.peak, kind="stable")
    rest = order[channels:]
    low, high = float(min(seen.low[rest].min(), 0.0)), float(max(seen.high[rest].max(), 0.0))
    all_low, all_high = float(min(seen.low.min(), 0.0)), float(max(seen.high.max(), 0.0))
    if high - low <= 0.0 or all_high - all_low < ratio * (high - low):
        return None
    return SplitTensor(tuple(int(index) for index in np.sort(order[:channels])), low, high, all_low, all_high)


def _split(
    part: GraphProto, tensor: str, *, found: SplitTensor, readers: list[NodeProto], stored: dict[str, NDArray[Any]]
) -> None:
    """Feed the readers the tensor cut to its usual range, and add what was cut off times the rows it belongs to."""
    import numpy as np
    from onnx import helper

    low = store(part, f"{tensor}_usual_low", value=np.array(found.low, np.float32))
    high = store(part, f"{tensor}_usual_high", value=np.array(found.high, np.float32))
    picked = store(part, f"{tensor}_outliers", value=np.asarray(found.channels, np.int64))
    names = [f"{tensor}{suffix}" for suffix in ("_usual", "_giants", "_giants_usual", "_excess")]
    usual, giants, cut, excess = names
    new = [
        helper.make_node("Clip", [tensor, low, high], [usual], usual),
        helper.make_node("Gather", [tensor, picked], [giants], giants, axis=-1),
        helper.make_node("Clip", [giants, low, high], [cut], cut),
        helper.make_node("Sub", [giants, cut], [excess], excess),
    ]
    first = min(readers, key=lambda node: _place(part, node))
    for node in new:
        part.node.insert(_place(part, first), node)
    for node in readers:
        node.input[0] = usual
        weight = weight_matrix(node, stored[node.input[1]])
        rows = store(part, f"{node.input[1]}{BESIDE}", value=np.ascontiguousarray(weight[list(found.channels)]))
        result = node.output[0]
        inner, beside = f"{result}_usual", f"{result}{BESIDE}"
        node.output[0] = inner
        insert_after(
            part,
            node,
            helper.make_node("MatMul", [excess, rows], [beside], beside),
            helper.make_node("Add", [inner, beside], [result], f"{result}_whole"),
        )


def _place(part: GraphProto, node: NodeProto) -> int:
    return next(index for index, other in enumerate(part.node) if other is node)
