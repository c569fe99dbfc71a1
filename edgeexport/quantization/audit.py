"""Fusion audit: load a model as it will run, list its integer kernels and every float island, with cause and cost.

The rule: what runs is read from the graph that onnxruntime itself saves; each kernel is traced back to the file's own
node, and what cannot be traced has no origin.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.errors import DataError
from edgeexport.quantization.causes import S8_OPTION, WEIGHTED, Wiring, cause, wiring
from edgeexport.quantization.kernels import BOUNDARY, Type, kind_of, tensor_types
from edgeexport.records.audit import Audit, Island, Kernel, Place
from edgeexport.records.base import file_digest
from edgeexport.runtimes.ort_trace import kernel_times, optimised, ort_version
from edgeexport.runtimes.protocol import NO_OPTIONS, Feeds

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

RUNS = 20
# Operators of files that are written with integer kernels from the start: dynamic int8, or QOperator format.
INTEGER_WEIGHTED = frozenset({
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "QGemm",
    "QLinearConv", "QLinearMatMul",
})  # fmt: skip
_ADDED = re.compile(r"(_token_\d+|/duplicated.*|_nchwc)$")


def audit(
    path: Path,
    *,
    feeds: Sequence[Feeds] = (),
    options: Mapping[str, Any] = NO_OPTIONS,
    profile: bool = True,
    runs: int = RUNS,
) -> Audit:
    """Return what runs in integers, every float island with its cause, and the cost of each kernel on one thread.

    path: an .onnx file: QDQ int8, dynamic int8, or fp32. feeds: samples in its signature, for the costs. options:
    session options as `Converted.session_options` holds them. profile: measure; without, no cost is given. runs: how
    many are measured, a cost is their median.
    Raises CorruptFile, ModelError, and DataError when there is nothing to profile with.
    """
    if profile and not feeds:
        raise DataError(f"{path}: the cost of its kernels needs feeds", next_step="give samples, or profile=False")
    model = _named(graph.load(path))
    running = optimised(model, origin=str(path), options=options)
    times = kernel_times(running, feeds, runs=runs, options=options) if profile else []
    entries = {str(key): str(value) for key, value in options.get("config_entries", {}).items()}
    signed = entries.get(S8_OPTION, str(int(_on_arm()))) == "1"
    seen = _Running(running, wiring(model, signed_allowed=signed), times, tensor_types(running))
    kernels = [seen.kernel(index) for index in range(len(running.graph.node))]
    in_integers = {kernel.origin for kernel in kernels if kernel.kind == "integer"}
    weighted = [
        _weighted(node, in_integers) for node in model.graph.node if node.op_type in WEIGHTED | INTEGER_WEIGHTED
    ]
    return Audit(
        model_digest=file_digest(path),
        runtime_version=ort_version(),
        options=entries,
        weighted=len(weighted),
        integer_weighted=sum(integer for _, integer in weighted),
        convolutions=sum(op == "Conv" for op, _ in weighted),
        integer_convolutions=sum(op == "Conv" and integer for op, integer in weighted),
        kernels=tuple(kernels),
        islands=_islands(seen, kernels),
        transposes=sum(kernel.op == "Transpose" and not kernel.origin for kernel in kernels),
        us=sum(times) if profile else None,
        runs=runs if profile else 0,
        unmeasured="" if profile else "not asked for",
    )


@dataclass(frozen=True)
class _Running:
    """The graph as it runs, beside the file that it was made from. times: microseconds of each node, or empty."""

    model: ModelProto
    file: Wiring
    times: list[float]
    types: dict[str, Type]

    def kernel(self, index: int) -> Kernel:
        node = self.model.graph.node[index]
        us = self.times[index] if self.times else None
        share = us / sum(self.times) if us is not None and sum(self.times) > 0 else None
        return Kernel(node.op_type, self.origin(node), kind_of(node, self.types), us, share)

    def origin(self, node: NodeProto) -> str:
        """The name of the file's node that this one was made from; empty if onnxruntime put it there itself."""
        name = node.name.partition(" ")[2]
        while name not in self.file.nodes and _ADDED.search(name):
            name = _ADDED.sub("", name)
        return name if name in self.file.nodes else ""

    def point(self, node: NodeProto) -> NodeProto | None:
        """The file's QuantizeLinear or DequantizeLinear that this one was made from."""
        return self.file.nodes.get(self.origin(node)) if node.op_type in BOUNDARY else None


def _weighted(node: NodeProto, in_integers: set[str]) -> tuple[str, bool]:
    """("Conv" or another operator with weights, whether it runs in integers): so does what the file itself says so."""
    if node.op_type in INTEGER_WEIGHTED:
        return "Conv" if "Conv" in node.op_type else "MatMul", True
    return node.op_type, node.name in in_integers


def _islands(seen: _Running, kernels: Sequence[Kernel]) -> tuple[Island, ...]:
    """Join float and boundary nodes that share a float tensor; what stands alone in a float model is no island."""
    nodes = seen.model.graph.node
    if not any(kernel.kind == "integer" for kernel in kernels):
        return ()
    groups = _groups(seen, [index for index, kernel in enumerate(kernels) if kernel.kind in {"float", "boundary"}])
    found = []
    for group in groups:
        place = _place(seen, [nodes[index] for index in group])
        if place is not None:
            found.append(_island(seen, place, members=[(nodes[index], kernels[index]) for index in group]))
    return tuple(sorted(found, key=lambda island: -(island.us or 0.0)))


