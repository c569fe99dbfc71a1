"""Percentile, entropy and squared error against references on the raw values, without our histogram."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeexport.quantization.clipping import LEVELS, METHODS, PERCENTILE
from edgeexport.quantization.histogram import Histogram
from edgeexport.quantization.seen import Seen

Values = NDArray[np.float32]


def _normal(count: int) -> Values:
    return np.random.default_rng(5).standard_normal(count).astype(np.float32)


def _relu_with_a_tail() -> Values:
    values = np.maximum(_normal(200_000), 0)
    values[:20] *= 12
    return values


def _laplace() -> Values:
    return np.random.default_rng(6).laplace(0.3, 1.0, 150_000).astype(np.float32)


DISTRIBUTIONS = {
    "relu with a tail": _relu_with_a_tail(),
    "laplace around 0.3": _laplace(),
    "lopsided normal": np.where(_normal(150_000) < 0, 0.1, 1.0).astype(np.float32) * _normal(150_000) * 7,
    "clipped at six": np.clip(_normal(150_000) * 4, 0, 6),
}
each_distribution = pytest.mark.parametrize("values", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS.keys())


def seen_of(values: Values, parts: int = 7) -> Seen:
    """Take values in, in several parts of different magnitude, so that the histogram has to grow on the way."""
    seen = Seen()
    for part in np.array_split(np.sort(values)[np.argsort(np.abs(np.sort(values)), kind="stable")], parts):
        seen.add(part, where="test", count=True)
    return seen


def reference_width(values: Values) -> float:
    """The width of a bin as it is documented: 4096 of them reach from zero to the next power of two."""
    return 2.0 ** (math.floor(math.log2(float(np.abs(values).max()))) + 1) / 4096


def reference_divergence(inside: NDArray[np.int64], below: int, above: int) -> float:
    """Kullback-Leibler divergence of a distribution with its clipped ends and its quantized form, term by term."""
    real = [float(count) for count in inside]
    real[0] += below
    real[-1] += above
    quantized = [0.0] * len(inside)
    for level in range(LEVELS):
        bins = range(level * len(inside) // LEVELS, (level + 1) * len(inside) // LEVELS)
        filled = [index for index in bins if inside[index]]
        for index in filled:
            quantized[index] = sum(inside[other] for other in filled) / len(filled) / inside.sum()
    total = sum(real)
    return math.fsum(p / total * math.log(p / total / max(q, 1e-7)) for p, q in zip(real, quantized, strict=True) if p)


def reference_cost(values: Values, bins: int) -> float:
    """What a threshold of so many bins costs on the raw values, counted by numpy's own histogram."""
    width, low, high = reference_width(values), float(values.min()), float(values.max())
    nonzero = values[values != 0].astype(np.float64)
    first, last = max(math.floor(low / width), -bins), min(math.ceil(high / width), bins)
    edges = np.arange(first, last + 1) * width
    kept = (nonzero >= edges[0]) & (nonzero < edges[-1])
    below, above = int((nonzero < edges[0]).sum()), int((nonzero >= edges[-1]).sum())
    return reference_divergence(np.histogram(nonzero[kept], edges)[0], below, above)


@each_distribution
def test_percentile_is_the_exact_one_to_within_a_bin(values: Values) -> None:
    ordered = np.sort(values)
    cut = len(values) * (100 - PERCENTILE) / 200
    exact = float(ordered[int(cut)]), float(ordered[math.ceil(len(values) - cut) - 1])
    found = seen_of(values).range("percentile")
    assert np.abs(np.subtract((found.low, found.high), exact)).max() <= reference_width(values)


@each_distribution
def test_no_threshold_costs_less_by_the_exact_reference_than_the_one_that_entropy_finds(values: Values) -> None:
    found, width = seen_of(values).range("entropy"), reference_width(values)
    chosen = math.ceil(max(-found.low, found.high) / width)
    widest = math.ceil(max(-float(values.min()), float(values.max())) / width)
    others = {chosen - 1, chosen + 1, *range(widest, math.ceil(widest / 8) - 1, -97)} & set(range(widest + 1))
    least = min(reference_cost(values, bins) for bins in others)
    assert reference_cost(values, chosen) <= least * (1 + 1e-9)


@pytest.mark.parametrize("name", ["relu with a tail", "laplace around 0.3"])
def test_entropy_has_bins_enough_to_differ_from_minmax(name: str) -> None:
    seen = seen_of(DISTRIBUTIONS[name])
    assert seen.range("entropy").high < 0.9 * seen.range("minmax").high


def test_entropy_with_onnxruntimes_default_bins_would_be_minmax() -> None:
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector("entropy", False, 128, 128, 99.999, "same")
    collector.collect({"x": [DISTRIBUTIONS["relu with a tail"]]})
    found = collector.compute_collection_result()["x"]
    assert found[1] == pytest.approx(DISTRIBUTIONS["relu with a tail"].max(), rel=1e-6)


@each_distribution
def test_the_histogram_is_that_of_numpy(values: Values) -> None:
    histogram = seen_of(values).histogram
    exact = np.histogram(values[values != 0].astype(np.float64), histogram.edges())[0]
    assert histogram.width == reference_width(values)
    assert np.array_equal(histogram.counts, exact)
    assert histogram.zeros == int((values == 0).sum())


@pytest.mark.parametrize("values", [[3.0], [-0.25, 0.25], [1e-30, 2e-30], [1e30, -1e30], [4.9, 5.0]])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_few_and_extreme_values_have_a_range_too(method: str, values: list[float]) -> None:
    seen = Seen()
    seen.add(np.array(values, np.float32), where="test", count=True)
    found = seen.range(method)
    assert seen.low <= found.low <= found.high <= seen.high
    assert isinstance(seen.histogram, Histogram)
