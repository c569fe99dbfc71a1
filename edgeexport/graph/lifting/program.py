"""A model as a list of steps: constants folded, each node bound to its function, nothing run yet.

The rule: all judgement is here, before anything runs; `Lifted` only executes. Float weights that training may move are
never folded into something else, so that they can be found again under their ONNX name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgeexport.errors import UnsupportedOperator
from edgeexport.graph.edits import standard_opset
from edgeexport.graph.lifting.node import Node, Run, Shape
from edgeexport.graph.lifting.numbers import NUMBERS, stored_numbers
from edgeexport.graph.lifting.table import TABLE
from edgeexport.graph.shapes import free_inputs, tensor_types
from edgeexport.graph.walk import describe, subgraphs
from edgeexport.graph.weights import constants, initializers

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_LARGEST_FOLD = 1 << 22
# Operator → inputs at which a stored float tensor is a weight that training may move.
_WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1), "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2), "GroupNormalization": (1, 2), "PRelu": (1,),
    "RMSNormalization": (1,), "Gather": (0,), "Einsum": (0, 1),
}  # fmt: skip
# A tensor (not a lone number) that is added or multiplied is a bias or a scale.
_BROADCAST = ("Add", "Sub", "Mul", "Div")
# What only moves values: a weight seen through it is still the weight.
_MOVES = ("Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Expand", "Cast")


@dataclass(frozen=True)
class Source:
    """Where a step takes an input from: `value` computed, `stored` tensor, `numbers` known, or `nothing`.

    raw: the step wants numbers as they are, not as a tensor.
    """

    kind: str
    name: str = ""
    numbers: Any = None
    raw: bool = False


@dataclass(frozen=True)
class Step:
    """One node, ready to run. `done` names the values nobody needs afterwards."""

    op: str
    node: str
    run: Run
    sources: tuple[Source, ...]
    outputs: tuple[str, ...]
    done: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """What a lifted module executes. stored: every tensor that a step reads; weights: those that training may move."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    free: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...]
    stored: Mapping[str, np.ndarray]
    weights: frozenset[str]


@dataclass
class _State:
    """What is known while walking through the nodes."""

    opset: int
    shapes: Mapping[str, Shape]
    constants: dict[str, np.ndarray]
    weights: frozenset[str]
    numbers: set[str] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)


def compile_program(model: ModelProto) -> Program:
    """Turn a model into steps. Raises UnsupportedOperator naming operator, node and attribute."""
    _refuse_unknown(model)
    shapes = _shapes(model)
    stored = {**initializers(model), **constants(model)}
    state = _State(standard_opset(model), shapes, stored, _weights(model, stored))
    for proto in model.graph.node:
        if proto.op_type != "Constant":
            _add(proto, state)
    inputs = tuple(value.name for value in free_inputs(model))
    outputs = tuple(value.name for value in model.graph.output)
    used = {source.name for step in state.steps for source in step.sources if source.kind == "stored"}
    used |= {name for name in outputs if name in state.constants}
    return Program(
        inputs=inputs,
        outputs=outputs,
        free=tuple(tuple(a for a, size in enumerate(shapes.get(name, ())) if size is None) for name in inputs),
        steps=_with_lifetimes(state.steps, outputs),
        stored={name: value for name, value in state.constants.items() if name in used},
        weights=state.weights & used,
    )


def _refuse_unknown(model: ModelProto) -> None:
    """Refuse all unknown operators at once, so that the reader sees the whole list."""
    unknown: dict[str, NodeProto] = {}
    for node in model.graph.node:
        known = node.op_type == "Constant" or node.op_type in TABLE
        if not known or node.domain not in ("", "ai.onnx") or any(subgraphs(node)):
            unknown.setdefault(f"{node.domain}.{node.op_type}".lstrip("."), node)
    if unknown:
        examples = "; ".join(f"{op} ({describe(node)})" for op, node in unknown.items())
        raise UnsupportedOperator(
            f"operators that cannot be lifted into torch: {examples}",
            next_step="export the model without them, or build for a runtime that reads ONNX itself",
        )


def _shapes(model: ModelProto) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for name, value in tensor_types(model).items():
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            dims = tensor.shape.dim
            found[name] = tuple(int(dim.dim_value) if dim.HasField("dim_value") else None for dim in dims)
    return found


