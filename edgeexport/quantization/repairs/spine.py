"""Edits of the fp32 spine that let more of it run in integers: the same function from operators that have kernels.

The rule: one row of SPINE_EDITS per edit, each with its reason; an edit works on a copy and says in how many places it
found its pattern. That the numbers stay equal is proven by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeexport.quantization.placement import attribute
from edgeexport.quantization.repairs.folding import fold
from edgeexport.quantization.repairs.sketch import Sketch

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


@dataclass(frozen=True)
class SpineEdit:
    """A named edit: `apply` changes a sketch and returns in how many places."""

    name: str
    reason: str
    apply: Callable[[Sketch], int]


def edited(model: ModelProto, edit: SpineEdit) -> tuple[ModelProto, int]:
    """Return an edited copy and the number of places; 0 when the edit's pattern is not there."""
    sketch = Sketch(model)
    count = edit.apply(sketch)
    return (sketch.finished(), count) if count else (model, 0)


def all_of(model: ModelProto, edits: Sequence[SpineEdit]) -> SpineEdit:
    """Return one edit that does all those which have something to change in `model`, in their order."""
    fitting = [edit for edit in edits if edited(model, edit)[1]]

    def apply(sketch: Sketch) -> int:
        return sum(edit.apply(sketch) for edit in fitting)

    return SpineEdit(" + ".join(edit.name for edit in fitting), "; ".join(edit.reason for edit in fitting), apply)


def _mean_as_pool(sketch: Sketch) -> int:
    """ReduceMean over height and width → GlobalAveragePool, flattened where the axes are dropped."""
    import onnx

    count = 0
    for node in sketch.nodes("ReduceMean"):
        stored = sketch.stored.get(node.input[1]) if len(node.input) > 1 else None
        axes = stored.tolist() if stored is not None else attribute(node, "axes", default=[])
        if len(sketch.shape(node.input[0])) != 4 or sorted(axis % 4 for axis in axes) != [2, 3]:
            continue
        keeps = bool(attribute(node, "keepdims", default=1))
        pooled = node.output[0] if keeps else f"{node.output[0]}_pooled"
        new = [onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], node.name)]
        if not keeps:
            new.append(onnx.helper.make_node("Flatten", [pooled], [node.output[0]], f"{node.name}_flat", axis=1))
        sketch.replace([node], new)
        count += 1
    return count


def _shortcut_as_convolution(sketch: Sketch) -> int:
    """Take every n-th pixel, pad channels with zeros → a 1×1 convolution whose weight is a piece of the identity."""
    import numpy as np
    import onnx

    count = 0
    for pad in sketch.nodes("Pad"):
        before, after = _padded_channels(sketch, pad)
        slices, strides = _strided(sketch, pad.input[0])
        source = slices[0].input[0] if slices else pad.input[0]
        channels = [*sketch.shape(source), 0, 0][1]
        if before + after == 0 or not channels or sketch.stored.get(source) is not None:
            continue
        weight = np.zeros((before + channels + after, channels, 1, 1), np.float32)
        weight[before : before + channels, :, 0, 0] = np.eye(channels, dtype=np.float32)
        name = sketch.store(weight, name=f"{pad.name}.weight")
        made = onnx.helper.make_node(
            "Conv", [source, name], list(pad.output), pad.name, kernel_shape=[1, 1], strides=strides
        )
        sketch.replace([*slices, pad], [made])
        count += 1
    return count


