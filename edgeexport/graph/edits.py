"""Small edits and counts of a graph that every wing asks for.

The rule: an edit returns a new model, and changes nothing but what its name says.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgeexport.errors import ModelError
from edgeexport.graph.batch import random_input
from edgeexport.graph.shapes import free_inputs, tensor_types
from edgeexport.graph.walk import nodes

if TYPE_CHECKING:
    from onnx import ModelProto

_FLOAT_TYPES = (1, 10, 11, 16)


def op_counts(model: ModelProto) -> dict[str, int]:
    """Return operator → number of nodes, subgraphs included, most frequent first, then by name."""
    counted = Counter(node.op_type for node in nodes(model))
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def float_tensors(model: ModelProto) -> tuple[str, ...]:
    """Return the names of float tensors that flow in the main graph: inputs first, then node outputs in graph order.

    Stored tensors (initializers, Constant outputs) are not among them.
    """
    types = tensor_types(model)
    names = [value.name for value in free_inputs(model)]
    names += [name for node in model.graph.node if node.op_type != "Constant" for name in node.output if name]
    return tuple(name for name in names if name in types and types[name].type.tensor_type.elem_type in _FLOAT_TYPES)


def expose(model: ModelProto, names: Iterable[str]) -> ModelProto:
    """Return a copy with these tensors added to the outputs, in the given order; what is an output stays where it is.

    Raises ModelError for a name that is neither an input nor made by a node.
    """
    import onnx

    types = tensor_types(model)
    known = {name for node in model.graph.node for name in node.output if name}
    known |= {value.name for value in free_inputs(model)}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    outputs = {value.name for value in model.graph.output}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            tip = f"did you mean {close[0]!r}?" if close else ""
            raise ModelError(f"the model has no tensor {name!r}", next_step=tip)
        if name not in outputs:
            copy.graph.output.append(types.get(name, onnx.ValueInfoProto(name=name)))
            outputs.add(name)
    return copy


def lower_ir(model: ModelProto, *, ir_version: int, opset: int | None = None) -> ModelProto:
    """Return a copy for an older runtime: a lower IR version and, if asked, a lower opset.

    A lower opset is accepted only if the converted model still answers bit for bit on a probe. Raises ModelError
    where something would be lost: types or initializers the older version does not know, or other numbers.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if opset is not None and opset < standard_opset(model):
        copy = _convert_opset(model, opset)
    _refuse_lost_types(copy, ir_version)
    copy.ir_version = min(ir_version, copy.ir_version)
    if ir_version < 4:
        listed = {value.name for value in copy.graph.input}
        for tensor in copy.graph.initializer:
            if tensor.name not in listed:
                dims = list(tensor.dims)
                copy.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, dims))
    return copy


def raise_opset(model: ModelProto, *, opset: int) -> ModelProto:
    """Return the model with at least this standard opset, by onnx's version converter; itself when it has it already.

    The caller compares the numbers. Raises ModelError where the converter cannot.
    """
    from onnx import version_converter

    has = standard_opset(model)
    if has >= opset:
        return model
    try:
        return version_converter.convert_version(model, opset)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ModelError(f"opset {has} cannot be raised to {opset}: {str(error).splitlines()[0]}") from error


def standard_opset(model: ModelProto) -> int:
    """Return the version of the standard operator set that the model imports."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _refuse_lost_types(model: ModelProto, ir_version: int) -> None:
    """IR 9 brought float8, 10 int4, 11 float4 and 12 the exponent type (`onnx.proto3`, the enum Version)."""
    needs = {17: 9, 18: 9, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13}
    if ir_version < 8 and model.functions:
        raise ModelError(f"IR version {ir_version} has no model-local functions, the model has some")
    for tensor in model.graph.initializer:
        needed = needs.get(tensor.data_type, 1)
        if ir_version < needed:
            raise ModelError(f"initializer {tensor.name!r} has a type of IR version {needed}, asked for {ir_version}")


def _convert_opset(model: ModelProto, opset: int) -> ModelProto:
    import numpy as np
    from onnx import version_converter

    from edgeexport.graph.batch import run_once

    has = standard_opset(model)
    try:
        lowered = version_converter.convert_version(model, opset)
    except RuntimeError as error:
        raise ModelError(f"opset {has} cannot be lowered to {opset}: {str(error).splitlines()[0]}") from error
    sizes = {value.name: tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
             for value in free_inputs(model)}  # fmt: skip
    feeds = {value.name: random_input(value, sizes[value.name]) for value in free_inputs(model)}
    try:
        before, after = run_once(model, feeds), run_once(lowered, feeds)
    except ValueError as error:
        raise ModelError(f"opset {has} lowered to {opset} does not run: {error}") from error
    for value, old, new in zip(model.graph.output, before, after, strict=True):
        if not np.array_equal(old, new, equal_nan=True):
            raise ModelError(f"opset {has} lowered to {opset} changes the numbers of output {value.name!r}")
    return lowered
