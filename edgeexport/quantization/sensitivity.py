"""Sensitivity → mixed precision: which layers to leave in float, by accuracy lost for each millisecond won.

The rule: one layer at a time is simulated in int8, with the plan's own numbers, all others in float; the noise at the
outputs ranks them (Wu et al. 2020, "Integer quantization for deep learning inference", section 5, which found this
order good enough for partial quantization). The opposite, all but one, drowns small differences in the sum's noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.errors import DataError
from edgeexport.progress import Progress, silent
from edgeexport.quantization.audit import audit
from edgeexport.quantization.channels import insert_after, redirect, store
from edgeexport.quantization.placement import FOLDED, WEIGHTED, choose, prepared, uses
from edgeexport.records.audit import Audit
from edgeexport.records.base import file_digest
from edgeexport.records.plan import Point, QuantizationPlan, WeightPoint
from edgeexport.records.sensitivity import LayerSensitivity, Sensitivity
from edgeexport.runtimes.ort import open_session
from edgeexport.runtimes.protocol import NO_OPTIONS
from edgeexport.validation.compare import compare_sessions

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto

    from edgeexport.runtimes.protocol import Feeds, Outputs

    Run = Callable[[Feeds], Outputs]

# How much of what int8 wins may be given back for accuracy.
SHARE = 0.25


def sensitivity(
    model_path: Path,
    plan: QuantizationPlan,
    *,
    samples: Sequence[Feeds],
    metric: Callable[[Run], float] | None = None,
    won_ms: Mapping[str, float] | None = None,
    progress: Progress = silent,
) -> Sensitivity:
    """Return for every layer that `plan` makes int8 what it alone costs at the outputs, and what it wins.

    samples: 16 to 32 feeds. metric: scores a runner, higher is better; it is called once in float and once a layer.
    won_ms: node -> milliseconds won on the target (`measured_wins`); without it, MACs stand in, labelled as predicted.
    """
    if not samples:
        raise DataError("there are no samples to judge layers on", next_step="give at least one; 16 to 32 are usual")
    model = prepared(graph.load(model_path))
    groups = layer_groups(model, plan)
    wins = won_ms or predicted_wins(model, groups, feeds=samples[0])
    float_run = open_session(model.SerializeToString(), threads=0).run
    known = _Known([float_run(feeds) for feeds in samples], metric(float_run) if metric else None)
    layers = []
    for index, group in enumerate(groups):
        progress(f"sensitivity: layer {index + 1} of {len(groups)}", index / len(groups))
        run = open_session(only(model, group, plan=plan).SerializeToString(), threads=0).run
        layers.append(
            LayerSensitivity(
                nodes=tuple(node.name for node in group),
                op=group[0].op_type,
                sqnr_db=known.sqnr_db(run, samples),
                won=sum(wins.get(node.name, 0.0) for node in group),
                metric_drop=known.score - metric(run) if metric and known.score is not None else None,
            )
        )
    digest = file_digest(model_path)
    return Sensitivity(digest, len(samples), "measured ms" if won_ms else "predicted MMACs", tuple(layers))


def choose_float(found: Sensitivity, *, share: float = SHARE, least_loss: float = 0.0) -> dict[str, str]:
    """Return the nodes to leave in float, node -> reason, those that lose most for what they win first.

    Every prefix (whole layers: nodes with the same reason belong together) is a plan to try. share: the most of all
    that int8 wins which may be given back. least_loss: layers that lose no more than this stay int8.
    """
    total = sum(max(layer.won, 0.0) for layer in found.layers)
    order = sorted(found.layers, key=lambda layer: (-_price(layer, total=total), layer.nodes))
    kept: dict[str, str] = {}
    given = 0.0
    for layer in order:
        if layer.loss <= least_loss or given + max(layer.won, 0.0) > share * total:
            continue
        given += max(layer.won, 0.0)
        kept |= dict.fromkeys(layer.nodes, _reason(layer, found, total=total))
    return kept


def measured_wins(
    spine: Path, quantized: Path, *, feeds: Sequence[Feeds], options: Mapping[str, Any] = NO_OPTIONS
) -> dict[str, float]:
    """Return node -> milliseconds that int8 wins on this machine (below 0: loses), one thread, from both profiles.

    Float kernels in a blocked layout cannot be traced back to nodes: they are profiled without that layout, and their
    times scaled to what the model takes with it.
    """
    plain = {**options, "graph_optimization_level": "extended"}
    whole, traced = audit(spine, feeds=feeds, options=options), audit(spine, feeds=feeds, options=plain)
    scale = (whole.us or 0.0) / (traced.us or 1.0)
    before, after = _spent(traced), _spent(audit(quantized, feeds=feeds, options=options))
    return {name: (us * scale - after.get(name, 0.0)) / 1e3 for name, us in before.items()}


def _spent(found: Audit) -> dict[str, float]:
    """Microseconds of each node of the file, over the kernels made from it."""
    spent: dict[str, float] = {}
    for kernel in found.kernels:
        if kernel.origin:
            spent[kernel.origin] = spent.get(kernel.origin, 0.0) + (kernel.us or 0.0)
    return spent


def predicted_wins(model: ModelProto, groups: Sequence[Sequence[NodeProto]], *, feeds: Feeds) -> dict[str, float]:
    """Return node -> millions of multiply-accumulates for one feed: where int8 wins most, as far as one can predict."""
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    weighted = [node for group in groups for node in group if node.op_type in WEIGHTED]
    results = [node.output[0] for node in weighted]
    values = open_session(graph.expose(model, results).SerializeToString(), threads=0).run(feeds)
    wins = {}
    for node in weighted:
        result, weight = values[node.output[0]], shapes[node.input[1]]
        channels = result.shape[1] if node.op_type == "Conv" else result.shape[-1]
        size = 1
        for dim in weight:
            size *= dim
        wins[node.name] = result.size / channels * size / 1e6
    return wins


def layer_groups(model: ModelProto, plan: QuantizationPlan) -> list[list[NodeProto]]:
    """Return the nodes that the plan makes int8, each with the Relu or Clip that its point absorbs. model: prepared."""
    names, _ = choose(model, plan.keep_float)
    chosen = set(names)
    groups: list[list[NodeProto]] = []
    made: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        if node.name not in chosen:
            continue
        group = made.get(node.input[0]) if node.op_type in FOLDED and uses(model, node.input[0]) == 1 else None
        if group is None:
            group = []
            groups.append(group)
        group.append(node)
        made[node.output[0]] = group
    return groups


def only(model: ModelProto, group: Sequence[NodeProto], *, plan: QuantizationPlan) -> ModelProto:
    """Return a float model in which the inputs, weights and result of one group alone take int8 steps."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    part = copy.graph
    names = {node.name for node in group}
    nodes = [node for node in part.node if node.name in names]
    stored = graph.initializers(model)
    for name in dict.fromkeys(nodes[0].input):
        if name in plan.weights and name in stored:
            _round_weight(part, nodes[0], name=name, value=on_grid(stored[name], plan.weights[name]))
        elif name in plan.activations:
            _round_input(part, nodes[0], name=name, point=plan.activations[name])
    result = nodes[-1].output[0]
    if result in plan.activations:
        _round_result(part, nodes[-1], point=plan.activations[result])
    del part.value_info[:]
    return copy