def _groups(seen: _Running, indices: list[int]) -> list[list[int]]:
    """Sets of nodes that hang together by float tensors which one of them makes, each in graph order."""
    nodes = seen.model.graph.node
    label = {index: index for index in indices}  # of a union-find: a group's own label points at itself
    maker = {name: index for index in indices for name in nodes[index].output if seen.types.get(name) == "float"}
    for index in indices:
        for name in nodes[index].input:
            if name in maker:
                label[_root(label, index)] = _root(label, maker[name])
    groups: dict[int, list[int]] = {}
    for index in indices:
        groups.setdefault(_root(label, index), []).append(index)
    return list(groups.values())


def _root(label: dict[int, int], index: int) -> int:
    while label[index] != index:
        label[index] = label[label[index]]
        index = label[index]
    return index


def _place(seen: _Running, members: list[NodeProto]) -> Place | None:
    """Where a group lies among the integers; None for floats that touch none."""
    stored = {tensor.name for tensor in seen.model.graph.initializer}
    inside = {name for node in members for name in node.output}
    given = {name for node in members for name in node.input if name and name not in inside | stored}
    inputs = {value.name for value in seen.model.graph.input}
    after = any(node.op_type == "DequantizeLinear" and node.input[0] not in stored for node in members)
    after = after or any(seen.types.get(name) == "float" and name not in inputs for name in given)
    outside = [node for node in seen.model.graph.node if not any(name in inside for name in node.output)]
    before = any(node.op_type in BOUNDARY - {"DequantizeLinear"} for node in members)
    before = before or any(
        name in inside and seen.types.get(name) == "float" for node in outside for name in node.input
    )
    if all(node.op_type in BOUNDARY for node in members):
        kinds = {node.op_type for node in members}
        if kinds == {"DequantizeLinear"}:
            return "exit"
        return "requantized" if "DequantizeLinear" in kinds else "entry"
    places: dict[tuple[bool, bool], Place] = {(True, True): "between", (True, False): "tail", (False, True): "head"}
    return places.get((after, before))


def _island(seen: _Running, place: Place, *, members: list[tuple[NodeProto, Kernel]]) -> Island:
    nodes = [node for node, _ in members]
    kernels = tuple(kernel for _, kernel in members)
    points = [point for node in nodes if (point := seen.point(node)) is not None]
    origin = _origins(seen, members)
    tensors = dict.fromkeys(seen.file.tensor_of(point) for point in points if point.input[0] not in seen.file.stored)
    causes = [text for name in origin if (text := _told(seen, name))]
    if place == "requantized":
        causes.append(_requantized(seen, points))
    us = sum(kernel.us or 0.0 for kernel in kernels) if seen.times else None
    share = us / sum(seen.times) if us is not None and sum(seen.times) > 0 else None
    told = tuple(dict.fromkeys(causes)) if place not in {"entry", "exit"} else ()
    return Island(place, origin, tuple(tensors), kernels, told, us, share)


def _told(seen: _Running, name: str) -> str:
    text = cause(seen.file.nodes[name], seen.file)
    return f"{name}: {text}" if text else ""


def _origins(seen: _Running, members: list[tuple[NodeProto, Kernel]]) -> tuple[str, ...]:
    """The file's float nodes behind an island; those that onnxruntime took apart are found from the points on."""
    known = {kernel.origin: None for _, kernel in members if kernel.kind == "float" and kernel.origin}
    if any(kernel.kind == "float" and not kernel.origin for _, kernel in members):
        ends = [point for node, _ in members if (point := seen.point(node)) is not None]
        waiting = [point.input[0] for point in ends if point.op_type == "QuantizeLinear"]
        starts = {name for point in ends if point.op_type == "DequantizeLinear" for name in point.output}
        known |= _behind(seen.file, waiting, stop=starts)
    order = list(seen.file.nodes)
    return tuple(sorted(known, key=order.index))


def _behind(file: Wiring, waiting: list[str], *, stop: set[str]) -> dict[str, None]:
    """The named nodes between these tensors and points upstream."""
    found: dict[str, None] = {}
    while waiting:
        name = waiting.pop()
        made = file.maker.get(name)
        if name in stop or made is None or made.op_type in BOUNDARY or made.name in found:
            continue
        found[made.name] = None
        waiting += list(filter(None, made.input))
    return found


def _requantized(seen: _Running, points: Iterable[NodeProto]) -> str:
    held = [limits for point in points if (limits := seen.file.limits(point)) is not None]
    ranges = " and ".join(dict.fromkeys(f"[{low:.4g}, {high:.4g}]" for low, high in held))
    return f"the same tensor has two points: {ranges}" if ranges else "the same tensor has two points"


def _named(model: ModelProto) -> ModelProto:
    """Name nodes that have no name after what they make."""
    taken = {node.name for node in model.graph.node}
    for node in model.graph.node:
        if not node.name:
            called = f"{node.op_type}:{node.output[0]}"
            node.name = called if called not in taken else f"{called}:"
    return model


def _on_arm() -> bool:
    return platform.machine().lower() in {"aarch64", "arm64"}
