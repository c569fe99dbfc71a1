"""Clean: the same function with fewer nodes, and bytes that depend on nothing but the model.

The rule: every clean-up is one row of CLEANUPS, works on a copy, and is left out with a note when it fails. Whether
the numbers are still equal is checked by the caller, on real samples. Sources: the passes of onnx-ir and the rewrite
rules of onnxscript; folding batch normalization is Jacob et al. 2018, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.graph.files import need
from edgeexport.graph.shapes import with_input_shapes
from edgeexport.onnx_export.names import rename
from edgeexport.records.export import CleanRecord, CleanStep

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx import GraphProto, ModelProto

LARGEST_FOLDED = 1 << 26  # elements: a transposed weight matrix folds, a huge Expand does not
SMALL_FILL = 64  # elements: as many as a Pad of any rank can need
BIASED = ("Conv", "ConvTranspose", "Gemm")


def clean(model: ModelProto) -> tuple[ModelProto, CleanRecord]:
    """Return a cleaned copy of a float model, and what was done. The same model gives the same bytes everywhere."""
    import onnx_ir as ir
    from onnx.shape_inference import InferenceError

    need("onnxscript", purpose="cleaning an ONNX graph")
    current = ir.from_proto(strip(model))  # of a copy: onnx-ir writes new names into the tensors it was given
    steps = []
    for name, apply in CLEANUPS:
        before, changed = _count(current), current.clone()
        try:
            apply(changed)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, InferenceError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            steps.append(CleanStep(name, before, before, left_out=reason))
            continue
        current = changed
        steps.append(CleanStep(name, before, _count(current)))
    cleaned = strip(ir.to_proto(current))
    del cleaned.graph.value_info[:]
    return graph.infer_shapes(cleaned), CleanRecord(tuple(steps))


def strip(model: ModelProto) -> ModelProto:
    """Return a copy without doc strings, metadata and producer: they hold source lines and paths of its maker."""
    from onnx import ModelProto

    bare = ModelProto()
    bare.CopyFrom(model)
    for part in (bare, *bare.functions):
        _forget(part)
    bare.producer_name, bare.producer_version, bare.domain, bare.model_version = "edgeexport", "", "", 0
    _strip_graph(bare.graph)
    bare.graph.name = "main"
    return bare


def _strip_graph(part: GraphProto) -> None:
    _forget(part)
    for item in (*part.node, *part.initializer, *part.input, *part.output, *part.value_info):
        _forget(item)
    for node in part.node:
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _strip_graph(inner)


def _forget(item: Any) -> None:
    item.ClearField("doc_string")
    item.ClearField("metadata_props")


def _count(model: ir.Model) -> int:
    import onnx_ir as ir

    return sum(1 for _ in ir.traversal.RecursiveGraphIterator(model.graph))


def _fold_constants(model: ir.Model) -> None:
    """Compute what depends on constants only. onnxscript leaves quantized weights alone, and ConstantOfShape too.

    The legacy exporter computes the widths of a Pad with the latter, so a small one is folded here.
    """
    from onnxscript import optimizer

    optimizer.fold_constants_ir(
        model,
        onnx_shape_inference=True,
        input_size_limit=LARGEST_FOLDED,
        output_size_limit=LARGEST_FOLDED,
        should_fold=lambda node: True if _is_small_fill(node) else None,
    )


def _is_small_fill(node: ir.Node) -> bool:
    shape = node.inputs[0].const_value if node.op_type == "ConstantOfShape" and node.inputs[0] is not None else None
    return shape is not None and int(shape.numpy().prod()) <= SMALL_FILL


def _drop_no_ops(model: ir.Model) -> None:
    """Remove Identity, Dropout, and casts, transposes, reshapes, additions and products that change nothing."""
    from onnx_ir.passes.common import IdentityEliminationPass
    from onnxscript.rewriter.rules import common

    IdentityEliminationPass()(model)
    _rewrite(
        model,
        common.dropout_inference_rule,
        common.dropout_zero_rule,
        common.no_op_cast_rule,
        common.no_op_transpose_rule,
        common.no_op_expand_rule,
        common.reshape_reshape_rule,
        common.transpose_transpose_rule,
        common.unsqueeze_unsqueeze_rule,
        common.mul_by_1_rule,
        common.div_by_1_rule,
        common.add_0_rule,
        common.sub_0_rule,
    )


def _fold_batch_norm(model: ir.Model) -> None:
    """Fold BatchNormalization into the Conv, ConvTranspose or Gemm before it."""
    from onnxscript.rewriter.rules import common

    _rewrite(
        model,
        common.fuse_batchnorm_into_conv_rule,
        common.fuse_batchnorm_into_conv_transpose_rule,
        common.fuse_batchnorm_into_gemm_rule,
    )


def _fold_pad(model: ir.Model) -> None:
    """Fold zero padding into the Conv after it, with explicit pads in place of auto_pad."""
    from onnxscript.rewriter.rules import common

    _rewrite(model, common.normalize_pad_format_conv_rule, common.fuse_pad_into_conv_rule)


def _merge_activations(model: ir.Model) -> None:
    """Make one Clip or Relu out of several in a row."""
    from onnxscript.rewriter.rules import common

    _rewrite(
        model,
        common.successive_relu_rule,
        common.successive_clip_rule,
        common.successive_relu_clip_rule,
        common.successive_clip_relu_rule,
    )


def _plain_reshapes(model: ir.Model) -> None:
    """Give Reshape a constant shape, with -1 for the batch, where it is computed from the input's own shape.

    What depends on the batch is found by inferring all shapes twice, for a batch of two and of three.
    """
    import numpy as np
    import onnx_ir as ir

    dynamic = [node for node in model.graph if node.op_type == "Reshape" and not _is_constant(node.inputs[1])]
    two, three = (_shapes(model, batch) if dynamic else {} for batch in (2, 3))
    for node in dynamic:
        name = str(node.outputs[0].name)
        pairs = list(zip(two.get(name, ()), three.get(name, ()), strict=False))
        dims = [first if first == second else -1 for first, second in pairs]
        if not dims or 0 in dims or dims.count(-1) > 1:
            continue
        shape = ir.Value(name=_unused(model, f"{name}_shape"), const_value=ir.tensor(np.array(dims, np.int64)))
        model.graph.register_initializer(shape)
        node.replace_input_with(1, shape)


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _shapes(model: ir.Model, batch: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that are fully known for this batch size; none if another axis of an input is free."""
    import onnx_ir as ir

    proto = ir.to_proto(model)
    inputs = {spec.name: spec.shape for spec in graph.signature(proto).inputs}
    if any(isinstance(size, str) for shape in inputs.values() for size in shape[1:]):
        return {}
    first = {name: batch if shape and isinstance(shape[0], str) else None for name, shape in inputs.items()}
    fixed = with_input_shapes(proto, {name: (first[name] or shape[0], *shape[1:]) for name, shape in inputs.items()})
    types = {name: value.type.tensor_type.shape.dim for name, value in graph.tensor_types(fixed).items()}
    known = {name: dims for name, dims in types.items() if all(dim.HasField("dim_value") for dim in dims)}
    return {name: tuple(dim.dim_value for dim in dims) for name, dims in known.items()}


