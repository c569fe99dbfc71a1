"""The saturation predictor: could `vpmaddubsw`, the 8-bit dot product of AVX2, leave its 16 bits in this file?

The rule: conservative. An activation may be 255 anywhere, and any two weights of an output channel may be paired:
onnxruntime's kernels pair neighbours along the reduction axis, but in which order depends on layout and kernel. So
"impossible" is a proof and "possible" is not. Signed activations count alike: they are shifted to unsigned ones first.
VNNI adds in 32 bits (Intel 64 manual, VPDPBUSD), and so do Arm's dot products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.records.saturation import LEAST, MOST, LayerSaturation, Saturation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

# The linear layer of com.microsoft that reads integers and writes floats.
DYNAMIC_LINEAR = "MatMulIntegerToFloat"
_WEIGHT_INPUT = {"Conv": 1, "Gemm": 1, "MatMul": 1, "MatMulInteger": 1, "ConvInteger": 1, DYNAMIC_LINEAR: 1}
_LARGEST_ACTIVATION = 255


def predict_saturation(model: ModelProto) -> Saturation:
    """Look at the stored int8 weights of a model, in QDQ form or quantized dynamically, node by node.

    Unsigned weights, which dynamic quantization can write too, are multiplied in 16 bits and cannot saturate.
    """
    stored = {name: value for name, value in graph.initializers(model).items() if value.dtype.name == "int8"}
    made = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
    weights = {name: name for name in stored} | {node.output[0]: node.input[0] for node in made}
    layers = []
    for node in model.graph.node:
        place = _WEIGHT_INPUT.get(node.op_type)
        weight = weights.get(node.input[place]) if place is not None and len(node.input) > place else None
        if weight is not None:
            layers.append(_layer(node, weight, rows=_rows(node, stored[weight])))
    return Saturation(tuple(layers))


def _rows(node: NodeProto, weight: NDArray[Any]) -> NDArray[np.int64]:
    """Return one row of weights for each output channel, in the order of channels-last convolution."""
    import numpy as np
    from onnx import helper

    if node.op_type in {"Conv", "ConvInteger"}:
        return np.moveaxis(weight, 1, -1).reshape(len(weight), -1).astype(np.int64)
    transposed = any(item.name == "transB" and helper.get_attribute_value(item) for item in node.attribute)
    matrix = weight if transposed else weight.swapaxes(-1, -2)
    return matrix.reshape(-1, matrix.shape[-1]).astype(np.int64)


def _layer(node: NodeProto, weight: str, *, rows: NDArray[np.int64]) -> LayerSaturation:
    import numpy as np

    alone = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    neighbours = _LARGEST_ACTIVATION * (alone[:, 0::2] + alone[:, 1::2])
    # Zero may stand for a partner that is not there, or for an activation of zero.
    ordered = np.sort(np.pad(rows, ((0, 0), (2, 0))), axis=1)
    return LayerSaturation(
        node=node.name or node.output[0],
        op=node.op_type,
        weight=weight,
        lowest=_LARGEST_ACTIVATION * int(ordered[:, :2].sum(axis=1).min()),
        highest=_LARGEST_ACTIVATION * int(ordered[:, -2:].sum(axis=1).max()),
        pairs=int(neighbours.size),
        over=int(np.count_nonzero((neighbours > MOST) | (neighbours < LEAST))),
    )
