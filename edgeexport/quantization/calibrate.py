"""Calibration: run the fp32 model over samples and note what range each tensor takes.

The rule: one pass, memory flat in the number of samples. A NaN or an infinity, in a sample or inside the model, is an
error that names the sample and the tensor, never a range.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.errors import DataError
from edgeexport.progress import Progress, silent
from edgeexport.quantization.clipping import METHODS, Limits
from edgeexport.quantization.histogram import Histogram
from edgeexport.quantization.placement import place, prepared, supported
from edgeexport.records.base import file_digest
from edgeexport.records.ranges import Range, Ranges
from edgeexport.runtimes.ort import OrtSession, open_session
from edgeexport.runtimes.protocol import Feeds

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

# The graph as it stands, so that the numbers are those that onnxruntime's own calibration sees.
_OPTIONS = {
    "graph_optimization_level": "disable",
    "enable_cpu_mem_arena": False,
    "config_entries": {"session.intra_op.allow_spinning": "0"},
}


@dataclass
class Seen:
    """What one tensor showed so far."""

    low: float = math.inf
    high: float = -math.inf
    histogram: Histogram = field(default_factory=Histogram)

    def add(self, values: NDArray[Any], limits: Limits, *, count: bool) -> None:
        """Take in one tensor with its own extremes; count: into the histogram too."""
        low, high = limits
        self.low, self.high = min(self.low, low), max(self.high, high)
        if count:
            self.histogram.add(values, largest=max(-low, high))


def calibrate(
    model_path: Path,
    samples: Iterable[Feeds],
    *,
    method: str = "minmax",
    samples_digest: str,
    progress: Progress = silent,
    symmetric: bool = False,
) -> Ranges:
    """Return the ranges of every tensor that can be a quantization point.

    samples: feeds in the model's signature, any batch size. method: one of METHODS. symmetric: the ranges will serve
    a symmetric number format (which has more points). "minmax" equals onnxruntime's MinMaxCalibrater bit for bit.
    Raises DataError for no samples, samples that do not fit, and values that are not finite.
    """
    if method not in METHODS:
        raise DataError(f"unknown calibration method {method!r}", next_step="known: " + ", ".join(METHODS))
    model = graph.load(model_path)
    tensors = calibration_points(model, symmetric=symmetric)
    session = _exposed(model, tensors)
    seen = {name: Seen() for name in tensors}
    total = len(samples) if isinstance(samples, Sized) else None
    count = 0
    for index, feeds in enumerate(samples):
        _observe(session, feeds, seen=seen, index=index, histograms=method != "minmax")
        count = index + 1
        progress(f"calibrate: sample {count}", count / total if total else None)
    if not count:
        raise DataError("there are no calibration samples", next_step="give at least one; 100 to 500 are usual")
    return Ranges(
        method=method,
        model_digest=file_digest(model_path),
        samples_digest=samples_digest,
        count=count,
        tensors={name: _range(method, item) for name, item in seen.items() if item.low <= item.high},
    )


def calibration_points(model: ModelProto, *, symmetric: bool = False) -> tuple[str, ...]:
    """Return the tensors that carry a scale when every operator that can run in integers does, in graph order."""
    ready = prepared(model)
    return tuple(place(ready, supported(ready), symmetric=symmetric).activations)


def watch(model: ModelProto, tensors: tuple[str, ...], *, samples: Iterable[Feeds]) -> Iterator[dict[str, Limits]]:
    """Run samples one by one; yield the least and greatest value of each of these tensors that is not empty.

    Raises DataError for samples that do not fit and values that are not finite.
    """
    session = _exposed(model, tensors)
    for index, feeds in enumerate(samples):
        values = {**feeds, **session.run(feeds)}
        places = {name: f"sample {index}, tensor {name!r}" for name in tensors if values[name].size}
        yield {name: _extremes(values[name], where=where) for name, where in places.items()}


def _exposed(model: ModelProto, tensors: tuple[str, ...]) -> OrtSession:
    inputs = {value.name for value in model.graph.input}
    exposed = graph.expose(model, [name for name in tensors if name not in inputs])
    return open_session(exposed.SerializeToString(), threads=0, options=_OPTIONS)


def _observe(session: OrtSession, feeds: Feeds, *, seen: dict[str, Seen], index: int, histograms: bool) -> None:
    """Run one sample and take in its tensors, in graph order, so that an error names the first bad one."""
    for name, value in feeds.items():
        if value.dtype.kind == "f":
            _extremes(value, where=f"calibration sample {index}, input {name!r}")
    try:
        values = {**feeds, **session.run(feeds)}
    except DataError as error:
        raise DataError(f"calibration sample {index}: {error}") from error
    for name, item in seen.items():
        value = values[name]
        if value.size:
            item.add(value, _extremes(value, where=f"calibration sample {index}, tensor {name!r}"), count=histograms)


def _extremes(value: NDArray[Any], *, where: str) -> Limits:
    """Return the least and greatest value. Raises DataError if any is not finite."""
    import numpy as np

    if not value.size:
        return 0.0, 0.0
    with np.errstate(invalid="ignore"):
        low, high = float(value.min()), float(value.max())
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    bad = int(np.count_nonzero(~np.isfinite(value)))
    first = value[~np.isfinite(value)].ravel()[0]
    raise DataError(
        f"{where}: {bad} of {value.size} values are not finite, the first is {first}",
        next_step="remove or repair that sample; an infinity inside the model means values that overflow float32",
    )


def _range(method: str, seen: Seen) -> Range:
    low, high = METHODS[method](seen.histogram, (seen.low, seen.high))
    return Range(low=low, high=high, seen_low=seen.low, seen_high=seen.high)
