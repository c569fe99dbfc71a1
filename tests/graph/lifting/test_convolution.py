"""Convolutions and pooling against onnxruntime."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.graph.lifting.compare import check, normal

CONV: list[dict[str, Any]] = [
    {}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}, {"pads": [0, 1, 2, 3]}, {"pads": [0, 0, 1, 1], "strides": [2, 2]},
    {"dilations": [2, 2], "pads": [2, 2, 2, 2]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"auto_pad": "VALID"}, {"kernel_shape": [3, 3]}, {"strides": [1, 2], "dilations": [2, 1]},
]  # fmt: skip


@pytest.mark.parametrize("attributes", CONV, ids=str)
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("size", [8, 9])
def test_conv(attributes: dict[str, Any], group: int, size: int) -> None:
    bias = [normal(6)] if group == 1 else []
    check("Conv", [normal(2, 4, size, size + 1)], [normal(6, 4 // group, 3, 3), *bias], group=group, **attributes)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("pads", [[0, 0], [1, 1], [0, 1]])
def test_conv_in_one_and_three_dimensions(rank: int, pads: list[int]) -> None:
    weight = normal(3, 2, *[3] * rank)
    check("Conv", [normal(2, 2, *[7] * rank)], [weight, normal(3)], pads=[p for p in pads for _ in range(rank)])


def test_a_depthwise_conv_with_an_even_kernel() -> None:
    check("Conv", [normal(1, 4, 9, 9)], [normal(4, 1, 2, 4)], group=4, auto_pad="SAME_UPPER")


TRANSPOSED: list[dict[str, Any]] = [
    {}, {"strides": [2, 2]}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}, {"pads": [0, 1, 2, 1], "strides": [3, 2]},
    {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, {"dilations": [2, 2], "strides": [2, 1]},
    {"strides": [2, 2], "pads": [0, 0, 1, 1], "output_padding": [1, 0]}, {"strides": [2, 2], "output_shape": [10, 11]},
    {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"strides": [3, 3], "auto_pad": "SAME_UPPER", "output_shape": [15, 14]}, {"auto_pad": "VALID", "strides": [2, 2]},
]  # fmt: skip


@pytest.mark.parametrize("attributes", TRANSPOSED, ids=str)
@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose(attributes: dict[str, Any], group: int) -> None:
    check("ConvTranspose", [normal(2, 4, 5, 5)], [normal(4, 6 // group, 3, 3), normal(6)], group=group, **attributes)


@pytest.mark.parametrize("rank", [1, 3])
def test_conv_transpose_in_one_and_three_dimensions(rank: int) -> None:
    check("ConvTranspose", [normal(1, 2, *[4] * rank)], [normal(2, 3, *[3] * rank)], strides=[2] * rank)


POOL = [
    {"strides": strides, "kernel_shape": kernel, **pads}
    for strides, kernel, pads in itertools.product(
        ([1, 1], [2, 2], [3, 2]),
        ([2, 2], [3, 3]),
        ({}, {"pads": [1, 1, 1, 1]}, {"pads": [0, 0, 1, 1]}, {"pads": [1, 0, 0, 1]}, {"auto_pad": "SAME_UPPER"},
         {"auto_pad": "SAME_LOWER"}, {"auto_pad": "VALID"}),
    )
]  # fmt: skip


@pytest.mark.parametrize("attributes", POOL, ids=str)
@pytest.mark.parametrize("ceil_mode", [0, 1])
def test_max_pool(attributes: dict[str, Any], ceil_mode: int) -> None:
    check("MaxPool", [normal(2, 3, 8, 9) - 5], ceil_mode=ceil_mode, **attributes)


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, 1]])
def test_max_pool_with_dilation(ceil_mode: int, pads: list[int]) -> None:
    shape = {"kernel_shape": [3, 3], "dilations": [2, 2], "strides": [2, 2]}
    check("MaxPool", [normal(2, 3, 10, 11)], pads=pads, ceil_mode=ceil_mode, **shape)


@pytest.mark.parametrize("attributes", POOL, ids=str)
@pytest.mark.parametrize(("ceil_mode", "counted"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_average_pool(attributes: dict[str, Any], ceil_mode: int, counted: int) -> None:
    check("AveragePool", [normal(2, 3, 8, 9)], ceil_mode=ceil_mode, count_include_pad=counted, **attributes)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("rank", [1, 3])
def test_pools_in_one_and_three_dimensions(op: str, rank: int) -> None:
    x = normal(2, 3, *[7] * rank)
    check(op, [x], kernel_shape=[3] * rank, strides=[2] * rank, pads=[0] * rank + [1] * rank)
    check(op, [x], kernel_shape=[3] * rank, strides=[2] * rank, pads=[1] * (2 * rank))


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_global_pools(op: str, rank: int) -> None:
    check(op, [normal(2, 3, *[5] * rank)])


def test_the_comparison_sees_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeexport.graph.lifting.table import TABLE

    monkeypatch.setitem(TABLE, "Conv", TABLE["ConvTranspose"])
    with pytest.raises(AssertionError):
        check("Conv", [normal(1, 4, 5, 5)], [np.ascontiguousarray(normal(4, 4, 3, 3))])
