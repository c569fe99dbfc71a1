"""Edits of a plan: which points are one, and what is better left in float.

The rule: an edit returns a new plan for the same model and never invents a number: a point is another's, or spans
several. `restricted` only ever takes points away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeexport import graph
from edgeexport.quantization.placement import FOLDED, WEIGHTED, choose, place, prepared
from edgeexport.quantization.plan import activation_point, float_results
from edgeexport.records.plan import Point, QuantizationPlan

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

ONE_SCALE = "inputs of a Concat with its own scale are copied, not rescaled"


@dataclass(frozen=True)
class PlanEdit:
    """A named edit, in how many places it changes something, and the plan as it makes it."""

    name: str
    reason: str
    places: int
    changed: Callable[[], QuantizationPlan]


def plan_edits(spine: Path, plan: QuantizationPlan) -> list[PlanEdit]:
    """Return every edit that would change something, in the order to try them."""
    model = prepared(graph.load(spine))
    chosen, _ = choose(model, plan.keep_float)
    nodes = [node for node in model.graph.node if node.name in set(chosen)]
    points = _one_scale(plan, nodes)
    edits = [
        PlanEdit("one-scale-concat", ONE_SCALE, len(points), partial(_with_points, plan, points)),
    ]
    for op in dict.fromkeys(node.op_type for node in nodes if node.op_type not in WEIGHTED | FOLDED):
        reason = f"{op} in integers, with what it takes to get there, costs more than in float"
        kept = {node.name: reason for node in nodes if node.op_type == op}
        edits.append(PlanEdit(f"float-{op}", reason, len(kept), partial(restricted, model, plan, keep_float=kept)))
    return [edit for edit in edits if edit.places]


def restricted(model: ModelProto, plan: QuantizationPlan, *, keep_float: Mapping[str, str]) -> QuantizationPlan:
    """Return the plan with more nodes left in float, without the points that then have nobody to serve.

    model: `prepared`. The numbers of all other points stay, learned ones too.
    """
    kept = {**plan.keep_float, **keep_float}
    chosen, refused = choose(model, kept)
    placement = place(model, chosen, symmetric=plan.numbers.symmetric_activations)
    floats = float_results(model, chosen, numbers=plan.numbers)
    stays = placement.activations.keys() - floats
    weights = {*placement.weights, *placement.constants}
    return msgspec.structs.replace(
        plan,
        activations={name: point for name, point in plan.activations.items() if name in stays},
        weights={name: point for name, point in plan.weights.items() if name in weights},
        keep_float=refused,
    )


def _with_points(plan: QuantizationPlan, points: Mapping[str, Point]) -> QuantizationPlan:
    return msgspec.structs.replace(plan, activations={**plan.activations, **points})


def _one_scale(plan: QuantizationPlan, nodes: list[NodeProto]) -> dict[str, Point]:
    """The point that spans a Concat's result and all that flows into it, wherever they are not one yet."""
    points = plan.activations
    found: dict[str, Point] = {}
    for node in nodes:
        names = [name for name in (*node.input, *node.output) if name in points]
        if (
            node.op_type != "Concat"
            or len({points[name] for name in names}) < 2
            or _shared(names, nodes, points=points)
        ):
            continue
        low, high = zip(*(_limits(points[name]) for name in names), strict=True)
        point = activation_point(min(low), max(high), numbers=plan.numbers)
        if all(_saturates_alike(node, points, shared=point) for node in nodes if node.output[0] in names):
            found |= dict.fromkeys(names, point)
    return found


def _saturates_alike(node: NodeProto, points: Mapping[str, Point], *, shared: Point) -> bool:
    """False for a Relu or Clip whose bounds only its old point keeps: the file holds no operator for it any more."""
    if node.op_type not in FOLDED:
        return True
    old, new = _limits(points[node.output[0]]), _limits(shared)
    return new[0] >= old[0] and (node.op_type == "Relu" or new[1] <= old[1])


def _shared(names: list[str], nodes: list[NodeProto], *, points: Mapping[str, Point]) -> bool:
    """True where a move ties one of these tensors to another that has the same point: both would have to change."""
    moves = [node for node in nodes if node.op_type not in WEIGHTED | FOLDED | {"Concat", "Add", "Mul"}]
    tied = [(name, other) for node in moves for name in node.input[:1] for other in node.output[:1]]
    tied += [(other, name) for name, other in tied]
    return any(name in names and points.get(name) == points.get(other) and other in points for name, other in tied)


def _limits(point: Point) -> tuple[float, float]:
    least, most = (0, 255) if point.dtype == "uint8" else (-128, 127)
    return (least - point.zero_point) * point.scale, (most - point.zero_point) * point.scale
