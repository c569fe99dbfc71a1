"""Calibration: equal to onnxruntime where it should be, exact to a bin elsewhere, flat in memory, loud about NaN."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeexport import graph
from edgeexport.errors import DataError
from edgeexport.quantization import calibrate
from edgeexport.quantization.calibrate import calibration_points
from edgeexport.quantization.clipping import METHODS, PERCENTILE
from edgeexport.quantization.histogram import HALF, Histogram
from edgeexport.records.ranges import Ranges
from tests.quantization.nets import Net, pictures, small_mobilenet, small_resnet

METHOD_NAMES = sorted(METHODS)


def ranges_of(path: Path, samples: Any, method: str = "minmax") -> Ranges:
    return calibrate(path, samples, method=method, samples_digest="sha256:0")


def counted(values: np.ndarray) -> tuple[Histogram, float, float]:
    histogram = Histogram()
    for part in np.array_split(values, 3):
        histogram.add(part, largest=float(np.abs(part).max()))
    return histogram, float(values.min()), float(values.max())


def relu_like() -> np.ndarray:
    """Half zeros, and a tail that a good range leaves out."""
    values = np.random.default_rng(3).standard_normal(400_000).astype(np.float32)
    values[:20] *= 12
    return np.maximum(values, 0)


@pytest.mark.parametrize("build", [small_resnet, small_mobilenet])
def test_minmax_equals_onnxruntime_bit_for_bit(build: Any, tmp_path: Path) -> None:
    from onnxruntime.quantization.calibrate import MinMaxCalibrater

    path, samples = build(tmp_path / "net.onnx"), pictures(5)
    theirs = MinMaxCalibrater(path, augmented_model_path=str(tmp_path / "augmented.onnx"))
    theirs.augment_graph()
    theirs.create_inference_session()

    class Reader:
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> Any:
            return next(self.left, None)

    theirs.collect_data(Reader())
    expected = theirs.compute_data()
    ours = ranges_of(path, samples).tensors
    outputs = {value.name for value in graph.load(path).graph.output}
    compared = [name for name in ours if name not in outputs]
    assert len(compared) > 8
    for name in compared:
        low, high = expected[name].range_value
        assert (np.float32(ours[name].low), np.float32(ours[name].high)) == (low.item(), high.item()), name


def test_only_points_are_observed(tmp_path: Path) -> None:
    net = Net()
    before = net.conv("image", 3, 8)
    after = net.put("Relu", before)
    net.conv(after, 8, 8)
    tensors = ranges_of(net.save(tmp_path / "net.onnx"), pictures(2)).tensors
    assert before not in tensors
    assert {"image", after} <= tensors.keys()


def test_a_symmetric_format_needs_the_inputs_of_relu_too(tmp_path: Path) -> None:
    model = graph.load(small_resnet(tmp_path / "net.onnx"))
    assert len(calibration_points(model, symmetric=True)) > len(calibration_points(model))


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_ranges_lie_within_what_was_seen(method: str, tmp_path: Path) -> None:
    ranges = ranges_of(small_mobilenet(tmp_path / "net.onnx"), pictures(4), method)
    assert (ranges.method, ranges.count) == (method, 4)
    for name, item in ranges.tensors.items():
        assert item.seen_low <= item.low <= item.high <= item.seen_high, name


def test_percentile_is_within_one_bin_of_the_exact_one() -> None:
    values = relu_like() - 0.5
    histogram, low, high = counted(values)
    ordered = np.sort(values)
    cut = len(values) * (100 - PERCENTILE) / 200
    exact = float(ordered[int(cut)]), float(ordered[int(np.ceil(len(values) - cut)) - 1])
    found = METHODS["percentile"](histogram, (low, high))
    assert np.abs(np.subtract(found, exact)).max() <= histogram.width
    assert found[1] < high


@pytest.mark.parametrize("method", ["entropy", "mse", "percentile"])
def test_histogram_methods_differ_from_minmax_where_there_is_a_tail(method: str) -> None:
    histogram, low, high = counted(relu_like())
    found = METHODS[method](histogram, (low, high))
    assert found[0] == 0.0
    assert found[1] < 0.95 * high


def test_mse_is_close_to_the_best_of_all_thresholds_on_the_raw_values() -> None:
    values = relu_like()
    histogram, low, high = counted(values)

    def error(limit: float) -> float:
        step = limit / 255
        return float(np.mean((values - np.clip(np.rint(values / step), 0, 255) * step) ** 2))

    chosen = METHODS["mse"](histogram, (low, high))[1]
    assert error(chosen) <= 1.05 * min(error(part * high) for part in np.linspace(0.1, 1.0, 91))


def test_a_histogram_does_not_depend_on_the_order_of_its_values() -> None:
    values = relu_like() - 1.0
    first, *_ = counted(values)
    second, *_ = counted(np.sort(values)[::-1])
    assert first.exponent == second.exponent
    assert np.array_equal(first.counts, second.counts)
    assert first.zeros == second.zeros


def test_a_histogram_loses_no_value_and_uses_its_bins() -> None:
    values = np.linspace(-3.0, 5.0, 10_001, dtype=np.float32)
    histogram, _, high = counted(values)
    assert int(histogram.counts.sum()) + histogram.zeros == len(values)
    assert high / histogram.width >= HALF / 2


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_tensor_of_zeros_gets_the_range_of_nothing(method: str) -> None:
    histogram, low, high = counted(np.zeros(100, np.float32))
    assert METHODS[method](histogram, (low, high)) == (0.0, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_value_in_one_of_many_samples_is_named(bad: float, tmp_path: Path) -> None:
    samples = pictures(30)
    samples[17]["image"][0, 1, 2, 3] = bad
    with pytest.raises(DataError, match=r"sample 17, input 'image': 1 of 768 values are not finite, the first is"):
        ranges_of(small_resnet(tmp_path / "net.onnx"), samples)


def test_an_infinity_inside_the_model_is_named(tmp_path: Path) -> None:
    net = Net()
    hot = net.put("Exp", net.put("Mul", net.conv("image", 3, 4), net.store(np.float32(1000.0))))
    net.conv(hot, 4, 4)
    with pytest.raises(DataError, match=f"sample 0, tensor '{hot}'"):
        ranges_of(net.save(tmp_path / "net.onnx"), pictures(1))


def test_no_samples_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        ranges_of(small_resnet(tmp_path / "net.onnx"), iter(()))


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"image": np.zeros((1, 16, 16, 3), np.float32)}, r"sample 0: .*\(1, 16, 16, 3\).*3, 16, 16"),
        ({"image": np.zeros((1, 3, 16, 16), np.uint8)}, "sample 0: .*uint8.*float32"),
        ({"picture": np.zeros((1, 3, 16, 16), np.float32)}, "sample 0: .*picture.*image"),
    ],
)
def test_samples_that_do_not_fit_are_named(feeds: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        ranges_of(small_resnet(tmp_path / "net.onnx"), [feeds])


def test_an_unknown_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="magic"):
        ranges_of(small_resnet(tmp_path / "net.onnx"), pictures(1), "magic")


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    path = small_resnet(tmp_path / "net.onnx")

    def stream(count: int) -> Iterator[dict[str, np.ndarray]]:
        for seed in range(count):
            yield pictures(1, seed=seed, shape=(8, 3, 16, 16))[0]

    ranges_of(path, stream(20), "entropy")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ranges_of(path, stream(200), "entropy")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 20, f"{grown} MB more for ten times the samples"
