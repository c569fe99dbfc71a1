"""Value-by-value operators, reductions and normalizations against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graph.lifting.compare import check, ints, normal, positive

UNARY = [
    "Abs", "Atan", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Identity", "Mish", "Neg", "Relu", "Round",
    "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tan", "Tanh", "Elu", "Selu", "Celu", "LeakyRelu", "HardSigmoid",
    "ThresholdedRelu", "Gelu", "Softmax", "LogSoftmax", "Reciprocal", "IsNaN", "IsInf", "Dropout", "LpNormalization",
]  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_operators_of_one_value(op: str) -> None:
    check(op, [normal(3, 4, 5) * 3])


@pytest.mark.parametrize("op", ["Log", "Sqrt"])
def test_operators_of_one_positive_value(op: str) -> None:
    check(op, [positive(3, 4)])


@pytest.mark.parametrize("op", ["Asin", "Acos"])
def test_operators_of_a_sine(op: str) -> None:
    check(op, [np.clip(normal(3, 4), -0.9, 0.9)])


def test_round_goes_to_the_even_neighbour() -> None:
    check("Round", [np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)])


WITH_ATTRIBUTES: list[tuple[str, dict[str, Any]]] = [
    ("Elu", {"alpha": 0.5}), ("Celu", {"alpha": 2.0}), ("Selu", {"alpha": 1.2, "gamma": 0.7}),
    ("LeakyRelu", {"alpha": 0.3}), ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.1}), ("ThresholdedRelu", {"alpha": 0.4}),
    ("Gelu", {"approximate": "tanh"}),
    ("Softmax", {"axis": 0}), ("Softmax", {"axis": 1}), ("LogSoftmax", {"axis": 1}), ("IsInf", {"detect_negative": 0}),
    ("IsInf", {"detect_positive": 0}), ("LpNormalization", {"p": 1, "axis": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "attributes"), WITH_ATTRIBUTES, ids=str)
def test_operators_with_attributes(op: str, attributes: dict[str, Any]) -> None:
    x = normal(3, 4, 5) * 3
    if op == "IsInf":
        x[0, 0, :2] = [np.inf, -np.inf]
    check(op, [x], **attributes)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_softmax_before_opset_13_flattens(op: str, axis: int) -> None:
    check(op, [normal(3, 4, 5)], opset=11, axis=axis)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "Pow", "Mod"])
@pytest.mark.parametrize("other", [(3, 4), (4,), (1, 1), (2, 3, 4)])
def test_operators_of_two_values_broadcast(op: str, other: tuple[int, ...]) -> None:
    check(op, [positive(3, 4), positive(*other)], **({"fmod": 1} if op == "Mod" else {}))


@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
def test_operators_of_three_values(op: str) -> None:
    check(op, [normal(3, 4), normal(3, 4), normal(4)])


@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_integers_are_divided_as_onnx_says(op: str) -> None:
    check(op, [ints(7, -7, 7, -7), ints(2, 2, -2, -2)])


@pytest.mark.parametrize("op", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons(op: str) -> None:
    check(op, [np.round(normal(5, 5)), np.round(normal(5, 5))])


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic(op: str) -> None:
    check(op, [normal(4, 4) > 0, normal(4, 4) > 0])


def test_not_and_where() -> None:
    check("Not", [normal(4, 4) > 0])
    check("Where", [normal(4, 1) > 0, normal(4, 4), normal(4)])


@pytest.mark.parametrize("bounds", [(0, 6), (0, None), (-1, 1), (None, 0.5), (None, None), (0.5, 0.7)])
def test_clip_in_both_forms(bounds: tuple[float | None, float | None]) -> None:
    x = normal(4, 5) * 5
    check("Clip", [x], [None if bound is None else np.array(bound, np.float32) for bound in bounds])
    given = {key: float(bound) for key, bound in zip(("min", "max"), bounds, strict=True) if bound is not None}
    check("Clip", [x], opset=10, **given)


def test_clip_with_computed_bounds() -> None:
    check("Clip", [normal(4, 5), np.array(-0.5, np.float32), np.array(0.5, np.float32)])


@pytest.mark.parametrize("shape", [(4, 1, 1), (1,), (4, 5, 5), (5,), (1, 4, 1, 1)])
def test_prelu(shape: tuple[int, ...]) -> None:
    check("PRelu", [normal(2, 4, 5, 5)], [normal(*shape)])


@pytest.mark.parametrize("to", [1, 6, 7, 9, 11])
def test_cast(to: int) -> None:
    check("Cast", [normal(4, 4) * 3], to=to)


@pytest.mark.parametrize("opset", [13, 20])
def test_cast_from_integers(opset: int) -> None:
    check("Cast", [ints(-1, 0, 5)], to=1, opset=opset)


def test_cast_like() -> None:
    check("CastLike", [normal(4) * 3, ints(1)])


REDUCE = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]


@pytest.mark.parametrize("op", REDUCE)
@pytest.mark.parametrize("axes", [[1], [-1], [0, 2], []], ids=str)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions(op: str, axes: list[int], keepdims: int) -> None:
    x = positive(3, 4, 5)
    check(f"Reduce{op}", [x], [ints(*axes)] if axes else [], keepdims=keepdims)
    given: dict[str, Any] = {"axes": axes} if axes else {}
    check(f"Reduce{op}", [x], opset=11, keepdims=keepdims, **given)


def test_a_reduction_over_nothing_changes_nothing() -> None:
    check("ReduceSum", [normal(3, 4)], [ints()], noop_with_empty_axes=1)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_arg_chooses_the_first_of_equals(op: str, axis: int, keepdims: int) -> None:
    check(op, [np.round(normal(6, 7, 8))], axis=axis, keepdims=keepdims)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [0, -1])
def test_top_k(largest: int, axis: int) -> None:
    check("TopK", [normal(6, 7)], [ints(3)], outputs=2, largest=largest, axis=axis)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumulative_sum(exclusive: int, reverse: int) -> None:
    check("CumSum", [normal(3, 4)], [np.array(1, np.int64)], exclusive=exclusive, reverse=reverse)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 6), (5, 4, 3, 3), (2, 4, 3, 3, 3)])
def test_batch_normalization(shape: tuple[int, ...]) -> None:
    check("BatchNormalization", [normal(*shape)], [normal(4), normal(4), normal(4), positive(4)], epsilon=1e-3)


def test_instance_normalization() -> None:
    check("InstanceNormalization", [normal(2, 4, 5, 5)], [normal(4), normal(4)], epsilon=1e-3)


@pytest.mark.parametrize(("axis", "shape"), [(-1, (5,)), (1, (4, 5)), (2, (5,)), (1, (5,))])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_normalization(axis: int, shape: tuple[int, ...], bias: bool) -> None:
    stored = [normal(*shape), normal(*shape)] if bias else [normal(*shape)]
    check("LayerNormalization", [normal(3, 4, 5)], stored, axis=axis, epsilon=1e-3)


@pytest.mark.parametrize("opset", [18, 21])
def test_group_normalization(opset: int) -> None:
    size = 2 if opset == 18 else 6
    check("GroupNormalization", [normal(2, 6, 4, 4)], [normal(size), normal(size)], num_groups=2, opset=opset)


@pytest.mark.parametrize("size", [3, 5])
def test_local_response_normalization(size: int) -> None:
    check("LRN", [normal(2, 8, 4, 4)], size=size, alpha=0.1, beta=0.6, bias=2.0)


def test_rms_normalization_and_swish() -> None:
    check("RMSNormalization", [normal(3, 4, 5)], [normal(5)], opset=23)
    check("Swish", [normal(3, 4)], opset=24, alpha=1.5)
    check("Swish", [normal(3, 4)], opset=24)
