"""Learned rounding and bias correction: weights on the plan's grid bit for bit, and better answers for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeexport import graph
from edgeexport.errors import DataError
from edgeexport.quantization import calibrate, correct_biases, learn_rounding, plan_quantization, quantize
from edgeexport.quantization.layers import layers
from edgeexport.quantization.moments import Moments, Walk, splits
from edgeexport.quantization.placement import prepared
from edgeexport.quantization.rounding import Grid, compensated, nearest
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.target import NumberFormat
from edgeexport.runtimes.ort import open_session
from edgeexport.runtimes.ort_saturation import predict_saturation
from tests.quantization.nets import FORMATS, Net, pictures, small_mobilenet, small_resnet

SAMPLES = pictures(4, shape=(8, 3, 16, 16))
METHODS = {"rounding": learn_rounding, "biases": correct_biases}


def planned(path: Path, numbers: NumberFormat) -> QuantizationPlan:
    symmetric = numbers.symmetric_activations
    ranges = calibrate(path, SAMPLES, samples_digest="sha256:0", symmetric=symmetric)
    return plan_quantization(path, ranges, numbers=numbers)


def outputs(path: Path) -> np.ndarray:
    (value,) = open_session(path).run(pictures(1, seed=99, shape=(64, 3, 16, 16))[0]).values()
    return np.asarray(value, np.float64)


def sqnr_db(real: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(np.square(real).sum() / np.square(real - other).sum()))


@pytest.mark.parametrize("numbers", FORMATS)
@pytest.mark.parametrize("build", [small_resnet, small_mobilenet])
def test_quantize_stores_the_learnt_integers_bit_for_bit(
    numbers: str, build: Callable[[Path], Path], tmp_path: Path
) -> None:
    path, out, int8 = build(tmp_path / "net.onnx"), tmp_path / "learnt.onnx", tmp_path / "int8.onnx"
    plan = learn_rounding(path, planned(path, FORMATS[numbers]), samples=SAMPLES, out=out)
    quantize(out, plan, out=int8)
    real, stored = graph.initializers(graph.load(out)), graph.initializers(graph.load(int8))
    for name, point in plan.weights.items():
        shape = [-1 if axis == point.axis else 1 for axis in range(real[name].ndim)]
        scales = np.array(point.scales, np.float32).reshape(shape)
        integers = stored[f"{name}_quantized"].astype(np.float32)
        assert np.array_equal((integers.astype(np.float64) * scales).astype(np.float32), real[name]), name
        assert np.abs(integers).max() <= (64 if numbers == "7-bit" else 127)


@pytest.mark.parametrize("build", [small_resnet, small_mobilenet])
@pytest.mark.parametrize("numbers", ["per-channel", "per-tensor"])
def test_learnt_rounding_answers_more_like_the_float_model(
    build: Callable[[Path], Path], numbers: str, tmp_path: Path
) -> None:
    path = build(tmp_path / "net.onnx")
    plan = planned(path, FORMATS[numbers])
    found = {}
    quantize(path, plan, out=tmp_path / "plain.int8.onnx")
    found["plain"] = sqnr_db(outputs(path), outputs(tmp_path / "plain.int8.onnx"))
    for name, method in METHODS.items():
        out = tmp_path / f"{name}.onnx"
        quantize(out, method(path, plan, samples=SAMPLES, out=out), out=tmp_path / f"{name}.int8.onnx")
        found[name] = sqnr_db(outputs(path), outputs(tmp_path / f"{name}.int8.onnx"))
    assert found["rounding"] > found["plain"] + 1
    assert found["biases"] > found["plain"] - 0.5


def test_biases_keep_the_mean_of_every_output(tmp_path: Path) -> None:
    path, out = small_mobilenet(tmp_path / "net.onnx"), tmp_path / "biases.onnx"
    plan = planned(path, FORMATS["per-tensor"])
    quantize(path, plan, out=tmp_path / "plain.int8.onnx")
    quantize(out, correct_biases(path, plan, samples=SAMPLES, out=out), out=tmp_path / "biases.int8.onnx")
    meant = outputs(path).mean(axis=0)
    plain, ours = (outputs(tmp_path / f"{name}.int8.onnx").mean(axis=0) for name in ("plain", "biases"))
    assert np.abs(ours - meant).mean() < 0.5 * np.abs(plain - meant).mean()


def test_a_layer_without_a_bias_gets_one(tmp_path: Path) -> None:
    net = Net()
    x = net.put("Relu", net.conv("image", 3, 8))
    net.put("Conv", x, net.store(net.random.standard_normal((4, 8, 3, 3)).astype(np.float32)))
    path, out = net.save(tmp_path / "net.onnx"), tmp_path / "learnt.onnx"
    plan = learn_rounding(path, planned(path, FORMATS["per-tensor"]), samples=SAMPLES, out=out)
    quantize(out, plan, out=tmp_path / "int8.onnx")
    assert all(len(node.input) == 3 for node in onnx.load(out).graph.node if node.op_type == "Conv")


@pytest.mark.parametrize("method", METHODS)
def test_the_same_inputs_give_the_same_bytes_and_the_layers_are_named(method: str, tmp_path: Path) -> None:
    path = small_mobilenet(tmp_path / "net.onnx")
    plan = planned(path, FORMATS["per-channel"])
    said: list[str] = []
    for name in ("first", "second"):
        METHODS[method](path, plan, samples=SAMPLES, out=tmp_path / name, progress=lambda text, _: said.append(text))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert f"rounding: {layers(graph.load(path))[0].node}" in said


@pytest.mark.parametrize("way", METHODS)
def test_learnt_weights_fit_16_bit_sums_where_the_plan_asks_for_it(way: str, tmp_path: Path) -> None:
    path, out, int8 = small_resnet(tmp_path / "net.onnx"), tmp_path / "learnt.onnx", tmp_path / "int8.onnx"
    plan = METHODS[way](path, planned(path, FORMATS["pairs"]), samples=SAMPLES, out=out)
    quantize(out, plan, out=int8)
    assert not predict_saturation(graph.load(int8)).possible
    assert max(layer.highest for layer in predict_saturation(graph.load(int8)).layers) > 255 * 120


def test_a_plan_of_another_model_and_no_samples_are_refused(tmp_path: Path) -> None:
    path, other = small_resnet(tmp_path / "a.onnx"), small_mobilenet(tmp_path / "b.onnx")
    plan = planned(path, FORMATS["per-channel"])
    with pytest.raises(DataError, match="belongs to the model"):
        learn_rounding(other, plan, samples=SAMPLES, out=tmp_path / "never.onnx")
    with pytest.raises(DataError, match="no samples"):
        learn_rounding(path, plan, samples=iter(()), out=tmp_path / "never.onnx")
    assert not (tmp_path / "never.onnx").exists()


def test_compensated_integers_lose_less_than_the_nearest_ones() -> None:
    random = np.random.default_rng(0)
    rows = (random.standard_normal((2, 400, 3)) @ random.standard_normal((2, 3, 12))).astype(np.float32)
    rows += 0.1 * random.standard_normal(rows.shape).astype(np.float32)
    moments = Moments(np.zeros((2, 12)), np.zeros((2, 12)), second=np.zeros((2, 12, 12)), cross=np.zeros((2, 12, 12)))
    moments.add(rows, rows)
    matrix, scales = random.standard_normal((2, 5, 12)), np.full((2, 5, 1), 0.2)

    def lost(integers: np.ndarray, steps: np.ndarray) -> float:
        wrong = (integers * steps - matrix) @ rows.transpose(0, 2, 1)
        return float(np.square(wrong - wrong.mean(axis=2, keepdims=True)).sum())

    plain = lost(nearest(matrix, Grid(scales, 127)), scales)
    ours, steps = compensated(matrix, Grid(scales, 127), moments=moments.averages())
    assert np.array_equal(ours, np.rint(ours))
    assert lost(ours, steps) < 0.25 * plain
    assert len(np.unique(steps)) > 1
    assert scales.min() <= steps.min() <= steps.max() <= 1.25 * scales.max()
    shared, (step, *others) = compensated(matrix, Grid(scales, 127), moments=moments.averages(), alike=True)
    assert len(np.unique([step, *others])) == 1
    assert lost(ours, steps) < lost(shared, step) < plain


@pytest.mark.parametrize(("samples", "independent"), [(None, 100.0), (4, 20.0)])
def test_few_rows_and_rows_of_few_samples_say_less_of_what_inputs_share(
    samples: int | None, independent: float
) -> None:
    rows = np.random.default_rng(0).standard_normal((1, 100, 3)) @ np.ones((3, 5))
    moments = Moments(np.zeros((1, 5)), np.zeros((1, 5)), second=np.zeros((1, 5, 5)), cross=np.zeros((1, 5, 5)))
    moments.add(rows, rows, samples=samples)
    sampled = np.cov(rows[0].T, bias=True)
    share = 5 / (5 + independent)
    for found in moments.averages().covariances():
        assert np.allclose(np.diag(found[0]), np.diag(sampled))
        assert np.allclose(found[0][0, 1:], (1 - share) * sampled[0, 1:])


@pytest.mark.parametrize("attributes", [
    {}, {"strides": [2, 1]}, {"dilations": [2, 2]}, {"pads": [1, 0, 2, 1]}, {"group": 3}, {"auto_pad": "VALID"},
])  # fmt: skip
def test_rows_times_matrix_is_the_convolution(attributes: dict[str, object], tmp_path: Path) -> None:
    net = Net()
    shape = (6, 3 // int(str(attributes.get("group", 1))), 3, 3)
    net.put("Conv", "image", net.store(net.random.standard_normal(shape).astype(np.float32)), **attributes)
    path = net.save(tmp_path / "net.onnx")
    model, feeds = graph.load(path), pictures(1, shape=(2, 3, 16, 16))[0]
    (layer,), (expected,) = layers(model), open_session(path).run(feeds).values()
    sizes = layer.positions(feeds["image"].shape)
    places = np.unravel_index(np.arange(np.prod(sizes)), sizes)
    rows = layer.rows(feeds["image"], places)
    ours = rows @ layer.matrix(graph.initializers(model)["w0"]).transpose(0, 2, 1)
    ours = ours.transpose(1, 0, 2).reshape(*sizes, -1).transpose(0, 3, 1, 2)
    assert np.allclose(ours, expected, atol=1e-5)


def test_padding_that_depends_on_the_input_makes_no_layer(tmp_path: Path) -> None:
    net = Net()
    net.put("Conv", "image", net.store(np.ones((4, 3, 3, 3), np.float32)), auto_pad="SAME_UPPER")
    assert layers(graph.load(net.save(tmp_path / "net.onnx"))) == ()


def test_a_walk_goes_on_from_where_all_that_follows_begins(tmp_path: Path) -> None:
    model = prepared(graph.load(small_resnet(tmp_path / "net.onnx")))
    first, inner = (layer.source for layer in layers(model)[1:3])
    assert (splits(model, first), splits(model, inner)) == (True, False)
    walk = Walk(model, SAMPLES)
    assert len(list(walk.values(first))) == len(SAMPLES)
    assert list(walk.kept[0]) == [first]
    expected = open_session(graph.expose(model, [inner]).SerializeToString()).run(SAMPLES[0])[inner]
    assert np.array_equal(next(iter(walk.values(inner))), expected)
