"""Detector heads: a Concat that puts boxes and scores into one tensor would give both a single int8 scale.

The rule: found by structure and ranges, never by names: a Concat whose inputs differ in range by SPREAD or more, after
which no weighted node but small fixed decoding follows. It and all that follows stay in float; the branches before it
keep scales of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeexport import graph
from edgeexport.quantization.placement import CANDIDATES, WEIGHTED, prepared
from edgeexport.records.ranges import Ranges

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# At 16 times apart the smaller branch has 4 of the 8 bits left.
SPREAD = 16.0
# A head's decoding (a distribution's mean, a grid's offset) has few weights; a backbone has many.
DECODING_WEIGHTS = 4096


def head_floats(model_path: Path, ranges: Ranges) -> dict[str, str]:
    """Return the nodes of detector heads to leave in float, node -> reason; empty where there is none."""
    model = prepared(graph.load(model_path))
    kept: dict[str, str] = {}
    for node in model.graph.node:
        found = _apart(node, ranges) if node.op_type == "Concat" else None
        if found is None:
            continue
        after = _after(model, node)
        if _weights(model, after) > DECODING_WEIGHTS:
            continue
        (wide, largest), (narrow, least) = found
        kept[node.name] = (
            f"it joins {wide!r}, which reaches {largest:.3g}, and {narrow!r}, which reaches {least:.3g}: with one int8 "
            f"scale the latter would have {max(1, int(255 * least / largest))} of 255 steps"
        )
        kept |= {
            other.name: f"it follows the head's Concat {node.name!r}"
            for other in after
            if other.op_type in CANDIDATES and other.name not in kept
        }
    return kept


def _apart(node: NodeProto, ranges: Ranges) -> tuple[tuple[str, float], tuple[str, float]] | None:
    """Return the inputs of largest and least magnitude with these, or None if they are not SPREAD apart."""
    known = {name: ranges.tensors[name] for name in node.input if name in ranges.tensors}
    reach = [(name, max(-seen.low, seen.high)) for name, seen in known.items()]
    if len(reach) < 2:
        return None
    wide, narrow = max(reach, key=lambda item: item[1]), min(reach, key=lambda item: item[1])
    return (wide, narrow) if wide[1] >= SPREAD * narrow[1] > 0.0 else None


def _after(model: ModelProto, start: NodeProto) -> list[NodeProto]:
    """Return all nodes that read what `start` makes, directly or not."""
    reached = set(start.output)
    found = []
    for node in model.graph.node:
        if node is not start and any(name in reached for name in node.input):
            reached.update(node.output)
            found.append(node)
    return found


def _weights(model: ModelProto, nodes: list[NodeProto]) -> int:
    stored = graph.initializers(model)
    weighted = [node for node in nodes if node.op_type in WEIGHTED]
    return sum(stored[node.input[1]].size for node in weighted if node.input[1] in stored)
