"""A weighted node as a matrix product: its inputs as rows, its weight as a matrix for each group.

The rule: `rows(x) @ matrix(w).T + bias` is the node's output, position by position; what does not fit that form (sizes
of padding that depend on the input, a weight that other nodes read too) is no layer and stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.quantization.placement import WEIGHTED, attribute, uses

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto


@dataclass(frozen=True)
class Layer:
    """One Conv, Gemm or MatMul with a weight of its own. bias: empty when it has none."""

    node: str
    op: str
    source: str
    result: str
    weight: str
    bias: str
    groups: int = 1
    transposed: bool = False
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()

    def matrix(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return the weight as (groups, outputs of a group, inputs of a group · kernel)."""
        if self.op == "Conv":
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        return (weight if self.transposed else weight.T)[None]

    def stored(self, matrix: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a matrix in the shape in which the model stores the weight."""
        return matrix.reshape(shape) if self.op == "Conv" or self.transposed else matrix[0].T.copy()

    def positions(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the places that the node computes for an input of this shape, channels left out."""
        if self.op != "Conv":
            return shape[:-1]
        reach = [(size - 1) * dilation + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True)]
        sizes = [size + sum(pad) - far for size, pad, far in zip(shape[2:], self.pads, reach, strict=True)]
        return (shape[0], *(size // stride + 1 for size, stride in zip(sizes, self.strides, strict=True)))

    def rows(self, value: NDArray[Any], places: tuple[NDArray[Any], ...]) -> NDArray[Any]:
        """Return what the weight is multiplied with at these places: (groups, places, inputs of a group · kernel)."""
        import numpy as np

        if self.op != "Conv":
            taken: NDArray[Any] = value[places]
            return taken[None]
        padded = np.pad(value, ((0, 0), (0, 0), *self.pads)) if any(map(any, self.pads)) else value
        reach = tuple((size - 1) * dilation + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True))
        windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, padded.ndim)))
        steps = (slice(None), slice(None), *(slice(None, None, stride) for stride in self.strides))
        windows = windows[(*steps, *(slice(None, None, dilation) for dilation in self.dilations))]
        taken = np.moveaxis(windows, 1, len(places))[places]
        return np.ascontiguousarray(taken.reshape(len(taken), self.groups, -1).transpose(1, 0, 2))


def layers(model: ModelProto) -> tuple[Layer, ...]:
    """Return the layers of a model in graph order."""
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found = (_layer(model, node, stored=stored) for node in model.graph.node if node.op_type in WEIGHTED)
    return tuple(layer for layer in found if layer is not None)


def with_biases(model: ModelProto) -> ModelProto:
    """Return a copy in which every Conv and Gemm layer has a bias, of zeros where there was none."""
    import numpy as np
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = graph.initializers(copy)
    lacking = {layer.node: layer for layer in layers(model) if not layer.bias and layer.op != "MatMul"}
    for node in copy.graph.node:
        layer = lacking.get(node.name)
        if layer is None:
            continue
        name = f"{layer.weight}.added_bias"
        zeros = np.zeros(layer.matrix(stored[layer.weight]).shape[:2], np.float32).ravel()
        copy.graph.initializer.append(onnx.numpy_helper.from_array(zeros, name))
        del node.input[2:]
        node.input.append(name)
    return copy


def _layer(model: ModelProto, node: NodeProto, *, stored: dict[str, tuple[int, ...]]) -> Layer | None:
    inputs = [*node.input, ""]
    weight, bias = inputs[1], inputs[2]
    if weight not in stored or node.input[0] in stored or uses(model, weight) != 1 or not node.name:
        return None
    if bias and (bias not in stored or uses(model, bias) != 1 or len(stored[bias]) != 1):
        return None
    layer = Layer(node.name, node.op_type, inputs[0], node.output[0], weight=weight, bias=bias)
    if node.op_type == "Conv":
        return _convolution(node, stored[weight], layer=layer)
    scaled = any(attribute(node, name, default=1.0) != 1.0 for name in ("alpha", "beta"))
    if len(stored[weight]) != 2 or scaled or attribute(node, "transA", default=0):
        return None
    return replace(layer, transposed=bool(attribute(node, "transB", default=0)))


def _convolution(node: NodeProto, shape: tuple[int, ...], *, layer: Layer) -> Layer | None:
    rank = len(shape) - 2
    if attribute(node, "auto_pad", default=b"NOTSET") not in {b"NOTSET", b"VALID"}:
        return None
    pads = attribute(node, "pads", default=[0] * 2 * rank)
    return replace(
        layer,
        groups=attribute(node, "group", default=1),
        kernel=shape[2:],
        strides=tuple(attribute(node, "strides", default=[1] * rank)),
        dilations=tuple(attribute(node, "dilations", default=[1] * rank)),
        pads=tuple(zip(pads[:rank], pads[rank:], strict=True)),
    )
