"""Operators that sum up, choose or sort along axes. Source: ONNX Operators.md, ReduceL1 to TopK."""
# ruff: noqa: ARG001, ARG005  every builder gets its node and every operator all its inputs, needed or not

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgeexport.graph.lifting.node import Build, Node, Run

_AXES_AS_INPUT_FROM = {"ReduceSum": 13}


def reduction(function: Run) -> Build:
    """Return a builder for Reduce*; `function(x, dim=axes, keepdim=bool)` does the work."""

    def build(node: Node) -> Run:
        keep = bool(node.get("keepdims", 1))
        if node.opset >= _AXES_AS_INPUT_FROM.get(node.proto.op_type, 18):
            axes = node.stored_ints(1, "axes")
        else:
            axes = node.ints("axes", [])
        if node.get("noop_with_empty_axes", 0) and not axes:
            return lambda x, *rest: x
        chosen = axes or list(range(node.rank()))
        return lambda x, *rest: function(x, dim=chosen, keepdim=keep)

    return build


def product(x: Tensor, *, dim: list[int], keepdim: bool) -> Tensor:
    """Multiply along several axes, one after the other."""
    for axis in sorted((axis % x.dim() for axis in dim), reverse=True):
        x = x.prod(dim=axis, keepdim=keepdim)
    return x


def norm_1(x: Tensor, *, dim: list[int], keepdim: bool) -> Tensor:
    """Sum of absolute values."""
    return x.abs().sum(dim=dim, keepdim=keepdim)


def norm_2(x: Tensor, *, dim: list[int], keepdim: bool) -> Tensor:
    """Square root of the sum of squares."""
    return (x * x).sum(dim=dim, keepdim=keepdim).sqrt()


def sum_square(x: Tensor, *, dim: list[int], keepdim: bool) -> Tensor:
    """Sum of squares."""
    return (x * x).sum(dim=dim, keepdim=keepdim)


def log_sum(x: Tensor, *, dim: list[int], keepdim: bool) -> Tensor:
    """Logarithm of the sum."""
    return x.sum(dim=dim, keepdim=keepdim).log()


def arg(function: Any) -> Build:
    """Return a builder for ArgMax or ArgMin; of equal values the first one counts."""

    def build(node: Node) -> Run:
        axis, keep = node.axis(), bool(node.get("keepdims", 1))
        node.demand("select_last_index", 0, allowed=(0,))
        return lambda x: function(x, dim=axis, keepdim=keep)

    return build


def top_k(node: Node) -> Run:
    """TopK with a stored k."""
    k = node.stored_ints(1, "k") if node.opset >= 10 else [node.get("k")]
    axis, largest = node.axis(default=-1), bool(node.get("largest", 1))
    in_order = bool(node.get("sorted", 1))
    count = (k or [1])[0]
    return lambda x, *rest: tuple(torch.topk(x, count, dim=axis, largest=largest, sorted=in_order))


def cumulative_sum(node: Node) -> Run:
    """CumSum, also from the end, also without the value itself."""
    axis = (node.stored_ints(1, "axis") or [0])[0]
    exclusive, reverse = node.get("exclusive", 0), node.get("reverse", 0)

    def run(x: Tensor, *rest: Any) -> Tensor:
        x = x.flip(axis) if reverse else x
        total = x.cumsum(dim=axis)
        total = total - x if exclusive else total
        return total.flip(axis) if reverse else total

    return run
