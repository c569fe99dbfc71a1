"""The protocol: runtimes are found by name, and feeds and outputs are translated between signatures."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edgeexport import runtimes
from edgeexport.errors import DataError, RequestError
from edgeexport.records.artifact import Signature, TensorSpec
from edgeexport.runtimes.protocol import adapt_feeds, adapt_outputs, dequantize_values, quantize_values

SPINE = Signature(
    inputs=(TensorSpec("image", "float32", ("batch", 3, 4, 5), layout="NCHW"),),
    outputs=(TensorSpec("logits", "float32", ("batch", 2)),),
)
INT8_NHWC = Signature(
    inputs=(TensorSpec("serving_default_0", "int8", (1, 4, 5, 3), layout="NHWC", scale=0.5, zero_point=-3),),
    outputs=(TensorSpec("out", "int8", (1, 2), scale=0.25, zero_point=10),),
)


def image() -> dict[str, np.ndarray]:
    return {"image": np.arange(60, dtype=np.float32).reshape(1, 3, 4, 5)}


def test_feeds_between_equal_signatures_are_the_same() -> None:
    assert np.array_equal(adapt_feeds(image(), SPINE, to=SPINE)["image"], image()["image"])


def test_feeds_are_renamed_permuted_and_quantized() -> None:
    (name, value), *_ = adapt_feeds(image(), SPINE, to=INT8_NHWC).items()
    assert (name, value.shape, value.dtype.name) == ("serving_default_0", (1, 4, 5, 3), "int8")
    expected = np.clip(np.rint(image()["image"].transpose(0, 2, 3, 1) / 0.5) - 3, -128, 127)
    assert np.array_equal(value, expected)
    assert value.flags.c_contiguous


def test_outputs_are_dequantized_and_renamed() -> None:
    outputs = adapt_outputs({"out": np.array([[10, 14]], np.int8)}, INT8_NHWC, to=SPINE)
    assert list(outputs) == ["logits"]
    assert outputs["logits"].dtype == np.float32
    assert outputs["logits"].tolist() == [[0.0, 1.0]]


def test_tensors_of_equal_names_are_paired_by_name_and_others_by_place() -> None:
    def specs(*names: str) -> Signature:
        return Signature(inputs=tuple(TensorSpec(name, "float32", (1,)) for name in names), outputs=())

    feeds = {"a": np.zeros(1, np.float32), "b": np.ones(1, np.float32)}
    assert adapt_feeds(feeds, specs("a", "b"), to=specs("b", "a"))["b"][0] == 1
    assert adapt_feeds(feeds, specs("a", "b"), to=specs("x", "y"))["y"][0] == 1


def test_quantizing_rounds_half_to_even_and_saturates() -> None:
    spec = TensorSpec("x", "uint8", (5,), scale=1.0, zero_point=0)
    assert quantize_values(np.array([0.5, 1.5, 2.5, -9, 999]), spec).tolist() == [0, 2, 2, 0, 255]
    assert dequantize_values(np.array([7], np.uint8), spec).tolist() == [7.0]


def test_int64_becomes_int32_only_without_loss() -> None:
    wide = Signature(inputs=(TensorSpec("ids", "int64", (2,)),), outputs=())
    narrow = Signature(inputs=(TensorSpec("ids", "int32", (2,)),), outputs=())
    assert adapt_feeds({"ids": np.array([1, 2])}, wide, to=narrow)["ids"].dtype == np.int32
    with pytest.raises(DataError, match="int32 cannot hold"):
        adapt_feeds({"ids": np.array([1, 2**40])}, wide, to=narrow)


@pytest.mark.parametrize("feeds", [{}, {"picture": np.zeros(1)}, {**image(), "more": np.zeros(1)}])
def test_feeds_of_other_names_are_refused_with_both(feeds: dict[str, np.ndarray]) -> None:
    with pytest.raises(DataError, match="image"):
        adapt_feeds(feeds, SPINE, to=INT8_NHWC)


def test_a_dtype_of_another_kind_is_refused() -> None:
    with pytest.raises(DataError, match="int64, expected float32"):
        adapt_feeds({"image": np.zeros((1, 3, 4, 5), np.int64)}, SPINE, to=SPINE)


def test_a_picture_without_four_axes_is_refused() -> None:
    with pytest.raises(DataError, match="4 axes"):
        adapt_feeds({"image": np.zeros((3, 4), np.float32)}, SPINE, to=INT8_NHWC)


def test_a_missing_output_is_named() -> None:
    with pytest.raises(DataError, match="'out'"):
        adapt_outputs({"other": np.zeros(1)}, INT8_NHWC, to=SPINE)


def test_signatures_of_different_length_are_refused() -> None:
    with pytest.raises(DataError, match="differ in number"):
        adapt_outputs({}, Signature(inputs=(), outputs=()), to=SPINE)


def test_an_unknown_runtime_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match="'abacus'") as caught:
        runtimes.get("abacus")
    assert "ort" in caught.value.next_step


@pytest.mark.parametrize("name", runtimes.names())
def test_every_runtime_of_the_table_exists_under_its_name(name: str) -> None:
    assert runtimes.get(name).name == name


def test_finding_a_runtime_loads_none_of_the_heavy_packages() -> None:
    code = (
        "import sys; from edgeexport import runtimes; runtimes.get('ort').version();"
        "sys.exit(','.join(sorted({'numpy', 'onnx', 'onnxruntime', 'torch'} & sys.modules.keys())) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
