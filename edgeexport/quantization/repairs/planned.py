"""Edits of a plan: which nodes run on the integers themselves, which points are one, what is better left in float.

The rule: an edit returns a new plan for the same model and never invents a number: a point is another's, or spans
several. `restricted` only ever takes points away.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeexport import graph
from edgeexport.quantization.placement import FOLDED, WEIGHTED, attribute, choose, place, prepared
from edgeexport.quantization.plan import activation_point, float_results
from edgeexport.records.plan import Point, QuantizationPlan

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

IN_INTEGERS = "between equal points it moves integers; onnxruntime would do it in float"


def plan_edits(spine: Path, plan: QuantizationPlan) -> list[tuple[str, str, QuantizationPlan, int]]:
    """Return (name, reason, plan, places) of every edit that would change something, in the order to try them."""
    model = prepared(graph.load(spine))
    chosen, _ = choose(model, plan.keep_float)
    nodes = [node for node in model.graph.node if node.name in set(chosen)]
    edits = [
        ("in-integers", IN_INTEGERS, *_in_integers(model, plan, nodes)),
        (
            "one-scale-concat",
            "inputs of a Concat with its own scale are copied, not rescaled",
            *_one_scale(plan, nodes),
        ),
    ]
    for op in dict.fromkeys(node.op_type for node in nodes if node.op_type not in WEIGHTED | FOLDED):
        reason = f"{op} in integers, with what it takes to get there, costs more than in float"
        names = [node.name for node in nodes if node.op_type == op]
        edits.append((f"float-{op}", reason, restricted(model, plan, dict.fromkeys(names, reason)), len(names)))
    return [edit for edit in edits if edit[3]]


def restricted(model: ModelProto, plan: QuantizationPlan, keep_float: Mapping[str, str]) -> QuantizationPlan:
    """Return the plan with more nodes left in float, without the points that then have nobody to serve.

    model: `prepared`. The numbers of all other points stay, learned ones too.
    """
    kept = {**plan.keep_float, **keep_float}
    chosen, refused = choose(model, kept)
    placement = place(model, chosen, symmetric=plan.numbers.symmetric_activations)
    floats = float_results(model, chosen)
    stays = placement.activations.keys() - floats
    weights = {*placement.weights, *placement.constants}
    return msgspec.structs.replace(
        plan,
        activations={name: point for name, point in plan.activations.items() if name in stays},
        weights={name: point for name, point in plan.weights.items() if name in weights},
        keep_float=refused,
        in_integers={name: reason for name, reason in plan.in_integers.items() if name in chosen},
    )


def _in_integers(model: ModelProto, plan: QuantizationPlan, nodes: list[NodeProto]) -> tuple[QuantizationPlan, int]:
    """Pad with zeros, and Resize with interpolation: the points around them are equal, onnxruntime keeps both."""
    stored = {**graph.constants(model), **graph.initializers(model)}
    found = {}
    for node in nodes:
        before, after = (plan.activations.get(name) for name in (node.input[0], node.output[0]))
        mode = attribute(node, "mode", default=b"constant" if node.op_type == "Pad" else b"nearest")
        fill = stored.get(node.input[2]) if node.op_type == "Pad" and len(node.input) > 2 else None
        zero = node.op_type == "Pad" and mode == b"constant" and (fill is None or not fill.any())
        linear = node.op_type == "Resize" and mode == b"linear"
        if before is not None and before == after and (zero or linear) and node.name not in plan.in_integers:
            found[node.name] = IN_INTEGERS
    return msgspec.structs.replace(plan, in_integers={**plan.in_integers, **found}), len(found)


def _one_scale(plan: QuantizationPlan, nodes: list[NodeProto]) -> tuple[QuantizationPlan, int]:
    """Give each Concat and all that flows into it the point that spans them, wherever that is not so yet."""
    points = dict(plan.activations)
    count = 0
    for node in nodes:
        names = [name for name in (*node.input, *node.output) if name in points]
        if node.op_type != "Concat" or len({points[name] for name in names}) < 2 or _shared(names, nodes, points):
            continue
        low, high = zip(*(_limits(points[name]) for name in names), strict=True)
        points |= dict.fromkeys(names, activation_point(min(low), max(high), numbers=plan.numbers))
        count += 1
    return msgspec.structs.replace(plan, activations=points), count


def _shared(names: list[str], nodes: list[NodeProto], points: Mapping[str, Point]) -> bool:
    """True where a move ties one of these tensors to another that has the same point: both would have to change."""
    moves = [node for node in nodes if node.op_type not in WEIGHTED | FOLDED | {"Concat", "Add", "Mul"}]
    tied = [(name, other) for node in moves for name in node.input[:1] for other in node.output[:1]]
    tied += [(other, name) for name, other in tied]
    return any(name in names and points.get(name) == points.get(other) and other in points for name, other in tied)


def _limits(point: Point) -> tuple[float, float]:
    least, most = (0, 255) if point.dtype == "uint8" else (-128, 127)
    return (least - point.zero_point) * point.scale, (most - point.zero_point) * point.scale
