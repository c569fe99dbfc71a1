"""What onnxruntime's integer kernels want of a QDQ file: edits that save time and change no output bit.

The rule: an edit applies only where it was measured faster (interleaved runs of whole networks, x86-64 with AVX-512
VNNI, onnxruntime 1.32), and what a file computes stays the same to the bit; sums that are written as floats, to the
rounding of float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgeexport import graph
from edgeexport.graph import walk

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

# MLAS convolves directly, without im2col, when input channels come in fours (MlasConvSymPackWSize); it pays from 16
# output channels on, and where windows overlap, so that every value is read several times. On Arm it does not:
# EfficientNet-Lite0 took 1.0 % more instructions on a Cortex-A76 and 1.3 % more on a Cortex-A53.
CHANNELS = 4
_MICROSOFT = "com.microsoft"
_LEAST_OUTPUT = 16


def for_integer_kernels(model: ModelProto, *, arch: str) -> tuple[ModelProto, tuple[str, ...]]:
    """Return an edited copy of a QDQ model for a CPU architecture, and one sentence for each edit."""
    from onnx import ModelProto

    copy = ModelProto()
    copy.CopyFrom(model)
    notes = []
    for node in list(copy.graph.node):
        if node.op_type == "Pad" and _pad_integers(copy, node):
            notes.append(f"{node.name or node.output[0]} pads integers")
        if node.op_type == "Conv" and arch == "x86_64" and (channels := _align_channels(copy, node)):
            notes.append(f"{node.name or node.output[0]} reads {channels} channels, the added ones zero")
        if node.op_type == "Conv" and arch == "x86_64" and _write_floats(copy, node):
            notes.append(f"{node.name or node.output[0]} writes floats")
    _drop_unread(copy if notes else ModelProto())
    return copy, tuple(notes)


def _pad_integers(model: ModelProto, pad: NodeProto) -> bool:
    """Turn Dequantize → Pad → Quantize of one scale into a Pad of the integers; a Pad with zeros pads zero points."""
    import numpy as np
    from onnx import helper

    before = _maker(model, pad.input[0], op="DequantizeLinear")
    after = _readers(model, pad.output[0])
    if before is None or len(after) != 1 or after[0].op_type != "QuantizeLinear" or len(before.input) < 3:
        return False
    values = {**graph.constants(model), **graph.initializers(model)}
    numbers = [[values.get(name) for name in node.input[1:3]] for node in (before, after[0])]
    equal = all(one is not None and np.array_equal(one, other) for one, other in zip(*numbers, strict=True))
    filled = values.get(pad.input[2], np.ones(1)) if len(pad.input) > 2 and pad.input[2] else np.zeros(1)
    if not equal or filled.any():
        return False
    inputs = [before.input[0], pad.input[1], before.input[2], *pad.input[3:]]
    made = helper.make_node("Pad", inputs, [after[0].output[0]], pad.name)
    made.attribute.extend(pad.attribute)
    _insert(model, before=pad, nodes=[made])
    gone = [pad, after[0], *([before] if len(_readers(model, before.output[0])) == 1 else [])]
    for node in gone:
        model.graph.node.remove(node)
    return True


def _align_channels(model: ModelProto, conv: NodeProto) -> int:
    """Pad the channels of the model's input to a multiple of four. Return how many there are then, 0 for no change."""
    import numpy as np
    import onnx

    image = _maker(model, conv.input[0], op="DequantizeLinear")
    stored = _maker(model, conv.input[1], op="DequantizeLinear")
    if image is None or stored is None or len(image.input) < 3 or len(_readers(model, stored.output[0])) != 1:
        return 0
    first = _maker(model, image.input[0], op="QuantizeLinear")
    weight = _weight(model, stored.input[0])
    inputs = {value.name for value in model.graph.input}
    if first is None or first.input[0] not in inputs or weight is None or not _worth_it(conv, weight):
        return 0
    values = onnx.numpy_helper.to_array(weight)
    added = -values.shape[1] % CHANNELS
    padded = np.pad(values, [(0, 0), (0, added), *[(0, 0)] * (values.ndim - 2)])
    fresh = _fresh_names(model)
    widths = np.zeros(2 * values.ndim, np.int64)
    widths[values.ndim + 1] = added
    stored_widths = onnx.numpy_helper.from_array(widths, next(fresh))
    wide, real = next(fresh), next(fresh)
    pad = onnx.helper.make_node("Pad", [image.input[0], stored_widths.name, image.input[2]], [wide], next(fresh))
    back = onnx.helper.make_node("DequantizeLinear", [wide, *image.input[1:]], [real], next(fresh))
    back.attribute.extend(image.attribute)
    _insert(model, before=conv, nodes=[pad, back])
    if len(_readers(model, image.output[0])) == 1:
        model.graph.node.remove(image)
    conv.input[0] = real
    model.graph.initializer.append(stored_widths)
    weight.CopyFrom(onnx.numpy_helper.from_array(padded, weight.name))
    return int(padded.shape[1])


