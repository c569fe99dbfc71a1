"""The saturation predictor: could `vpmaddubsw`, the 8-bit dot product of AVX2, leave its 16 bits in this file?

The rule: an activation may be 255 anywhere. Weights meet as onnxruntime's kernels pack them: the first with the second,
the third with the fourth and so on along what an output sums up, convolutions with their channels last, group by group.
Convolutions with one channel in and out of each group multiply in 16 and add in 32 bits. Both were found by planting
two large weights in all places (QLinearConv of rank 1 to 3, QLinearMatMul, QGemm, MatMulInteger and its fused forms;
onnxruntime 1.32 on Zen 3), and a test plants some again. Signed activations are shifted to unsigned ones first.
VNNI adds in 32 bits (Intel 64 manual, VPDPBUSD), and so do Arm's dot products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeexport.graph.walk import graphs
from edgeexport.records.saturation import LEAST, MOST, LayerSaturation, Saturation
from edgeexport.runtimes.ort_kernels import CHANNELS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

# The linear layer of com.microsoft that reads integers and writes floats.
DYNAMIC_LINEAR = "MatMulIntegerToFloat"
_WEIGHT_INPUT = {"Conv": 1, "Gemm": 1, "MatMul": 1, "MatMulInteger": 1, "ConvInteger": 1, DYNAMIC_LINEAR: 1}
_CONVOLUTIONS = ("Conv", "ConvInteger")
_LARGEST_ACTIVATION = 255


def predict_saturation(model: ModelProto) -> Saturation:
    """Look at the stored int8 weights of a model, in QDQ form or quantized dynamically, node by node.

    Branches of If and bodies of loops are walked too. Unsigned weights, which dynamic quantization can write as well,
    are multiplied in 16 bits and cannot saturate.
    """
    from onnx import TensorProto, numpy_helper

    stored: dict[str, NDArray[Any]] = {}
    weights: dict[str, str] = {}
    layers = []
    for part, _ in graphs(model):
        kept = [tensor for tensor in part.initializer if tensor.data_type == TensorProto.INT8]
        stored |= {tensor.name: numpy_helper.to_array(tensor) for tensor in kept}
        weights |= {tensor.name: tensor.name for tensor in kept}
        made = [node for node in part.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
        weights |= {node.output[0]: node.input[0] for node in made}
        for node in part.node:
            place = _WEIGHT_INPUT.get(node.op_type)
            weight = weights.get(node.input[place]) if place is not None and len(node.input) > place else None
            if weight is not None:
                layers.append(_layer(node, weight, stored=stored[weight]))
    return Saturation(tuple(layers))


def rows(node: NodeProto, weight: NDArray[Any]) -> NDArray[Any]:
    """Return a node's weight as (outputs, inputs of an output): one row for each output channel, in stored order."""
    if node.op_type in _CONVOLUTIONS:
        return weight.reshape(len(weight), -1)
    matrix = weight if _transposed(node) else weight.swapaxes(-1, -2)
    return matrix.reshape(-1, matrix.shape[-1])


def from_rows(node: NodeProto, values: NDArray[Any], *, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the `rows` of a weight in the shape in which the node stores it."""
    if node.op_type in _CONVOLUTIONS or _transposed(node):
        return values.reshape(shape)
    return values.reshape(*shape[:-2], shape[-1], shape[-2]).swapaxes(-1, -2)


def partners(node: NodeProto, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return for every column of `rows` the column whose product is added to its own in 16 bits: (ways, columns).

    shape: of the stored weight. A column that meets no other is its own partner. A convolution whose channels do not
    come in fours has two ways, as it stands and as `for_integer_kernels` may store it, with channels of zeros added.
    """
    import numpy as np

    if node.op_type not in _CONVOLUTIONS:
        return neighbours(np.arange(shape[-1] if _transposed(node) else shape[-2]))[None]
    order = np.arange(int(np.prod(shape[1:])))
    if _multiplies_in_16_bits(node, shape):
        return order[None]
    stored = order.reshape(shape[1:])
    aligned = np.pad(stored, [(0, -shape[1] % CHANNELS), *[(0, 0)] * (len(shape) - 2)], constant_values=-1)
    ways = [stored, *([aligned] if _groups(node) == 1 and len(aligned) > len(stored) else [])]
    return np.stack([neighbours(np.moveaxis(way, 0, -1).reshape(-1)) for way in ways])


def neighbours(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each column's partner when a kernel takes them in this order: first with second, third with fourth.

    order: column numbers, each once; -1 for zeros that are no column.
    """
    import numpy as np

    met = np.arange(order.max() + 1)
    pairs = order[: len(order) // 2 * 2].reshape(-1, 2)
    pairs = pairs[(pairs >= 0).all(axis=1)]
    met[pairs] = pairs[:, ::-1]
    return met


def _transposed(node: NodeProto) -> bool:
    return any(item.name == "transB" and item.i for item in node.attribute)


def _multiplies_in_16_bits(node: NodeProto, shape: tuple[int, ...]) -> bool:
    """Whether a node is a depthwise convolution: one channel in and out of every group."""
    return bool(node.op_type == "Conv" and _groups(node) == shape[0] > 1 and shape[1] == 1)


def _groups(node: NodeProto) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "group"), 1)


def _layer(node: NodeProto, weight: str, *, stored: NDArray[Any]) -> LayerSaturation:
    import numpy as np

    met = partners(node, stored.shape)
    ways, firsts = np.nonzero(met > np.arange(met.shape[1]))
    values = rows(node, stored).astype(np.int64)
    one, other = values[:, firsts], values[:, met[ways, firsts]]
    # An activation of zero takes a weight out of the sum.
    least = _LARGEST_ACTIVATION * (np.minimum(one, 0) + np.minimum(other, 0))
    most = _LARGEST_ACTIVATION * (np.maximum(one, 0) + np.maximum(other, 0))
    return LayerSaturation(
        node=node.name or node.output[0],
        op=node.op_type,
        weight=weight,
        lowest=int(least.min(initial=0)),
        highest=int(most.max(initial=0)),
        pairs=int(most.size),
        over=int(np.count_nonzero((most > MOST) | (least < LEAST))),
    )