def _constants_as_initializers(model: ir.Model) -> None:
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _share_weights(model: ir.Model) -> None:
    """Keep equal initializers once."""
    from onnx_ir.passes.common import DeduplicateHashedInitializersPass

    DeduplicateHashedInitializersPass()(model)


def _own_bias(model: ir.Model) -> None:
    """Give every operator its own bias: in int8 its scale is that of the input times that of the weight."""
    import onnx_ir as ir

    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        bias = node.inputs[2] if node.op_type in BIASED and len(node.inputs) > 2 else None
        if bias is None or not bias.is_initializer() or bias.const_value is None or len(bias.uses()) < 2:
            continue
        own = ir.Value(name=_unused(model, f"{bias.name}_own"), const_value=ir.tensor(bias.const_value.numpy().copy()))
        own.shape, own.type = bias.shape, bias.type
        model.graph.register_initializer(own)
        node.replace_input_with(2, own)


def _unused(model: ir.Model, wanted: str) -> str:
    names = set(model.graph.initializers)
    return next(name for name in (f"{wanted}_{count}" for count in range(len(names) + 1)) if name not in names)


def _drop_dead(model: ir.Model) -> None:
    """Remove nodes, initializers and opset imports that no output needs, and unused inputs that are initializers."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)


def _rewrite(model: ir.Model, *rules: Any) -> None:
    from onnxscript import rewriter

    rewriter.RewritePass(rules)(model)


CLEANUPS: tuple[tuple[str, Callable[[ir.Model], None]], ...] = (
    ("fold constants", _fold_constants),
    ("plain reshapes", _plain_reshapes),
    ("drop no-ops", _drop_no_ops),
    ("constants as initializers", _constants_as_initializers),
    ("fold batch normalization", _fold_batch_norm),
    ("fold padding", _fold_pad),
    ("merge activations", _merge_activations),
    ("fold constants again", _fold_constants),
    ("keep constants as initializers", _constants_as_initializers),
    ("drop dead nodes", _drop_dead),
    ("share equal weights", _share_weights),
    ("one bias each", _own_bias),
    ("names", rename),
)
