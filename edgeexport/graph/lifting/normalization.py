"""Normalizations, at inference. Source: ONNX Operators.md."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the name everybody knows

from edgeexport.graph.lifting.node import Node, Run


def batch_normalization(node: Node) -> Run:
    """BatchNormalization with stored mean and variance, on any rank from 2 on."""
    epsilon = node.get("epsilon", 1e-5)
    node.get("momentum")
    node.demand("training_mode", 0, allowed=(0,))
    node.demand("spatial", 1, allowed=(1,))
    node.one_output()
    return lambda x, scale, bias, mean, variance: F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)


def instance_normalization(node: Node) -> Run:
    """InstanceNormalization."""
    epsilon = node.get("epsilon", 1e-5)
    return lambda x, scale, bias: F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def layer_normalization(node: Node) -> Run:
    """LayerNormalization over the last axes, from `axis` on."""
    node.one_output()
    node.get("stash_type")
    axis, epsilon = node.axis(default=-1), node.get("epsilon", 1e-5)
    if len(node.shape(1)) == node.rank() - axis:
        return lambda x, scale, bias=None: F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)

    def run(x: Tensor, scale: Tensor, *rest: Tensor | None) -> Tensor:
        bias = rest[0] if rest else None
        normal = F.layer_norm(x, x.shape[axis:], None, None, epsilon) * scale
        return normal if bias is None else normal + bias

    return run


def rms_normalization(node: Node) -> Run:
    """RMSNormalization over the last axes, from `axis` on."""
    node.get("stash_type")
    axis, epsilon = node.axis(default=-1), node.get("epsilon", 1e-5)
    axes = list(range(axis, node.rank()))
    return lambda x, scale: x * torch.rsqrt((x * x).mean(dim=axes, keepdim=True) + epsilon) * scale


def group_normalization(node: Node) -> Run:
    """GroupNormalization: a scale for each channel (from opset 21 on) or each group (before)."""
    groups, epsilon = node.get("num_groups"), node.get("epsilon", 1e-5)
    node.get("stash_type")
    if node.opset >= 21:
        return lambda x, scale, bias: F.group_norm(x, groups, scale, bias, epsilon)

    def run(x: Tensor, *affine: Tensor) -> Tensor:
        scale, bias = (value.repeat_interleave(x.shape[1] // groups) for value in affine)
        return F.group_norm(x, groups, scale, bias, epsilon)

    return run


def local_response(node: Node) -> Run:
    """LRN over an odd number of channels (for an even one, torch's window is shifted by one)."""
    size = node.get("size")
    if size % 2 == 0:
        raise node.refusal(f"attribute size = {size}, only odd sizes agree with torch")
    alpha, beta, k = node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    return lambda x: F.local_response_norm(x, size, alpha, beta, k)


def lp_normalization(node: Node) -> Run:
    """LpNormalization: divided by the norm along one axis; a zero norm gives zeros."""
    axis, p = node.axis(default=-1), node.get("p", 2)

    def run(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, ord=p, dim=axis, keepdim=True)
        return torch.where(norm == 0, torch.zeros_like(x), x / norm)

    return run