def _weights(model: ModelProto, stored: Mapping[str, np.ndarray]) -> frozenset[str]:
    """Return the stored float tensors that training may move, seen through operators that only move values."""
    wanted: set[str] = set()
    for node in reversed(model.graph.node):
        positions = _WEIGHTS.get(node.op_type, ())
        wanted |= {node.input[p] for p in positions if p < len(node.input)}
        if node.op_type in _BROADCAST:
            wanted |= {name for name in node.input if name not in stored or stored[name].size > 1}
        if node.op_type in _MOVES and wanted & set(node.output):
            wanted.add(node.input[0])
    return frozenset(
        name for name in wanted & stored.keys() if stored[name].dtype.name in ("float16", "float32", "float64")
    )


def _add(proto: NodeProto, state: _State) -> None:
    node = Node(proto, state.opset, state.constants, state.shapes)
    if _fold_shape(node, state):
        return
    run, positions = _build(node, state)
    sources = tuple(_source(name, node, as_numbers=i in positions, state=state) for i, name in enumerate(node.inputs))
    if not state.numbers.intersection(node.outputs) and _can_fold(node, state):
        _fold(node, run, sources=sources, state=state)
        return
    state.steps.append(Step(proto.op_type, proto.name, run, sources, node.outputs))


def _fold_shape(node: Node, state: _State) -> bool:
    """Fold Shape of a tensor whose every size is known."""
    if node.proto.op_type != "Shape":
        return False
    sizes = state.shapes.get(node.inputs[0], (None,))[node.get("start", 0) : node.get("end")]
    if any(size is None for size in sizes) or node.inputs[0] not in state.shapes:
        return False
    state.constants[node.outputs[0]] = np.array(sizes, dtype=np.int64)
    return True


def _build(node: Node, state: _State) -> tuple[Run, tuple[int, ...]]:
    """Return the function of a node, and at which inputs it wants numbers; note if it makes numbers itself."""
    op = node.proto.op_type
    given = [name for name in node.inputs if name]
    on_numbers = op in NUMBERS and any(name in state.numbers for name in given)
    on_numbers = on_numbers and all(name in state.numbers or name in state.constants for name in given)
    if on_numbers or op in ("Shape", "Size"):
        state.numbers.update(node.outputs)
    run = NUMBERS[op](node) if on_numbers else TABLE[op].build(node)
    node.refuse_unread()
    return run, tuple(range(len(node.inputs))) if on_numbers else TABLE[op].numbers


def _source(name: str, node: Node, *, as_numbers: bool, state: _State) -> Source:
    if not name:
        return Source("nothing")
    if name in state.constants:
        return Source("numbers", name, stored_numbers(state.constants[name])) if as_numbers else Source("stored", name)
    if as_numbers and name not in state.numbers:
        raise node.refusal(f"its input {name!r} must be known before the data, and is computed from it")
    return Source("value", name, raw=as_numbers)


def _can_fold(node: Node, state: _State) -> bool:
    """True if all inputs are stored, none is a weight, and the result is known to be small."""
    if any(name and (name not in state.constants or name in state.weights) for name in node.inputs):
        return False
    for name in node.outputs:
        sizes = [size for size in state.shapes.get(name, (None,)) if size is not None]
        if len(sizes) != len(state.shapes.get(name, (None,))) or math.prod(sizes) > _LARGEST_FOLD:
            return False
    return True


def _fold(node: Node, run: Run, *, sources: tuple[Source, ...], state: _State) -> None:
    values = [
        torch.from_numpy(np.array(state.constants[source.name])) if source.kind == "stored" else source.numbers
        for source in sources
    ]
    with torch.no_grad():
        result = run(*values)
    for name, value in zip(node.outputs, result if isinstance(result, tuple) else (result,), strict=False):
        state.constants[name] = value.numpy()


def _with_lifetimes(steps: list[Step], outputs: tuple[str, ...]) -> tuple[Step, ...]:
    """Note at each step which values nobody needs afterwards."""
    needed = set(outputs)
    result = []
    for step in reversed(steps):
        read = {source.name for source in step.sources if source.kind == "value"}
        dead = tuple(sorted((read | set(step.outputs)) - needed - {""}))
        result.append(Step(step.op, step.node, step.run, step.sources, step.outputs, dead))
        needed |= read
    return tuple(reversed(result))
