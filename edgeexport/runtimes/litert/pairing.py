"""Which ONNX tensor does a .tflite tensor carry? Found by value, on a few probes, never by name or position.

The rule: a pair holds on every probe, in one layout (the same, or NCHW against NHWC). Two of the probes are the real
samples amplified, one of them negated, so that a clip bites and what stands before it differs from what stands after
it. All ONNX tensors that fit are kept, in graph order: whoever uses the pairs judges whether they mean the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeexport.errors import DataError, MissingExtra, ModelError
from edgeexport.records.artifact import Signature
from edgeexport.runtimes.litert import flatbuffer, session
from edgeexport.runtimes.protocol import adapt_feeds

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from edgeexport.runtimes.protocol import Feeds

# Float kernels differ in summation order only: about 1e-5 of the largest value after a hundred layers.
TOLERANCE = 5e-4
REAL_PROBES = 2
# NHWC <- NCHW for activations; OHWI, depthwise 1HWC and transposed Gemm <- ONNX for weights.
_Axes: TypeAlias = tuple[tuple[int, ...], ...]
_ACTIVATION_AXES: dict[int, _Axes] = {4: ((0, 1, 2, 3), (0, 2, 3, 1))}
_WEIGHT_AXES: dict[int, _Axes] = {4: ((0, 2, 3, 1), (1, 2, 3, 0), (0, 1, 2, 3)), 2: ((0, 1), (1, 0))}


def real_probes(samples: Iterable[Feeds]) -> list[Feeds]:
    """Return the first samples, enough to pair with. Raises DataError when there is none."""
    real = list(itertools.islice(samples, REAL_PROBES))
    if not real:
        raise DataError("no sample to pair LiteRT tensors with: the calibration set is empty")
    return real


def with_amplified(real: list[Feeds]) -> list[Feeds]:
    """Return the samples and two amplified ones (times 8, times -5 in their float inputs)."""
    return [*real, *(_amplified(feeds, factor) for feeds, factor in zip(real * 2, (8.0, -5.0), strict=False))]


def pair_activations(
    onnx_path: Path, tflite_path: Path, *, spine: Signature, file: Signature, feeds: Sequence[Feeds]
) -> dict[int, tuple[str, ...]]:
    """Return tflite tensor index -> names of all ONNX tensors with the same values on every probe, in graph order.

    spine, file: signatures of the two files. Raises ModelError when no probe gives finite values.
    """
    wanted = flatbuffer.activations(flatbuffer.read(tflite_path))
    reference = _onnx_runner(onnx_path)
    opened = session.interpreter(tflite_path, keep_all=True)
    found: dict[int, tuple[str, ...]] | None = None
    for probe in feeds:
        theirs = reference(probe)
        ours = _tflite_values(opened, adapt_feeds(probe, spine, to=file), indices=list(wanted))
        if not _finite(ours):
            continue
        candidates = {index: found[index] if found else tuple(theirs) for index in wanted}
        found = {i: _fitting(ours[i], theirs, names=names, layouts=_ACTIVATION_AXES) for i, names in candidates.items()}
    if found is None:
        raise ModelError(f"{tflite_path.name}: no sample gives finite values in LiteRT", next_step="check the samples")
    return found


def pair_constants(model: Any, weights: dict[str, NDArray[Any]]) -> dict[int, str]:
    """Return tflite tensor index -> name of the ONNX initializer with the same values, where exactly one fits."""
    found = {}
    for index, values in flatbuffer.constants(model).items():
        names = _fitting(values, weights, names=tuple(weights), layouts=_WEIGHT_AXES) if values.size > 1 else ()
        if len(names) == 1:
            found[index] = names[0]
    return found


def weight_axes(values: NDArray[Any], weight: NDArray[Any]) -> tuple[int, ...] | None:
    """Return the permutation that turns the ONNX weight into the tflite one, None if there is none."""
    import numpy as np

    for axes in _WEIGHT_AXES.get(weight.ndim, ()):
        moved = weight.transpose(axes)
        if moved.shape == values.shape and np.array_equal(moved, values):
            return axes
    return None


def _fitting(
    values: NDArray[Any],
    others: dict[str, NDArray[Any]],
    *,
    names: Iterable[str],
    layouts: Mapping[int, _Axes],
) -> tuple[str, ...]:
    """The names among `names` whose array equals `values` in one of the layouts."""
    import numpy as np

    if not values.size:
        return ()
    flat = values.reshape(-1)
    bound = TOLERANCE * float(np.max(np.abs(flat))) + 1e-12
    low, high = float(flat.min()), float(flat.max())
    fits = []
    for name in names:
        other = others[name]
        if other.size != flat.size or abs(float(other.min()) - low) > bound or abs(float(other.max()) - high) > bound:
            continue
        permutations = layouts.get(other.ndim, (tuple(range(other.ndim)),))
        if any(float(np.max(np.abs(other.transpose(axes).reshape(-1) - flat))) <= bound for axes in permutations):
            fits.append(name)
    return tuple(fits)


def _onnx_runner(path: Path) -> Any:
    """A function feeds -> {name: values} of all float tensors of the ONNX model, its inputs included."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", extra="ort", purpose="pairing with the ONNX model") from error
    from edgeexport import graph

    model = graph.load(path)
    names = _computed(model)
    exposed = graph.expose(model, names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    opened = onnxruntime.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(feeds: Feeds) -> dict[str, NDArray[Any]]:
        inputs = {name: value for name, value in feeds.items() if value.dtype.kind == "f"}
        return {**inputs, **dict(zip(names, opened.run(names, dict(feeds)), strict=True))}

    return run


def _computed(model: onnx.ModelProto) -> list[str]:
    """Float tensors that nodes compute, in graph order."""
    from edgeexport import graph

    computed = {name for node in model.graph.node for name in node.output}
    return [name for name in graph.float_tensors(model) if name in computed]


def _tflite_values(opened: Any, feeds: Feeds, *, indices: list[int]) -> dict[int, NDArray[Any]]:
    inputs = session.input_indices(opened)
    for name, value in feeds.items():
        opened.set_tensor(inputs[name], value)
    opened.invoke()
    return {index: opened.get_tensor(index) for index in indices}


def _finite(values: dict[int, NDArray[Any]]) -> bool:
    import numpy as np

    return all(bool(np.isfinite(value).all()) for value in values.values())


def _amplified(feeds: Feeds, factor: float) -> Feeds:
    return {n: value * value.dtype.type(factor) if value.dtype.kind == "f" else value for n, value in feeds.items()}