def _write_floats(model: ModelProto, conv: NodeProto) -> bool:
    """Turn a pointwise convolution whose result somebody reads as it is into an integer product that writes floats.

    onnxruntime has no integer convolution that does, and would compute this one in float. The transposes around the
    product meet those that it puts around the integer convolutions beside it, and both go.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    source, stored = (_maker(model, name, op="DequantizeLinear") for name in conv.input[:2])
    if source is None or stored is None or min(len(source.input), len(stored.input)) < 3 or not _pointwise(conv):
        return False
    weight = _weight(model, stored.input[0])
    rounded = [node.op_type == "QuantizeLinear" for node in _readers(model, conv.output[0])]
    shared = len(_readers(model, stored.output[0])) > 1
    if weight is None or shared or set(weight.dims[2:]) != {1} or all(rounded):
        return False
    matrix = numpy_helper.to_array(weight).reshape(weight.dims[:2]).T
    rank, fresh = len(weight.dims), _fresh_names(model)
    last, sums = next(fresh), next(fresh)
    inputs = [last, weight.name, source.input[1], stored.input[1], source.input[2], stored.input[2]]
    inputs += [_real(model, name, fresh=fresh) for name in conv.input[2:] if name]
    nodes = [
        helper.make_node("Transpose", source.input[:1], [last], next(fresh), perm=[0, *range(2, rank), 1]),
        helper.make_node("MatMulIntegerToFloat", inputs, [sums], conv.name, domain=_MICROSOFT),
        helper.make_node("Transpose", [sums], conv.output[:1], next(fresh), perm=[0, rank - 1, *range(1, rank - 1)]),
    ]
    _insert(model, before=conv, nodes=nodes)
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(matrix), weight.name))
    for node in (conv, stored, *([source] if len(_readers(model, source.output[0])) == 1 else [])):
        model.graph.node.remove(node)
    if not any(entry.domain == _MICROSOFT for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))
    return True


def _real(model: ModelProto, bias: str, *, fresh: Iterator[str]) -> str:
    """Store what a bias in steps stands for: onnxruntime would work it out again for every sample."""
    from onnx import numpy_helper

    stored, values = _maker(model, bias, op="DequantizeLinear"), graph.initializers(model)
    steps, scale, *zero = [values.get(name) for name in stored.input] if stored is not None else [None, None]
    if steps is None or scale is None or any(each is None or each.any() for each in zero):
        return bias
    name = next(fresh)
    model.graph.initializer.append(numpy_helper.from_array((steps * scale).astype("float32"), name))
    return name


def _pointwise(conv: NodeProto) -> bool:
    from onnx import helper

    given = {item.name: helper.get_attribute_value(item) for item in conv.attribute}
    steps = {given.get("group", 1), *given.get("strides", [])}
    return steps == {1} and not any(given.get("pads", [])) and given.get("auto_pad", b"NOTSET") in {b"NOTSET", b"VALID"}


def _drop_unread(model: ModelProto) -> None:
    """Take out stored tensors, and what dequantizes them, that nothing reads any more."""
    stored = {tensor.name for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]:
        if not _readers(model, node.output[0]):
            model.graph.node.remove(node)
    read = {name for node in walk.nodes(model) for name in node.input} | {value.name for value in model.graph.output}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in read]:
        model.graph.initializer.remove(tensor)


def _worth_it(conv: NodeProto, weight: TensorProto) -> bool:
    from onnx import helper

    given = {item.name: helper.get_attribute_value(item) for item in conv.attribute}
    kernel, strides = weight.dims[2:], given.get("strides", [1] * len(weight.dims[2:]))
    overlap = all(step < size for step, size in zip(strides, kernel, strict=True))
    return given.get("group", 1) == 1 and weight.dims[1] % CHANNELS != 0 and weight.dims[0] >= _LEAST_OUTPUT and overlap


def _weight(model: ModelProto, name: str) -> TensorProto | None:
    """The stored tensor of this name, if one node alone reads it."""
    alone = len(_readers(model, name)) == 1
    return next((tensor for tensor in model.graph.initializer if alone and tensor.name == name), None)


def _maker(model: ModelProto, tensor: str, *, op: str) -> NodeProto | None:
    return next((node for node in model.graph.node if tensor in node.output and node.op_type == op), None)


def _readers(model: ModelProto, tensor: str) -> list[NodeProto]:
    """The nodes that read a tensor; a graph output counts as one more, so that nobody takes it away."""
    from onnx import NodeProto

    ends = [NodeProto() for value in model.graph.output if value.name == tensor]
    return [node for node in model.graph.node if tensor in node.input] + ends


def _insert(model: ModelProto, *, before: NodeProto, nodes: list[NodeProto]) -> None:
    place = next(index for index, node in enumerate(model.graph.node) if node is before or node == before)
    for node in reversed(nodes):
        model.graph.node.insert(place, node)


def _fresh_names(model: ModelProto) -> Iterator[str]:
    part = model.graph
    taken = {tensor.name for tensor in part.initializer} | {value.name for value in part.input}
    taken |= {name for node in part.node for name in (node.name, *node.output)}
    return itertools.filterfalse(taken.__contains__, (f"k{number}" for number in itertools.count()))
