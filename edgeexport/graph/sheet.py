"""A sheet: many single layers side by side in one model, so that one profile of it times them all.

The rule: layers share nothing but their inputs, and layer n makes the tensor "layer{n}", a name that onnxruntime keeps
in what it makes of the node.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeexport.records.latency import LayerShape

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

OPSET, IR = 17, 8
NAME = re.compile(r"layer(\d+)(?:$|\D)")


class Layer(NamedTuple):
    """A shape at one pair of widths."""

    shape: LayerShape
    inputs: int
    outputs: int


def sheet(layers: Sequence[Layer], *, apart: bool = False) -> tuple[ModelProto, dict[str, NDArray[Any]]]:
    """Return a model of these layers, with random weights, and inputs for it (seeded).

    apart: layer n has an input "in{n}" of its own, whose first size is free: an empty one leaves that layer out.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    feeds: dict[str, NDArray[Any]] = {}
    nodes, stored, made = [], [], []
    for index, layer in enumerate(layers):
        size = _input_size(layer)
        # Layers in float read nothing that is rounded for others.
        kind = "float" if layer.shape.in_float else "x"
        source = f"in{index}" if apart else kind + "x".join(map(str, size))
        if source not in feeds:
            feeds[source] = random.standard_normal(size).astype(np.float32)
        weights = random.standard_normal(_weight_size(layer)).astype(np.float32)
        bias = random.standard_normal(layer.outputs).astype(np.float32)
        stored += [numpy_helper.from_array(weights, f"w{index}"), numpy_helper.from_array(bias, f"b{index}")]
        nodes.append(_node(layer, [source, f"w{index}", f"b{index}"], name=f"layer{index}"))
        made.append(helper.make_tensor_value_info(f"layer{index}", TensorProto.FLOAT, None))
    sizes = {name: [f"n_{name}", *value.shape[1:]] if apart else value.shape for name, value in feeds.items()}
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in sizes.items()]
    whole = helper.make_graph(nodes, "sheet", given, made, stored)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR), feeds


def _input_size(layer: Layer) -> tuple[int, ...]:
    if layer.shape.kind == "linear":
        return (*layer.shape.size, layer.inputs)
    return (1, layer.inputs, *layer.shape.size)


def _weight_size(layer: Layer) -> tuple[int, ...]:
    shape = layer.shape
    if shape.kind == "linear":
        return (layer.inputs, layer.outputs)
    if shape.kind == "transposed":
        return (layer.inputs, layer.outputs // shape.groups, *shape.kernel)
    return (layer.outputs, 1 if shape.kind == "depthwise" else layer.inputs // shape.groups, *shape.kernel)


def _node(layer: Layer, inputs: list[str], *, name: str) -> NodeProto:
    from onnx import helper

    shape = layer.shape
    if shape.kind == "linear":
        return helper.make_node("Gemm", inputs, [name], name)
    return helper.make_node(
        "ConvTranspose" if shape.kind == "transposed" else "Conv",
        inputs,
        [name],
        name,
        group=layer.outputs if shape.kind == "depthwise" else shape.groups,
        strides=shape.stride,
        pads=shape.padding * 2,
        dilations=shape.dilation,
    )


def layer_times(nodes: Iterable[tuple[str, float]]) -> Mapping[int, float]:
    """Return layer number -> time, from the names and times of the nodes that ran; others are left out."""
    found: dict[int, float] = {}
    for name, time in nodes:
        match = NAME.match(name)
        if match is not None:
            found[int(match[1])] = found.get(int(match[1]), 0.0) + time
    return found
