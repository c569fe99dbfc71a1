"""Equalization: the float model answers as before, int8 gains where channels are uneven, and what stays says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeexport import graph
from edgeexport.errors import DataError
from edgeexport.quantization import calibrate, equalize, plan_quantization, quantize
from edgeexport.quantization.placement import prepared
from edgeexport.quantization.scaling import scalable
from edgeexport.records.base import file_digest
from edgeexport.records.target import NumberFormat
from edgeexport.runtimes.ort import open_session
from tests.quantization.nets import Net, pictures, small_mobilenet, small_resnet

PER_TENSOR = NumberFormat(activations="uint8", per_channel=False)


def chain(path: Path) -> Path:
    """Write Conv → Relu → depthwise Conv → MaxPool → Conv → Relu → pool → Flatten → Gemm."""
    net = Net()
    x = net.put("Relu", net.conv("image", 3, 16))
    x = net.put("MaxPool", net.conv(x, 16, 16, group=16), kernel_shape=[2, 2], strides=[2, 2])
    x = net.put("Relu", net.conv(x, 16, 24, size=1))
    net.gemm(net.put("Flatten", net.put("GlobalAveragePool", x)), 24, 10)
    return net.save(path)


def bottlenecks(path: Path) -> Path:
    """Write two linear bottlenecks around a residual sum, ReLU6 inside them."""
    net = Net(seed=1)
    x = net.conv(net.clip(net.conv("image", 3, 16, stride=2), 0.0, 6.0), 16, 12, size=1)
    y = net.clip(net.conv(x, 12, 48, size=1), 0.0, 6.0)
    x = net.put("Add", net.conv(y, 48, 12, size=1), x)
    net.conv(net.clip(net.conv(x, 12, 48, size=1), 0.0, 6.0), 48, 10)
    return net.save(path)


def unbalanced(path: Path) -> Path:
    """Make the channels of `chain` differ a hundredfold without changing what it computes."""
    model = onnx.load(path)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    sizes = np.float32(10.0) ** np.random.default_rng(5).uniform(-1, 1, 16).astype(np.float32)
    scaled = {"w0": sizes[:, None, None, None], "w1": sizes, "w2": 1 / sizes[:, None, None, None]}
    for name, factors in scaled.items():
        value = numpy_helper.to_array(stored[name]) * factors
        stored[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    onnx.save(model, path)
    return path


def outputs(path: Path, *, loud: float = 1.0) -> np.ndarray:
    batch = pictures(1, seed=99, shape=(32, 3, 16, 16))[0]
    (value,) = open_session(path).run({"image": batch["image"] * np.float32(loud)}).values()
    return np.asarray(value)


def sqnr_db(real: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(np.square(real).sum() / np.square(real - other).sum()))


def int8_sqnr_db(path: Path, numbers: NumberFormat) -> float:
    ranges = calibrate(path, pictures(8), samples_digest="sha256:0")
    out = path.with_suffix(".int8.onnx")
    quantize(path, plan_quantization(path, ranges, numbers=numbers), out=out)
    return sqnr_db(outputs(path), outputs(out))


@pytest.mark.parametrize("build", [chain, small_resnet, bottlenecks])
@pytest.mark.parametrize("loud", [1.0, 20.0])
def test_the_float_model_answers_as_before_on_any_input(
    build: Callable[[Path], Path], loud: float, tmp_path: Path
) -> None:
    path, out = build(tmp_path / "net.onnx"), tmp_path / "equal.onnx"
    record = equalize(path, pictures(8), out=out, per_channel=False)
    assert record.changed
    assert sqnr_db(outputs(path, loud=loud), outputs(out, loud=loud)) > 90
    assert (record.source_digest, record.model_digest) == (file_digest(path), file_digest(out))


def test_uneven_channels_are_evened_out_and_int8_gains(tmp_path: Path) -> None:
    path, out = unbalanced(chain(tmp_path / "net.onnx")), tmp_path / "equal.onnx"
    record = equalize(path, pictures(8), out=out, per_channel=False)
    assert max(item.gain_db for item in record.changed.values()) > 6
    assert int8_sqnr_db(out, PER_TENSOR) > int8_sqnr_db(path, PER_TENSOR) + 6


def test_a_residual_stream_is_scaled_as_one(tmp_path: Path) -> None:
    path = bottlenecks(tmp_path / "net.onnx")
    (stream,) = (one for one in scalable(prepared(graph.load(path))) if not one.fixed)
    add = next(node for node in graph.load(path).graph.node if node.op_type == "Add")
    assert set(stream.tensors) == {*add.input, add.output[0]}
    assert (len(stream.makers), len(stream.readers)) == (2, 2)
    assert list(equalize(path, pictures(8), out=tmp_path / "equal.onnx").changed) == [stream.tensors[0]]


def test_what_relu6_cuts_stays_and_says_so(tmp_path: Path) -> None:
    record = equalize(small_mobilenet(tmp_path / "net.onnx"), pictures(4), out=tmp_path / "equal.onnx")
    assert not record.changed
    assert any("Clip" in reason for reason in record.left.values())


def test_where_nothing_applies_nothing_changes(tmp_path: Path) -> None:
    net = Net()
    net.put("Sigmoid", net.conv("image", 3, 8))
    path, out = net.save(tmp_path / "net.onnx"), tmp_path / "equal.onnx"
    record = equalize(path, pictures(2), out=out)
    assert record.changed == {}
    assert any("Sigmoid" in reason for reason in record.left.values())
    assert np.array_equal(outputs(path), outputs(out))


def test_no_samples_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no samples"):
        equalize(small_resnet(tmp_path / "net.onnx"), iter(()), out=tmp_path / "equal.onnx")