def _padded_channels(sketch: Sketch, pad: NodeProto) -> tuple[int, int]:
    """How many zero channels a Pad adds before and after; (0, 0) if it does anything else."""
    pads = sketch.stored.get(pad.input[1]) if len(pad.input) > 1 else None
    fill = sketch.stored.get(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else None
    filled = len(pad.input) > 2 and bool(pad.input[2]) and (fill is None or bool((fill != 0).any()))
    axes = len(pad.input) > 3 and bool(pad.input[3])
    constant = attribute(pad, "mode", default=b"constant") == b"constant"
    if pads is None or pads.size != 8 or filled or axes or not constant:
        return 0, 0
    sizes = pads.tolist()
    others = [sizes[at] for at in (0, 2, 3, 4, 6, 7)]
    return (sizes[1], sizes[5]) if not any(others) and min(sizes) >= 0 else (0, 0)


def _strided(sketch: Sketch, tensor: str) -> tuple[list[NodeProto], list[int]]:
    """The Slices before a tensor that only take every n-th row or column, first one first, and their steps."""
    found: list[NodeProto] = []
    strides = [1, 1]
    while True:
        node = sketch.maker.get(tensor)
        if node is None or node.op_type != "Slice" or sketch.only_reader(tensor) is None or len(node.input) < 5:
            return found, strides
        values = [sketch.stored.get(name) for name in node.input[1:5]]
        if any(value is None for value in values):
            return found, strides
        starts, ends, axes, steps = ([int(one) for one in value] for value in values if value is not None)
        sizes = sketch.shape(node.input[0])
        plain = all(
            start == 0 and axis in {2, 3} and step >= 1 and 0 < sizes[axis] <= end
            for start, end, axis, step in zip(starts, ends, axes, steps, strict=True)
        )
        if not plain:
            return found, strides
        for axis, step in zip(axes, steps, strict=True):
            strides[axis - 2] *= step
        found.insert(0, node)
        tensor = node.input[0]


def _hardsigmoid_as_clip(sketch: Sketch) -> int:
    """HardSigmoid → Clip(x · alpha + beta, 0, 1); the factor and the term go into the layer before where they can."""
    import numpy as np
    import onnx

    nodes = [node for node in sketch.nodes("HardSigmoid") if not _gate_of(sketch, node)]
    for node in nodes:
        alpha, beta = (attribute(node, name, default=value) for name, value in (("alpha", 0.2), ("beta", 0.5)))
        out = node.output[0]
        numbers = {"alpha": alpha, "beta": beta, "low": 0.0, "high": 1.0}
        stored = {key: sketch.store(np.array(value, np.float32), name=f"{out}_{key}") for key, value in numbers.items()}
        make = onnx.helper.make_node
        new = [
            make("Mul", [node.input[0], stored["alpha"]], [f"{out}_scaled"], f"{node.name}_scale"),
            make("Add", [f"{out}_scaled", stored["beta"]], [f"{out}_shifted"], f"{node.name}_shift"),
            make("Clip", [f"{out}_shifted", stored["low"], stored["high"]], [out], node.name),
        ]
        sketch.replace([node], new)
    if nodes:
        fold(sketch)
    return len(nodes)


def _gate_of(sketch: Sketch, node: NodeProto) -> NodeProto | None:
    """The Mul that makes a HardSwish of a HardSigmoid (alpha 1/6, beta 1/2) and its own input."""
    numbers = [attribute(node, name, default=value) for name, value in (("alpha", 0.2), ("beta", 0.5))]
    reader = sketch.only_reader(node.output[0])
    if reader is None or reader.op_type != "Mul" or node.input[0] not in reader.input:
        return None
    return reader if abs(numbers[0] - 1 / 6) < 1e-6 and numbers[1] == 0.5 else None


def _hardswish_in_steps(sketch: Sketch) -> int:
    """HardSwish → x · Clip(x + 3, 0, 6) · 1/6: the Clip is part of a point, the factor folds into the next layer."""
    import numpy as np
    import onnx

    patterns = [[node] for node in sketch.nodes("HardSwish")]
    patterns += [[node, gate] for node in sketch.nodes("HardSigmoid") if (gate := _gate_of(sketch, node)) is not None]
    names = [(pattern[0].output[0], pattern[-1].output[0]) for pattern in patterns]
    for first, last in names:
        pattern = [sketch.maker[first], *([sketch.maker[last]] if last != first else [])]
        x = pattern[0].input[0]
        numbers = {"three": 3.0, "low": 0.0, "six": 6.0, "sixth": 1.0 / 6.0}
        stored = {
            key: sketch.store(np.array(value, np.float32), name=f"{last}_{key}") for key, value in numbers.items()
        }
        make, name = onnx.helper.make_node, pattern[-1].name or last
        new = [
            make("Add", [x, stored["three"]], [f"{last}_shifted"], f"{name}_shift"),
            make("Clip", [f"{last}_shifted", stored["low"], stored["six"]], [f"{last}_gate"], f"{name}_gate"),
            make("Mul", [x, f"{last}_gate"], [f"{last}_product"], f"{name}_product"),
            make("Mul", [f"{last}_product", stored["sixth"]], [last], name),
        ]
        sketch.replace(pattern, new)
    if names:
        fold(sketch)
    return len(names)


def _matmul_as_gemm(sketch: Sketch) -> int:
    """MatMul with a stored matrix, and the bias added after it → Gemm, whose integer kernel takes the bias in."""
    import onnx

    count = 0
    for node in sketch.nodes("MatMul"):
        weight = sketch.stored.get(node.input[1])
        add = sketch.only_reader(node.output[0])
        if weight is None or weight.ndim != 2 or add is None or add.op_type != "Add":
            continue
        bias = next((name for name in add.input if name in sketch.stored), "")
        if len(sketch.shape(node.input[0])) != 2 or not bias or sketch.stored[bias].shape != weight.shape[1:]:
            continue
        inputs = [node.input[0], node.input[1], bias]
        sketch.replace([node, add], [onnx.helper.make_node("Gemm", inputs, list(add.output), node.name)])
        count += 1
    return count


SPINE_EDITS = (
    SpineEdit("fold-affine", "a constant factor or term costs an integer kernel of its own", fold),
    SpineEdit(
        "hardsigmoid-as-clip", "HardSigmoid has no integer kernel, a Clip is part of a point", _hardsigmoid_as_clip
    ),
    SpineEdit("hardswish-in-steps", "HardSwish has no integer kernel; Add, Clip and Mul have", _hardswish_in_steps),
    SpineEdit("mean-as-pool", "ReduceMean stays in float, GlobalAveragePool has an integer kernel", _mean_as_pool),
    SpineEdit(
        "shortcut-as-convolution",
        "Pad stays in float between integer kernels; zero channels are a 1×1 convolution",
        _shortcut_as_convolution,
    ),
    SpineEdit(
        "matmul-as-gemm", "the integer Gemm adds the bias in its sum, MatMul leaves it to an Add", _matmul_as_gemm
    ),
)
