"""Cross-layer equalization: channels of unlike size are brought to one, in the weights, before a scale is chosen.

The rule: the float model answers as before, on any input. Factors are chosen by the rounding noise that they leave
(of the activations and of all weights around them), never by a formula alone, and where they win nothing they are 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.errors import DataError
from edgeexport.progress import Progress, silent
from edgeexport.quantization.layers import Layer
from edgeexport.quantization.placement import prepared
from edgeexport.quantization.scaling import Scalable, scalable
from edgeexport.records.base import file_digest
from edgeexport.records.equalized import Equalized, Scaled
from edgeexport.runtimes.ort import open_session
from edgeexport.runtimes.protocol import Feeds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto

    Floats = NDArray[np.float64]

# Powers of the sizes of activations, readers' columns and makers' rows that are tried as factors.
_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
_LARGEST = 64.0
_LEAST_GAIN_DB = 0.05


@dataclass(frozen=True)
class Seen:
    """Of one tensor, per channel: the largest magnitude and the mean square over samples."""

    peak: Floats
    power: Floats


def equalize(
    model_path: Path, samples: Iterable[Feeds], *, out: Path, per_channel: bool = True, progress: Progress = silent
) -> Equalized:
    """Write the model with equalized channels between Conv and Gemm layers; return what was changed and what was not.

    Nagel et al. 2019 (arXiv 1906.04721), extended: residual streams are scaled as one, and of the factors
    peak^-a · column^b · row^-c those are taken that leave the least noise. per_channel: how weights will be stored.
    A set that a Clip (ReLU6) cuts is left, since its bound cannot grow channel by channel.
    Raises DataError for no samples.
    """
    model = prepared(graph.load(model_path))
    found = scalable(model)
    sets = [one for one in found if not one.fixed]
    seen = _channel_sizes(model, [name for one in sets for name in one.tensors], samples=samples)
    stored = graph.initializers(model)
    changed: dict[str, Scaled] = {}
    left = {one.tensors[0]: one.fixed for one in found if one.fixed and one.tensors}
    for index, one in enumerate(sets):
        progress(f"equalize: {one.tensors[0]}", index / len(sets))
        noise = _Noise(one, stored, seen=seen, per_channel=per_channel)
        factors, gain = _least(noise)
        if gain < _LEAST_GAIN_DB:
            left[one.tensors[0]] = "no factors leave less noise"
            continue
        stored |= _scaled(one, factors, stored=stored)
        for name in one.tensors:
            seen[name] = Seen(seen[name].peak * factors, seen[name].power * factors**2)
        changed[one.tensors[0]] = Scaled(len(factors), float(factors.min()), float(factors.max()), gain)
    source = graph.load(model_path)
    weights = {name: stored[name] for name in graph.initializers(source)}
    graph.save(graph.with_initializers(source, weights) if changed else source, out)
    return Equalized(file_digest(model_path), file_digest(out), changed, left)


def _channel_sizes(model: ModelProto, tensors: list[str], *, samples: Iterable[Feeds]) -> dict[str, Seen]:
    """One pass: peak and power of every channel (axis 1) of these tensors."""
    import numpy as np

    session = open_session(graph.expose(model, tensors).SerializeToString(), threads=0)
    peaks: dict[str, Any] = dict.fromkeys(tensors, 0.0)
    powers: dict[str, Any] = dict.fromkeys(tensors, 0.0)
    count = 0
    for count, feeds in enumerate(samples, 1):  # noqa: B007
        values = session.run(feeds)
        for name in tensors:
            value = np.moveaxis(values[name], 1, -1)
            value = value.reshape(-1, value.shape[-1]).astype(np.float64)
            peaks[name] = np.maximum(peaks[name], np.abs(value).max(axis=0))
            powers[name] = powers[name] + np.square(value).mean(axis=0)
    if not count:
        raise DataError("there are no samples to measure channels on", next_step="give those that will calibrate")
    return {name: Seen(peaks[name], powers[name] / count) for name in tensors}


class _Noise:
    """The rounding noise around one set, as a function of its factors, in units of the readers' outputs."""

    def __init__(
        self, one: Scalable, stored: dict[str, NDArray[Any]], *, seen: dict[str, Seen], per_channel: bool
    ) -> None:
        import numpy as np

        self.per_channel = per_channel
        self.columns = [_columns(layer, stored[layer.weight]) for layer in one.readers]
        self.sources = [seen[layer.source] for layer in one.readers]
        self.rows = [np.abs(_rows(layer, stored[layer.weight])).max(axis=1) for layer in one.makers]
        self.inputs = [_input_power(layer, stored[layer.weight], seen=seen) for layer in one.makers]
        self.peak = np.max([seen[name].peak for name in one.tensors], axis=0)

    def __call__(self, factors: Floats) -> float:
        """The sum of squared errors, up to a constant."""
        import numpy as np

        total, gain = 0.0, np.zeros_like(factors)
        for columns, source in zip(self.columns, self.sources, strict=True):
            groups, _, width, _ = columns.shape
            by_channel = factors.reshape(groups, 1, width, 1)
            magnitudes = np.abs(columns / by_channel)
            strength = np.square(magnitudes).sum(axis=(1, 3)).ravel()
            gain += strength * factors**2
            total += ((source.peak * factors).max() / 255) ** 2 * strength.sum()
            steps = magnitudes.max(axis=(2, 3), keepdims=True) if self.per_channel else magnitudes.max()
            power = (source.power * factors**2).reshape(groups, 1, width, 1) * columns.shape[3]
            total += float(((np.broadcast_to(steps, (*columns.shape[:2], 1, 1)) / 127) ** 2 * power).sum())
        if self.per_channel:
            return total  # a maker's row takes its factor into its own scale
        for rows, power in zip(self.rows, self.inputs, strict=True):
            total += float((((rows * factors).max() / 127) ** 2 * power / factors**2 * gain).sum())
        return total


