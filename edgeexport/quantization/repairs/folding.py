"""Folding constant factors and terms into the convolution or linear layer before or after them.

The rule: the float result stays the same up to rounding. A term is folded forward only where nothing is padded, since
padding adds zeros after it. Scaling by channels is the algebra of Nagel et al. 2019 (arXiv:1906.04721), section 4.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeexport.quantization.placement import attribute
from edgeexport.quantization.repairs.sketch import Sketch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import NodeProto

_CONSTANT_OPS = ("Mul", "Div", "Add", "Sub")
_FACTORS, _TERMS = ("Mul", "Div"), ("Add", "Sub")


def fold(sketch: Sketch) -> int:
    """Merge, then fold, until nothing more can be. Returns how many nodes went away."""
    count = 0
    while _once(sketch):
        count += 1
    return count


def constant_of(sketch: Sketch, node: NodeProto) -> tuple[str, NDArray[Any]] | None:
    """Return (the tensor, the constant) of `x * c`, `x / c`, `x + c`, `x - c` in float32, None for anything else."""
    if node.op_type not in _CONSTANT_OPS:
        return None
    for data, other in ((0, 1), (1, 0)):
        value = sketch.stored.get(node.input[other])
        fits = value is not None and value.dtype.name == "float32" and node.input[data] not in sketch.stored
        if fits and value is not None and (other == 1 or node.op_type in {"Mul", "Add"}):
            return str(node.input[data]), value
    return None


def _once(sketch: Sketch) -> bool:
    return any(rule(sketch, node) for rule in (_merge, _backward, _forward) for node in sketch.nodes(*_CONSTANT_OPS))


def _as_factor_or_term(node: NodeProto, value: NDArray[Any]) -> NDArray[Any]:
    """The constant as what is multiplied or added."""
    if node.op_type == "Div":
        return (1.0 / value.astype("float64")).astype("float32")
    return -value if node.op_type == "Sub" else value


def _merge(sketch: Sketch, node: NodeProto) -> bool:
    """Make one Mul of a Mul or Div and the Mul or Div that alone reads it; a lone Div by a constant becomes a Mul."""
    import numpy as np
    import onnx

    found = constant_of(sketch, node)
    reader = sketch.only_reader(node.output[0])
    second = constant_of(sketch, reader) if reader is not None else None
    kinds = _FACTORS if node.op_type in _FACTORS else _TERMS
    if found is None or reader is None or second is None or reader.op_type not in kinds:
        return node.op_type == "Div" and found is not None and _multiply(sketch, node, found=found)
    pair = [_as_factor_or_term(one, value) for one, (_, value) in ((node, found), (reader, second))]
    if not np.can_cast(np.result_type(*pair), np.float32) or not _broadcasts(*pair):
        return False
    both = pair[0] * pair[1] if kinds is _FACTORS else pair[0] + pair[1]
    name = sketch.store(np.asarray(both, np.float32), name=f"{reader.output[0]}_constant")
    made = onnx.helper.make_node(kinds[0], [found[0], name], [reader.output[0]], reader.name)
    sketch.replace([node, reader], [made])
    return True


def _multiply(sketch: Sketch, node: NodeProto, *, found: tuple[str, NDArray[Any]]) -> bool:
    import numpy as np
    import onnx

    if (found[1] == 0).any():
        return False
    name = sketch.store(np.asarray(_as_factor_or_term(node, found[1])), name=f"{node.output[0]}_constant")
    sketch.replace([node], [onnx.helper.make_node("Mul", [found[0], name], list(node.output), node.name)])
    return True


def _broadcasts(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.size == 1 or other.size == 1 or one.shape == other.shape


def _backward(sketch: Sketch, node: NodeProto) -> bool:
    """Fold `conv(x) * c` or `conv(x) + c` into the layer before, if only this node reads its result."""
    import numpy as np

    found = constant_of(sketch, node)
    layer = sketch.maker.get(found[0]) if found is not None else None
    if found is None or layer is None or sketch.only_reader(found[0]) is None or not _is_layer(sketch, layer):
        return False
    axis = _output_axis(layer)
    weight = sketch.stored[layer.input[1]]
    channels = weight.shape[axis]
    vector = _per_channel(found[1], channels, spatial=weight.ndim - 2 if layer.op_type == "Conv" else 0)
    if vector is None:
        return False
    vector = _as_factor_or_term(node, vector)
    bias = sketch.stored[layer.input[2]] if _has_bias(layer) else np.zeros(channels, np.float32)
    if node.op_type in _FACTORS:
        shape = [-1 if at == axis else 1 for at in range(weight.ndim)]
        _set(sketch, layer, weight=weight * vector.reshape(shape), bias=bias * vector)
    else:
        _set(sketch, layer, weight=weight, bias=bias + vector)
    layer.output[0] = node.output[0]
    sketch.replace([layer, node], [layer])
    return True


def _forward(sketch: Sketch, node: NodeProto) -> bool:
    """Fold `x * c` or `x + c` into all layers that read it, if nothing else does."""
    found = constant_of(sketch, node)
    layers = sketch.readers.get(node.output[0], [])
    takes = layers and all(_is_layer(sketch, layer) and layer.input[0] == node.output[0] for layer in layers)
    if found is None or not takes or node.output[0] in sketch.outputs:
        return False
    changes = [_into(sketch, layer, node=node, value=found[1]) for layer in layers]
    if any(change is None for change in changes):
        return False
    for layer, change in zip(layers, changes, strict=True):
        assert change is not None
        _set(sketch, layer, weight=change[0], bias=change[1])
        layer.input[0] = found[0]
    sketch.replace([node], [])
    return True


def _into(
    sketch: Sketch, layer: NodeProto, *, node: NodeProto, value: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Weight and bias of a layer that takes in its input's constant; None if it cannot."""
    import numpy as np

    weight = sketch.stored[layer.input[1]]
    if layer.op_type == "Gemm":
        return _into_gemm(sketch, layer, node=node, value=value)
    groups = int(attribute(layer, "group", default=1))
    outputs, inputs = weight.shape[0], weight.shape[1] * groups
    vector = _per_channel(value, inputs, spatial=weight.ndim - 2)
    if vector is None:
        return None
    vector = _as_factor_or_term(node, vector)
    per_output = np.repeat(vector.reshape(groups, -1), outputs // groups, axis=0)
    spread = per_output.reshape(*per_output.shape, *[1] * (weight.ndim - 2))
    bias = sketch.stored[layer.input[2]] if _has_bias(layer) else np.zeros(outputs, np.float32)
    if node.op_type in _FACTORS:
        return weight * spread, bias
    padded = any(attribute(layer, "pads", default=[])) or attribute(layer, "auto_pad", default=b"NOTSET") != b"NOTSET"
    return None if padded else (weight, bias + (weight * spread).reshape(outputs, -1).sum(axis=1))


def _into_gemm(
    sketch: Sketch, layer: NodeProto, *, node: NodeProto, value: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    import numpy as np

    weight, axis = sketch.stored[layer.input[1]], 1 - _output_axis(layer)
    vector = _per_channel(value, weight.shape[axis], spatial=0)
    if vector is None or attribute(layer, "transA", default=0):
        return None
    scaled = weight * np.expand_dims(_as_factor_or_term(node, vector), 1 - axis)
    bias = sketch.stored[layer.input[2]] if _has_bias(layer) else np.zeros(weight.shape[1 - axis], np.float32)
    return (scaled, bias) if node.op_type in _FACTORS else (weight, bias + scaled.sum(axis=axis))


def _is_layer(sketch: Sketch, node: NodeProto) -> bool:
    """True for a Conv or plain Gemm with stored float32 weight and, if any, bias."""
    if node.op_type not in {"Conv", "Gemm"} or node.input[1] not in sketch.stored or node.input[0] in sketch.stored:
        return False
    scaled = any(attribute(node, name, default=1.0) != 1.0 for name in ("alpha", "beta"))
    bias = sketch.stored.get(node.input[2]) if _has_bias(node) else None
    plain = not _has_bias(node) or (bias is not None and bias.ndim == 1)
    return plain and not scaled and sketch.stored[node.input[1]].dtype.name == "float32"


def _has_bias(node: NodeProto) -> bool:
    return len(node.input) > 2 and bool(node.input[2])


def _output_axis(layer: NodeProto) -> int:
    return 0 if layer.op_type == "Conv" or attribute(layer, "transB", default=0) else 1


def _per_channel(value: NDArray[Any], channels: int, *, spatial: int) -> NDArray[Any] | None:
    """A constant as one number a channel, None if it varies over anything else. spatial: axes behind the channels."""
    import numpy as np

    if value.ndim > spatial + 2:  # it would raise the rank of the result
        return None
    if value.size == 1:
        return np.full(channels, value.item(), np.float32)
    fits = value.ndim > spatial and value.shape[value.ndim - 1 - spatial] == channels == value.size
    return value.reshape(-1) if fits else None


def _set(sketch: Sketch, layer: NodeProto, *, weight: NDArray[Any], bias: NDArray[Any]) -> None:
    import numpy as np

    name = layer.name or layer.output[0]
    if weight is not sketch.stored[layer.input[1]]:
        layer.input[1] = sketch.store(np.asarray(weight, np.float32), name=f"{name}.folded_weight")
    stored = sketch.store(np.asarray(bias, np.float32), name=f"{name}.folded_bias")
    inputs = [*list(layer.input)[:2], stored]
    del layer.input[:]
    layer.input.extend(inputs)
