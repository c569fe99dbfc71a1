"""Products of matrices. Source: ONNX Operators.md, Gemm, MatMul, Einsum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the name everybody knows

from edgeexport.graph.lifting.node import Node, Run


def gemm(node: Node) -> Run:
    """Gemm: a linear layer where it is one, else the product written out."""
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    turn_a, turn_b = bool(node.get("transA", 0)), bool(node.get("transB", 0))
    is_layer = alpha == 1 and beta == 1 and (not node.has(2) or node.rank(2) == 1)

    def run(a: Tensor, b: Tensor, *rest: Tensor | None) -> Tensor:
        c = rest[0] if rest else None
        a = a.t() if turn_a else a
        if is_layer and (c is None or c.shape[0] == b.shape[0 if turn_b else 1]):
            return F.linear(a, b if turn_b else b.t(), c)
        product = torch.matmul(a, b.t() if turn_b else b)
        scaled = product if alpha == 1 else product * alpha
        return scaled if c is None else scaled + (c if beta == 1 else c * beta)

    return run


def einsum(node: Node) -> Run:
    """Einsum."""
    equation = node.get("equation")
    return lambda *values: torch.einsum(equation, *values)
