"""The closest 8-bit form of an encoder: a scale for every short block of weights, and of activations as they come.

The rule: symmetric int8 around 128, blocks along the inputs of a layer, zero-padded to whole blocks. Computed by
`MatMulNBits` (com.microsoft) with accuracy_level 4: int8 products, activations quantized block by block as well. It is
slower than whole-row int8 (measured: 0.72 against 0.38 of fp32's time, AVX-512 VNNI), and nearer to float.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.errors import ModelError
from edgeexport.quantization.channels import linear_nodes, store, weight_matrix
from edgeexport.quantization.integer import (
    LEAST_WEIGHTS,
    MICROSOFT,
    finish,
    label,
    quantize_tables,
    scopes,
    take_bias,
)
from edgeexport.records.base import file_digest
from edgeexport.records.encoder import EncoderPlan

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto, NodeProto

BLOCK = 64
FLOOR = "1.22"
_LEAST_SCALE = 2.0**-60


def quantize_blockwise(
    model_path: Path, *, out: Path, block: int = BLOCK, keep_float: Mapping[str, str] | None = None
) -> EncoderPlan:
    """Write the blockwise form of an encoder; say what was quantized. Raises ModelError when nothing can be.

    block: a power of two from 16 to 256.
    """
    if block not in {16, 32, 64, 128, 256}:
        raise ModelError(f"blocks of {block} weights: onnxruntime knows 16, 32, 64, 128 and 256")
    model = graph.load(model_path)
    kept, done = dict(keep_float or {}), dict[str, str]()
    for part, visible in scopes(model):
        for node in linear_nodes(part, visible):
            weight = visible[node.input[1]]
            if node.name in kept:
                continue
            if weight.ndim != 2 or weight.dtype.name != "float32" or weight.size < LEAST_WEIGHTS:
                kept[label(node)] = f"its weight is not a float32 matrix of at least {LEAST_WEIGHTS} values"
                continue
            _blockwise_linear(part, node, weight=weight, block=block, visible=visible)
            done[label(node)] = f"int8 weights and dynamic int8 activations in blocks of {block}"
    done.update(quantize_tables(model))
    if not done:
        raise ModelError("it has no linear layer and no table that can be int8")
    finish(model, out)
    return EncoderPlan(file_digest(model_path), "blockwise", done, kept, FLOOR)


def blocks(matrix: NDArray[Any], block: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (integers, scales) of a weight (inputs, outputs): (outputs, count, block) uint8 and (outputs, count)."""
    import numpy as np

    inputs, outputs = matrix.shape
    count = -(-inputs // block)
    padded = np.zeros((outputs, count * block), np.float32)
    padded[:, :inputs] = matrix.T
    parts = padded.reshape(outputs, count, block)
    scales = np.maximum(np.abs(parts).max(axis=2) / np.float32(127), np.float32(_LEAST_SCALE)).astype(np.float32)
    integers = np.clip(np.rint(parts / scales[:, :, None]), -127, 127) + 128
    return integers.astype(np.uint8), scales


def _blockwise_linear(
    part: GraphProto, node: NodeProto, *, weight: NDArray[Any], block: int, visible: Mapping[str, NDArray[Any]]
) -> None:
    from onnx import helper

    matrix = weight_matrix(node, weight)
    integers, scales = blocks(matrix, block)
    bias, result = take_bias(part, node, stored=visible)
    name = node.input[1]
    inputs = [node.input[0], store(part, f"{name}_blocks", value=integers), store(part, f"{name}_scales", value=scales)]
    inputs += ["", "", bias] if bias else []
    attributes = {"K": matrix.shape[0], "N": matrix.shape[1], "bits": 8, "block_size": block, "accuracy_level": 4}
    node.CopyFrom(helper.make_node("MatMulNBits", inputs, [result], node.name, domain=MICROSOFT, **attributes))