def on_grid(value: NDArray[Any], point: WeightPoint) -> NDArray[Any]:
    """Return the weight as its int8 form would be read back."""
    import numpy as np

    shape = [1] * value.ndim
    if point.axis is not None:
        shape[point.axis] = -1
    scale = np.asarray(point.scales, np.float32).reshape(shape)
    zero = np.asarray(point.zero_points, np.float32).reshape(shape)
    limits = np.iinfo(point.dtype)
    steps = np.clip(np.rint(value / scale) + zero, limits.min, limits.max)
    return np.asarray((steps - zero) * scale, np.float32).reshape(value.shape)


@dataclass(frozen=True)
class _Known:
    """What float answers, and its score."""

    outputs: list[Outputs]
    score: float | None

    def sqnr_db(self, run: Run, samples: Sequence[Feeds]) -> float:
        """The SQNR of the worst output over all samples."""
        answers = iter(self.outputs)

        def replay(_: Feeds) -> Outputs:
            return next(answers)

        labels = ("float", "one layer in int8")
        return compare_sessions(replay, run, samples=samples, artifacts=labels, sqnr_db=0.0).worst_sqnr_db()


def _round_weight(part: GraphProto, node: NodeProto, *, name: str, value: NDArray[Any]) -> None:
    redirect([node], name, new=store(part, f"{name}_on_grid", value=value))


def _round_input(part: GraphProto, node: NodeProto, *, name: str, point: Point) -> None:
    steps = _steps(part, name, into=f"{name}_for_{node.name}", point=point)
    place = next(index for index, other in enumerate(part.node) if other is node)
    for offset, item in enumerate(steps):
        part.node.insert(place + offset, item)
    redirect([node], name, new=steps[-1].output[0])


def _round_result(part: GraphProto, node: NodeProto, *, point: Point) -> None:
    result = node.output[0]
    raw = f"{result}_unrounded"
    steps = _steps(part, raw, into=result, point=point)
    node.output[0] = raw
    insert_after(part, node, *steps)


def _steps(part: GraphProto, name: str, *, into: str, point: Point) -> list[NodeProto]:
    """QuantizeLinear → DequantizeLinear."""
    import numpy as np
    from onnx import helper

    scale = store(part, f"{into}_step", value=np.array(point.scale, np.float32))
    zero = store(part, f"{into}_zero", value=np.array(point.zero_point, point.dtype))
    inner = f"{into}_steps"
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [inner], f"{inner}_q"),
        helper.make_node("DequantizeLinear", [inner, scale, zero], [into], f"{inner}_dq"),
    ]


def _price(layer: LayerSensitivity, *, total: float) -> float:
    """Loss for each part won; a layer that wins nothing is priced as if it won a thousandth of all."""
    return layer.loss / max(layer.won, 1e-3 * total, 1e-12)


def _reason(layer: LayerSensitivity, found: Sensitivity, *, total: float) -> str:
    drop = f", {layer.metric_drop:.3g} of the metric" if layer.metric_drop is not None else ""
    unit = "ms" if found.cost == "measured ms" else "million MACs (predicted)"
    share = f" of {total:.3g}" if total else ""
    return f"alone in int8 {layer.nodes[0]} leaves {layer.sqnr_db:.1f} dB{drop}, for {layer.won:.3g}{share} {unit} won"
