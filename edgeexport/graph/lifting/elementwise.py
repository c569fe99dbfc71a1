"""Operators that work value by value. Source: ONNX Operators.md."""
# ruff: noqa: ARG001, ARG005  every builder gets its node and every operator all its inputs, needed or not

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the name everybody knows

from edgeexport.graph.lifting.node import Build, Node, Run

# TensorProto.DataType → torch type.
DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def plain(function: Run) -> Build:
    """Return a builder for an operator without attributes that torch has as it is."""
    return lambda node: function


def folded(function: Run) -> Build:
    """Return a builder for an operator of two values that ONNX allows on any number of inputs."""
    return lambda node: lambda *values: functools.reduce(function, values)


def mean(node: Node) -> Run:
    """Mean of any number of inputs."""
    return lambda *values: functools.reduce(torch.add, values) / len(values)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Div: integers are divided towards zero."""
    if a.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def power(a: Tensor, b: Tensor) -> Tensor:
    """Pow: the result has the type of the base."""
    return torch.pow(a, b).to(a.dtype)


def modulo(node: Node) -> Run:
    """Mod: sign of the divisor, or of the dividend where fmod is set."""
    return torch.fmod if node.get("fmod", 0) else torch.remainder


def clip(node: Node) -> Run:
    """Clip, bounds as attributes (up to opset 10) or inputs."""
    if node.opset < 11:
        return _clamp(node.get("min"), node.get("max"))
    low, high = node.constant(1), node.constant(2)
    if (node.has(1) and low is None) or (node.has(2) and high is None):
        return lambda x, low=None, high=None: torch.clamp(x, low, high)
    run = _clamp(None if low is None else low.item(), None if high is None else high.item())
    return lambda x, *bounds: run(x)


def _clamp(low: float | None, high: float | None) -> Run:
    if low == 0 and high == 6:
        return lambda x: F.relu6(x) if x.is_floating_point() else torch.clamp(x, 0, 6)
    if low == 0 and (high is None or high >= 3.4e38):
        return F.relu
    if low is None and high is None:
        return lambda x: x
    return lambda x: torch.clamp(x, low, high)


def cast(node: Node) -> Run:
    """Cast between number types."""
    node.get("saturate")
    node.get("round_mode")
    to = node.get("to")
    if to not in DTYPES:
        raise node.refusal(f"attribute to = {to}, torch has no such type")
    return lambda x: x.to(DTYPES[to])


def cast_like(node: Node) -> Run:
    """CastLike: to the type of the second input."""
    node.get("saturate")
    return lambda x, like: x.to(like.dtype)


def leaky_relu(node: Node) -> Run:
    """LeakyRelu."""
    slope = node.get("alpha", 0.01)
    return lambda x: F.leaky_relu(x, slope)


def prelu(node: Node) -> Run:
    """PRelu: one slope for each channel where torch can, else any slope that broadcasts."""
    shape, slope = node.rank(), node.shape(1)
    if shape >= 2 and len(slope) == shape - 1 and all(size == 1 for size in slope[1:]):
        return lambda x, weight: F.prelu(x, weight.reshape(-1))
    return lambda x, weight: torch.where(x < 0, x * weight, x)


def elu(node: Node) -> Run:
    """Elu."""
    alpha = node.get("alpha", 1.0)
    return lambda x: F.elu(x, alpha)


def celu(node: Node) -> Run:
    """Celu."""
    alpha = node.get("alpha", 1.0)
    return lambda x: F.celu(x, alpha)


def selu(node: Node) -> Run:
    """Selu, with the constants of the node."""
    alpha, gamma = node.get("alpha", 1.67326319217681884765625), node.get("gamma", 1.05070102214813232421875)
    return lambda x: gamma * F.elu(x, alpha)


def hard_sigmoid(node: Node) -> Run:
    """HardSigmoid: torch's own for the slope 1/6, which converters know."""
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


def thresholded_relu(node: Node) -> Run:
    """ThresholdedRelu."""
    alpha = node.get("alpha", 1.0)
    return lambda x: F.threshold(x, alpha, 0.0)


def gelu(node: Node) -> Run:
    """Gelu, exact or by tanh."""
    kind = node.demand("approximate", "none", allowed=("none", "tanh"))
    return lambda x: F.gelu(x, approximate=kind)


def swish(node: Node) -> Run:
    """Swish: x · sigmoid(alpha · x)."""
    alpha = node.get("alpha", 1.0)
    return F.silu if alpha == 1 else lambda x: x * torch.sigmoid(alpha * x)


def where(node: Node) -> Run:
    """Where."""
    return torch.where


def is_inf(node: Node) -> Run:
    """IsInf of either sign, or of one."""
    negative, positive = node.get("detect_negative", 1), node.get("detect_positive", 1)

    def run(x: Tensor) -> Tensor:
        found = torch.isinf(x)
        if not negative:
            found = found & (x > 0)
        return found if positive else found & (x < 0)

    return run


def softmax(function: Any) -> Build:
    """Return a builder for Softmax or LogSoftmax; up to opset 12 they flatten everything from the axis on."""

    def build(node: Node) -> Run:
        axis = node.axis(default=-1 if node.opset >= 13 else 1)
        if node.opset >= 13 or axis == node.rank() - 1:
            return lambda x: function(x, dim=axis)
        return lambda x: function(x.flatten(axis), dim=-1).reshape(x.shape)

    return build
