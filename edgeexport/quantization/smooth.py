"""Smoothing: giant channels of an activation are divided by what the weights after it are multiplied with.

The rule: the float model computes the same, bit for bit where nothing under- or overflows, for every factor is a power
of two. Xiao et al. 2023, "SmoothQuant"; folded into the normalization before the layers, so that only its other
readers (a residual path) pay for one product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.quantization.channels import (
    captured,
    channel_ranges,
    drop_unused,
    insert_after,
    linear_nodes,
    redirect,
    store,
    weight_matrix,
)
from edgeexport.quantization.placement import attribute
from edgeexport.records.base import file_digest
from edgeexport.records.encoder import Smoothing

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto

    from edgeexport.runtimes.protocol import Feeds

    # (node, index of the input) of stored vectors by which a tensor can be scaled.
    Places = tuple[tuple[NodeProto, int], ...]

STRENGTH = 0.7
_LEAST = 2.0**-14


def smooth(model_path: Path, samples: Iterable[Feeds], *, out: Path, strength: float = STRENGTH) -> Smoothing:
    """Write the smoothed float model to `out`, numerically equal to the one at `model_path`.

    samples: feeds in the model's signature. strength: 0 leaves activations as they are, 1 makes all their channels
    equally large and the weights bear it all. A tensor that no normalization with stored factors makes is left.
    """
    model = graph.load(model_path)
    stored = graph.initializers(model)
    readers: dict[str, list[NodeProto]] = {}
    for node in linear_nodes(model.graph, stored):
        readers.setdefault(node.input[0], []).append(node)
    held = captured(model)
    factors = {name: None if name in held else _affine(model, name, stored=stored) for name in readers}
    ready = [name for name, found in factors.items() if found is not None]
    ranges = channel_ranges(model, ready, samples=samples)
    for name in ready:
        weights = [weight_matrix(node, stored[node.input[1]]) for node in readers[name]]
        scale = smoothing_scales(ranges[name].peak, weights, strength=strength)
        _fold(model.graph, name, scale=scale, places=factors[name] or (), readers=readers[name])
    drop_unused(model)
    del model.graph.value_info[:]
    graph.save(graph.infer_shapes(model), out)
    reason = "no normalization with stored factors makes it"
    return Smoothing(
        model_digest=file_digest(model_path),
        strength=strength,
        smoothed={name: tuple(node.name or node.output[0] for node in readers[name]) for name in ready},
        left={name: reason for name, found in factors.items() if found is None},
    )


def smoothing_scales(peaks: NDArray[Any], weights: Sequence[NDArray[Any]], *, strength: float) -> NDArray[Any]:
    """Return what each channel is divided by: peak^strength / weight^(1 - strength), centred on 1, a power of two.

    peaks: largest magnitude of every channel. weights: (channels, outputs) each.
    """
    import numpy as np

    rows = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    wanted = strength * np.log2(np.maximum(peaks, _LEAST)) - (1.0 - strength) * np.log2(np.maximum(rows, _LEAST))
    exponents = np.rint(wanted - wanted.mean())
    scales: NDArray[Any] = np.exp2(exponents).astype(np.float32)
    return scales


def _affine(model: ModelProto, tensor: str, *, stored: dict[str, NDArray[Any]]) -> Places | None:
    """Return (node, input) of the stored vectors by which a tensor can be scaled: a normalization's factor and offset.

    None if its maker has none.
    """
    maker = next((node for node in model.graph.node if tensor in node.output), None)
    if maker is None:
        return None
    if maker.op_type == "LayerNormalization":
        last = attribute(maker, "axis", default=-1) == -1
        places = tuple((maker, index) for index in (1, 2) if index < len(maker.input) and maker.input[index])
        return places if last and all(node.input[index] in stored for node, index in places) else None
    if maker.op_type in {"RMSNormalization", "Mul"}:
        return _vector(maker, stored)
    if maker.op_type == "Add" and (offset := _vector(maker, stored)):
        node, index = offset[0]
        factor = _affine_product(model, node.input[1 - index], stored=stored)
        return (*factor, *offset) if factor else None
    return None


def _affine_product(model: ModelProto, tensor: str, *, stored: dict[str, NDArray[Any]]) -> Places | None:
    """The factor of a normalization written out in small steps: a product with a vector that nothing else reads."""
    maker = next((node for node in model.graph.node if tensor in node.output), None)
    alone = sum(list(node.input).count(tensor) for node in model.graph.node) == 1
    return _vector(maker, stored) if maker is not None and maker.op_type == "Mul" and alone else None


def _vector(node: NodeProto, stored: dict[str, NDArray[Any]]) -> Places | None:
    found = [index for index, name in enumerate(node.input) if name in stored and stored[name].ndim == 1]
    return ((node, found[0]),) if len(found) == 1 and stored[node.input[found[0]]].size > 1 else None


def _fold(part: GraphProto, tensor: str, *, scale: NDArray[Any], places: Places, readers: list[NodeProto]) -> None:
    """Divide `tensor` by `scale` where it is made, multiply the weights, and give its other readers what it was."""
    from onnx import numpy_helper

    stored = {item.name: item for item in part.initializer}
    for node, index in places:
        value = numpy_helper.to_array(stored[node.input[index]])
        node.input[index] = store(part, f"{node.input[index]}_smoothed", value=value / scale)
    for node in readers:
        value = numpy_helper.to_array(stored[node.input[1]])
        turned = weight_matrix(node, value) is not value
        node.input[1] = store(part, f"{node.input[1]}_smoothed", value=value * (scale if turned else scale[:, None]))
    _undo_for_others(part, tensor, scale=scale, maker=places[-1][0], readers=readers)


def _undo_for_others(
    part: GraphProto, tensor: str, *, scale: NDArray[Any], maker: NodeProto, readers: list[NodeProto]
) -> None:
    """Multiply by `scale` for whoever else reads the tensor: other nodes, or the model's own output of that name."""
    from onnx import helper

    mine = {id(node) for node in readers}
    others = [node for node in part.node if tensor in node.input and id(node) not in mine]
    is_output = any(value.name == tensor for value in part.output)
    if not others and not is_output:
        return
    factor = store(part, f"{tensor}_smoothing", value=scale)
    if is_output:
        inner = f"{tensor}_smooth"
        maker.output[list(maker.output).index(tensor)] = inner
        redirect(readers, tensor, new=inner)
        insert_after(part, maker, helper.make_node("Mul", [inner, factor], [tensor], f"{tensor}_unsmoothed"))
        return
    back = f"{tensor}_unsmoothed"
    insert_after(part, maker, helper.make_node("Mul", [tensor, factor], [back], back))
    redirect(others, tensor, new=back)
