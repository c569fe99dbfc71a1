"""A comparison fails by name, and finds where two models part."""

from __future__ import annotations

import numpy as np
import pytest

from edgeexport.errors import DataError
from edgeexport.validation.compare import CAP_DB, compare_outputs, compare_sessions, first_divergence
from tests.needs import need

ONES = {"y": np.ones((2, 3), np.float32)}


def compare(reference, candidate, **tolerance):
    tolerance = tolerance or {"float_error": 1e-3, "sqnr_db": 20.0}
    return compare_sessions(
        lambda _: reference, lambda _: candidate, samples=[{}], artifacts=("sha256:a", "sha256:b"), **tolerance
    )


def test_equal_outputs_have_the_capped_sqnr_and_no_error():
    (parity,) = compare_outputs(ONES, ONES)
    assert (parity.max_abs_error, parity.relative_error, parity.sqnr_db) == (0.0, 0.0, CAP_DB)
    assert parity.cosine == pytest.approx(1.0)


def test_the_figures_are_those_of_their_definitions():
    reference, candidate = np.array([[3.0, -4.0]]), np.array([[3.1, -4.0]])
    (parity,) = compare_outputs({"y": reference}, {"y": candidate})
    assert parity.max_abs_error == pytest.approx(0.1)
    assert parity.relative_error == pytest.approx(0.025)
    assert parity.sqnr_db == pytest.approx(10 * np.log10(25 / 0.01))
    assert parity.cosine == pytest.approx((9.3 + 16) / (5 * np.hypot(3.1, 4)))


def test_integers_do_not_wrap_around():
    (parity,) = compare_outputs({"y": np.array([0], np.uint8)}, {"y": np.array([255], np.uint8)})
    assert parity.max_abs_error == 255


def test_two_zero_outputs_agree_and_zero_against_something_does_not():
    zero, one = {"y": np.zeros(3)}, {"y": np.ones(3)}
    assert compare(zero, zero).holds
    assert compare_outputs(zero, one)[0].sqnr_db == -CAP_DB
    assert not compare(zero, one, float_error=0.5).holds
    assert not compare(one, zero, sqnr_db=1.0).holds


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_a_value_that_is_no_number_fails_and_is_named(bad, side):
    broken = {"y": np.array([[1, bad, 1], [1, 1, 1]], np.float32)}
    parity = compare(broken, ONES) if side == "reference" else compare(ONES, broken)
    assert not parity.holds
    assert parity.reason == f"output 'y': 1 of 6 values of the {side} are NaN or Inf"
    assert parity.worst_sqnr_db() == -CAP_DB


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ({}, "'y': the candidate does not have it"),
        ({**ONES, "z": np.ones(1)}, "'z': the reference does not have it"),
        ({"y": np.ones((2, 4))}, "'y': shape (2, 4) instead of (2, 3)"),
        ({"y": np.ones((3, 2))}, "'y': shape (3, 2) instead of (2, 3)"),
        ({"y": np.full((2, 3), 1.01)}, "relative error 0.01, allowed 0.001"),
        ({"y": np.full((2, 3), 1.2)}, "SQNR 14.0 dB, at least 20 dB needed"),
    ],
)
def test_a_gate_closes_with_the_reason(candidate, reason):
    parity = compare(ONES, candidate)
    assert not parity.holds
    assert reason in parity.reason


def test_outputs_within_the_tolerance_hold():
    parity = compare(ONES, {"y": np.full((2, 3), 1.0005)})
    assert (parity.holds, parity.reason, parity.samples) == (True, "", 1)


def test_one_bad_sample_among_many_is_not_averaged_away():
    feeds = [{"i": np.array(i)} for i in range(100)]
    parity = compare_sessions(
        lambda _: {"y": np.ones(4)},
        lambda feed: {"y": np.ones(4) * (5 if feed["i"] == 57 else 1)},
        samples=feeds,
        artifacts=("a", "b"),
        float_error=1e-3,
    )
    assert (parity.holds, parity.samples) == (False, 100)


def test_no_outputs_is_no_agreement():
    assert not compare({}, {}).holds


def test_no_samples_is_an_error():
    with pytest.raises(DataError, match="no samples"):
        compare_sessions(lambda f: f, lambda f: f, samples=[], artifacts=("a", "b"), float_error=1.0)


def test_a_gate_without_a_tolerance_cannot_be_built():
    with pytest.raises(ValueError, match="tolerance"):
        compare_sessions(lambda f: f, lambda f: f, samples=[{}], artifacts=("a", "b"))


def chain(scale: float = 1.0, bias: float = 0.0, *, quantized: bool = False):
    """x → first (MatMul) → a → second (Add) → b → third (Relu) → y; `quantized` sends `a` through Q and DQ."""
    from onnx import TensorProto, helper, numpy_helper

    need("ort")
    second = "a"
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"], name="first")]
    constants = {"w": np.eye(4, dtype=np.float32) * np.float32(scale), "c": np.full(4, 0.5 + bias, np.float32)}
    if quantized:
        constants |= {"s": np.array(0.5, np.float32), "z": np.array(0, np.int8)}
        nodes.append(helper.make_node("QuantizeLinear", ["a", "s", "z"], ["a_q"], name="q"))
        nodes.append(helper.make_node("DequantizeLinear", ["a_q", "s", "z"], ["a_dq"], name="dq"))
        second = "a_dq"
    nodes.append(helper.make_node("Add", [second, "c"], ["b"], name="second"))
    nodes.append(helper.make_node("Relu", ["b"], ["y"], name="third"))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


FEEDS = {"x": np.array([[0.3, 1.2, -0.7, 2.1]], np.float32)}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"scale": 1.5}, ("a", "first", "MatMul")),
        ({"bias": 1.0}, ("b", "second", "Add")),
        ({"quantized": True}, ("b", "second", "Add")),
    ],
)
def test_the_first_diverging_tensor_is_named_with_its_node(changed, expected):
    divergence = first_divergence(chain(), chain(**changed), feeds=FEEDS, sqnr_db=40.0)
    assert (divergence.tensor, divergence.node, divergence.op) == expected
    assert divergence.sqnr_db < 40.0


def test_equal_models_do_not_diverge():
    assert first_divergence(chain(), chain(), feeds=FEEDS, sqnr_db=100.0) is None


def test_a_model_that_makes_nan_diverges_where_it_is_made():
    divergence = first_divergence(chain(), chain(bias=np.nan), feeds=FEEDS, sqnr_db=0.0)
    assert (divergence.tensor, divergence.sqnr_db) == ("b", -CAP_DB)
