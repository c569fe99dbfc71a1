"""The arithmetic of integer kernels, beside the kernels of onnxruntime themselves: every integer the same."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeexport.quantization.qat import arithmetic
from edgeexport.quantization.qat.arithmetic import Grid, Weights
from edgeexport.quantization.qat.steps import Units, rounded

ARM = platform.machine() == "aarch64"
FLOAT32 = np.float32


def kernel(op: str, inputs: list[NDArray[Any]], stored: list[NDArray[Any]]) -> NDArray[np.uint8]:
    """Run one operator of com.microsoft on its 8-bit inputs, each with scale and zero point from `stored`."""
    import onnxruntime as ort

    names, feeds = [], {}
    for index, value in enumerate(inputs):
        feeds[f"x{index}"] = value
        names += [f"x{index}", f"s{2 * index}", f"s{2 * index + 1}"]
    names += [f"s{index}" for index in range(2 * len(inputs), len(stored))]
    domain = "" if op == "QLinearConv" else "com.microsoft"
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], domain=domain)],
        "kernel",
        [helper.make_tensor_value_info(name, TensorProto.UINT8, value.shape) for name, value in feeds.items()],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(value, f"s{index}") for index, value in enumerate(stored)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.uint8] = session.run(None, feeds)[0]
    return found


def numbers(random: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    return FLOAT32(random.uniform(0.01, 0.1)), np.uint8(random.integers(256))


def grid(point: tuple[NDArray[Any], NDArray[Any]]) -> Grid:
    return Grid(torch.tensor(point[0]), int(point[1]))


def real(value: NDArray[np.uint8], point: tuple[NDArray[Any], NDArray[Any]]) -> torch.Tensor:
    return torch.from_numpy((value.astype(FLOAT32) - FLOAT32(point[1])) * point[0])


def stored(steps: torch.Tensor, point: tuple[NDArray[Any], NDArray[Any]], *, zero: int) -> NDArray[Any]:
    """What the tap of a result stores of it. zero: what was added to the steps."""
    at = int(point[1])
    whole = rounded(steps, torch.tensor(1.0), bounds=(-at, 255 - at), count=1, units=Units(zero))
    return whole.numpy() + at


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("seed", range(12))
def test_two_tensors_give_every_integer_of_the_kernel(op: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = (side.ravel().astype(np.uint8) for side in np.meshgrid(np.arange(256), np.arange(256)))
    first, second, into = numbers(random), numbers(random), numbers(random)
    if seed % 3 == 0:
        into = (first[0], into[1])  # a shared scale: halves are frequent
    theirs = kernel(op, [a, b], [*first, *second, *into])
    more = {"arm": ARM} if op == "QLinearAdd" else {}
    function: Any = arithmetic.total if op == "QLinearAdd" else arithmetic.product
    values = (real(a, first), real(b, second))
    ours = function(values, sources=(grid(first), grid(second)), into=grid(into), **more)
    assert np.array_equal(stored(ours, into, zero=int(into[1])), theirs)


def test_sums_of_arm_round_halves_away_from_zero_and_need_no_float() -> None:
    one = Grid(torch.tensor(1.0))
    half = Grid(torch.tensor(0.5))
    odd = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    ours = arithmetic.total((odd, torch.zeros(5)), sources=(half, half), into=one, arm=True)
    assert torch.round(ours).tolist() == [-2.0, -1.0, 1.0, 2.0, 3.0]
    theirs = arithmetic.total((odd, torch.zeros(5)), sources=(half, half), into=one, arm=False)
    assert torch.round(theirs).tolist() == [-2.0, 0.0, 0.0, 2.0, 2.0]


@pytest.mark.parametrize("seed", range(6))
def test_the_mean_of_pictures_gives_every_integer_of_the_kernel(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.integers(0, 256, (8, 64, 7, 7)).astype(np.uint8)
    source, into = numbers(random), numbers(random)
    theirs = kernel("QLinearGlobalAveragePool", [x], [*source, *into])
    value = real(x, source)
    ours = arithmetic.mean(value, source=grid(source), into=grid(into), arm=ARM)
    assert np.array_equal(stored(ours, into, zero=0), theirs)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("training", [False, True])
def test_a_convolution_gives_every_integer_of_the_kernel(seed: int, training: bool) -> None:
    random = np.random.default_rng(seed)
    x = random.integers(0, 256, (2, 16, 9, 9)).astype(np.uint8)
    weight = random.integers(-64, 65, (24, 16, 3, 3)).astype(np.int8)
    scales = random.uniform(0.001, 0.01, 24).astype(FLOAT32)
    bias = random.integers(-100_000, 100_000, 24).astype(np.int32)
    source, into = numbers(random), (FLOAT32(random.uniform(0.1, 0.5)), np.uint8(random.integers(256)))
    given = [*source, weight, scales, np.zeros(24, np.int8), *into, bias]
    theirs = kernel("QLinearConv", [x], given)
    along = torch.from_numpy(scales).reshape(-1, 1, 1, 1)
    ours_bias = torch.from_numpy(bias.astype(FLOAT32) * (source[0] * scales))
    inputs = (real(x, source), torch.from_numpy(weight.astype(FLOAT32)) * along, ours_bias)
    weights = Weights(along, torch.from_numpy(scales).reshape(-1, 1, 1), 0)
    with torch.set_grad_enabled(training):
        ours = arithmetic.layer(torch.conv2d, inputs, source=grid(source), weights=weights, into=grid(into))
    assert np.array_equal(stored(ours, into, zero=0), theirs)


def test_sums_too_large_for_float32_are_exact_all_the_same() -> None:
    size = 4096
    value = torch.full((1, size), 255.0)
    weight = torch.full((1, size), 127.0)
    weight[0, 0] = 126.0
    weights = Weights(torch.tensor(1.0), torch.ones(1), 0)
    source = Grid(torch.tensor(1.0))
    with torch.no_grad():
        ours = arithmetic.layer(torch.nn.functional.linear, (value, weight), source=source, weights=weights, into=None)
    assert float(ours) == float(np.float32(255 * (127 * size - 1)))


def test_a_gradient_is_that_of_the_float_graph() -> None:
    random = torch.Generator().manual_seed(0)
    source, into = Grid(torch.tensor(0.05), 10), Grid(torch.tensor(0.2), 3)
    scales = torch.tensor([0.01, 0.02])
    x = (torch.randint(-10, 200, (3, 5), generator=random) * source.scale).requires_grad_()
    weight = (torch.randint(-9, 9, (2, 5), generator=random) * scales[:, None]).requires_grad_()
    bias = (torch.randint(-9, 9, (2,), generator=random) * (source.scale * scales)).requires_grad_()
    weights = Weights(scales[:, None], scales, 0)
    linear = torch.nn.functional.linear
    ours = arithmetic.layer(linear, (x, weight, bias), source=source, weights=weights, into=into)
    meant = linear(x, weight, bias) / into.scale
    assert torch.allclose(ours, meant, atol=1e-4)
    for each, other in zip(
        *(torch.autograd.grad(y.square().sum(), (x, weight, bias)) for y in (ours, meant)), strict=True
    ):
        assert torch.allclose(each, other, rtol=1e-4)