def _least(noise: _Noise) -> tuple[Floats, float]:
    """Return the factors that leave the least noise, and the gain over leaving all as it is, in dB."""
    import numpy as np

    ones = np.ones_like(noise.peak)
    chosen, before = ones, noise(ones)
    least = before
    for factors in _candidates(noise):
        left = noise(factors)
        if left < least:
            chosen, least = factors, left
    return chosen, 10 * math.log10(before / least) if least > 0 else 0.0


def _candidates(noise: _Noise) -> Iterator[Floats]:
    import numpy as np

    columns = np.max([np.abs(each).max(axis=(1, 3)).ravel() for each in noise.columns], axis=0)
    sizes = (noise.peak, columns, np.max(noise.rows, axis=0))
    live = np.all([size > 0 for size in sizes], axis=0)
    if not live.any():
        return
    for first, second, third in product(_POWERS, _POWERS, (0.0,) if noise.per_channel else _POWERS):
        raw = sizes[0][live] ** -first * sizes[1][live] ** second * sizes[2][live] ** -third
        factors = np.ones_like(noise.peak)
        factors[live] = np.clip(raw / np.exp(np.log(raw).mean()), 1 / _LARGEST, _LARGEST)
        yield factors


def _scaled(one: Scalable, factors: Floats, *, stored: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The weights of makers, times the factors, and of readers, divided by them."""
    found: dict[str, NDArray[Any]] = {}
    for layer in one.makers:
        weight = found.get(layer.weight, stored[layer.weight])
        matrix = layer.matrix(weight)
        found[layer.weight] = layer.stored(matrix * factors.reshape(*matrix.shape[:2], 1), weight.shape)
        if layer.bias:
            found[layer.bias] = stored[layer.bias] * factors
    for layer in one.readers:
        weight = found.get(layer.weight, stored[layer.weight])
        columns = _columns(layer, weight)
        groups, outputs, width, _ = columns.shape
        divided = columns / factors.reshape(groups, 1, width, 1)
        found[layer.weight] = layer.stored(divided.reshape(groups, outputs, -1), weight.shape)
    return {name: value.astype(stored[name].dtype) for name, value in found.items()}


def _columns(layer: Layer, weight: NDArray[Any]) -> Floats:
    """The weight as (groups, outputs of a group, channels of a group, kernel)."""
    matrix = layer.matrix(weight).astype("float64")
    return matrix.reshape(*matrix.shape[:2], -1, math.prod(layer.kernel))


def _rows(layer: Layer, weight: NDArray[Any]) -> Floats:
    matrix = layer.matrix(weight).astype("float64")
    return matrix.reshape(matrix.shape[0] * matrix.shape[1], -1)


def _input_power(layer: Layer, weight: NDArray[Any], *, seen: dict[str, Seen]) -> Floats:
    """The mean square of a row's inputs, summed, for each output; 1 a value where the input was not looked at."""
    import numpy as np

    groups, outputs, width, kernel = _columns(layer, weight).shape
    power = seen[layer.source].power if layer.source in seen else np.ones(groups * width)
    return np.repeat(power.reshape(groups, width).sum(axis=1) * kernel, outputs)
