"""Better weights and biases for a plan, from samples: layer by layer, in the order of the graph.

The rule: a layer sees the inputs that the quantized model really gives it, with every layer before it already done, and
aims at what the float model computes. The result is a float model whose weights lie exactly on the plan's grid, so that
`quantize` stores those very integers, for every runtime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeexport import graph
from edgeexport.errors import DataError
from edgeexport.progress import Progress, silent
from edgeexport.quantization.layers import Layer, layers, with_biases
from edgeexport.quantization.moments import Moments, Walk, observe
from edgeexport.quantization.placement import WEIGHT_SUFFIX, prepared
from edgeexport.quantization.qdq import quantize
from edgeexport.quantization.rounding import Grid, compensated, nearest
from edgeexport.records.base import file_digest
from edgeexport.records.plan import QuantizationPlan, WeightPoint
from edgeexport.runtimes.ort_saturation import partners
from edgeexport.runtimes.protocol import Feeds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto

    Choice = Callable[..., tuple[NDArray[np.float64], NDArray[np.float64]]]

# Samples beyond these change a layer's moments by less than they vary.
MOST_SAMPLES = 128


def learn_rounding(
    model_path: Path, plan: QuantizationPlan, *, samples: Iterable[Feeds], out: Path, progress: Progress = silent
) -> QuantizationPlan:
    """Write the model with weights rounded so that each layer's outputs stay, and biases that keep their means.

    Reconstruction layer by layer with quantized inputs (Nagel et al. 2020, AdaRound, arXiv 2004.10568, section 3.4),
    solved in closed form (`rounding.compensated`) instead of by gradients. At most MOST_SAMPLES samples are read.
    Returns the plan for the new file. Raises DataError without samples or for a plan of another model.
    """
    return _relearnt(model_path, plan, samples=samples, out=out, choose=compensated, progress=progress)


def correct_biases(
    model_path: Path, plan: QuantizationPlan, *, samples: Iterable[Feeds], out: Path, progress: Progress = silent
) -> QuantizationPlan:
    """Write the model with weights rounded to nearest and biases that keep the mean of every channel.

    Empirical bias correction (Nagel et al. 2019, arXiv 1906.04721, section 4.2). Returns the plan for the new file.
    Raises DataError without samples or for a plan of another model.
    """
    return _relearnt(model_path, plan, samples=samples, out=out, choose=_nearest, progress=progress)


def _nearest(matrix: NDArray[Any], grid: Grid, *, moments: Moments, alike: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """`nearest` in the shape of a choice that looks at moments."""
    del moments, alike
    return nearest(matrix, grid), grid.scales


def _relearnt(
    model_path: Path,
    plan: QuantizationPlan,
    *,
    samples: Iterable[Feeds],
    out: Path,
    choose: Choice,
    progress: Progress,
) -> QuantizationPlan:
    import numpy as np

    feeds = list(islice(samples, MOST_SAMPLES))
    if not feeds:
        raise DataError("there are no samples to learn from", next_step="give those that calibrated the model")
    quantized = _quantized(model_path, plan, folder=out.parent)
    model = with_biases(graph.load(model_path))
    stored = graph.initializers(model)
    ready = prepared(model)
    walks = (Walk(ready, feeds), Walk(quantized, feeds))
    todo = [layer for layer in layers(ready) if layer.weight in plan.weights]
    nodes = {node.name: node for node in ready.graph.node}
    changed: dict[str, NDArray[Any]] = {}
    points = dict(plan.weights)
    for index, layer in enumerate(todo):
        progress(f"rounding: {layer.node}", index / len(todo))
        matrix = layer.matrix(stored[layer.weight]).astype(np.float64)
        moments = observe(layer, walks, source=_source(quantized, layer), width=matrix.shape[2])
        met = partners(nodes[layer.node], stored[layer.weight].shape) if plan.numbers.fit_pairs else None
        grid = _grid(plan, layer, shape=matrix.shape, met=met)
        point = plan.weights[layer.weight]
        integers, scales = choose(matrix, grid, moments=moments, alike=point.axis is None)
        rounded, points[layer.weight] = integers * scales, _with_scales(point, scales)
        found = {layer.weight: layer.stored(rounded.astype(np.float32), stored[layer.weight].shape)}
        if layer.bias:
            lost = matrix @ moments.mean[:, :, None] - rounded @ moments.quantized_mean[:, :, None]
            found[layer.bias] = (stored[layer.bias] + lost.ravel()).astype(np.float32)
        _store(quantized, found, ratios=(scales / grid.scales).ravel())
        changed |= found
    graph.save(graph.with_initializers(model, changed), out)
    return msgspec.structs.replace(plan, model_digest=file_digest(out), weights=points)


def _source(quantized: ModelProto, layer: Layer) -> str:
    """What the layer's input is called in the QDQ model."""
    return next(str(node.input[0]) for node in quantized.graph.node if node.name == layer.node)


def _grid(plan: QuantizationPlan, layer: Layer, *, shape: tuple[int, ...], met: NDArray[np.int64] | None) -> Grid:
    import numpy as np

    groups, outputs, _ = shape
    scales = np.array(plan.weights[layer.weight].scales, np.float32).astype(np.float64)
    scales = np.broadcast_to(scales, groups * outputs).reshape(groups, outputs, 1)
    return Grid(scales, 64 if plan.numbers.reduce_range else 127, met)


def _quantized(model_path: Path, plan: QuantizationPlan, *, folder: Path) -> ModelProto:
    """The QDQ form of a model as `quantize` writes it, every Conv and Gemm with a bias."""
    with tempfile.TemporaryDirectory(prefix=".rounding-", dir=folder) as place:
        biased, made = Path(place) / "biased.onnx", Path(place) / "int8.onnx"
        if file_digest(model_path) != plan.model_digest:
            quantize(model_path, plan, out=made)  # says what differs
        graph.save(with_biases(graph.load(model_path)), biased)
        quantize(biased, msgspec.structs.replace(plan, model_digest=file_digest(biased)), out=made)
        return graph.load(made)


def _with_scales(point: WeightPoint, scales: NDArray[np.float64]) -> WeightPoint:
    """The point with these scales: one for each output, or the one that all have."""
    listed = tuple(scales.ravel().tolist())
    return msgspec.structs.replace(point, scales=listed[: len(point.scales)])


def _store(quantized: ModelProto, found: dict[str, NDArray[Any]], *, ratios: NDArray[np.float64]) -> None:
    """Put a layer's new weight and bias into the QDQ model, in place. ratios: of the new scales to the old ones."""
    import numpy as np
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in quantized.graph.initializer}
    readers = {node.input[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    for name, value in found.items():
        tensor = tensors[name + WEIGHT_SUFFIX]
        reader = readers[tensor.name]
        steps = numpy_helper.to_array(tensors[reader.input[1]]).astype(np.float64)
        steps = (steps * (ratios[: steps.size].reshape(steps.shape))).astype(np.float32)
        reader.input[1] = f"{name}.steps"
        quantized.graph.initializer.append(numpy_helper.from_array(steps, reader.input[1]))
        axis = next((item.i for item in reader.attribute if item.name == "axis"), 1) % value.ndim
        if steps.ndim:
            steps = steps.reshape([-1 if index == axis else 1 for index in range(value.ndim)])
        kind = numpy_helper.to_array(tensor).dtype
        bounds = np.iinfo(kind)
        integers = np.clip(np.rint(value / steps.astype(np.float64)), bounds.min, bounds.max).astype(kind)
        tensor.CopyFrom(numpy_helper.from_array(integers.reshape(tuple(tensor.dims)), tensor.name))
