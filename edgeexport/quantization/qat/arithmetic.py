"""The arithmetic of onnxruntime's integer kernels in torch: how each comes from 8-bit inputs to steps of its output.

The rule: integers are added exactly, and floats rounded where the kernel rounds them (MLAS: qladd, qlmul, qlgavgpool,
requantization), so that the tap that follows finds the very integer of the file. Gradients are those of the float
graph. A result that a tap takes is in steps of its scale, not in its unit: nothing else may read it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeexport.quantization.qat.steps import joined, weighed

Run = Callable[..., Any]
# Float32 holds every integer up to here: sums below it are exact in any order.
EXACT_SUMS = 2.0**24
# On Arm the greater ratio of a sum is scaled to 22 bits, if both are between these bounds.
_BITS, _LEAST, _MOST, _SHIFTS = 21, 2.0**-14, 2.0**8, (13, 31)
# Far below any difference of products, so that it moves halves alone.
_NUDGE = 2.0**-40


@dataclass(frozen=True)
class Grid:
    """The numbers of an 8-bit tensor. zero: its zero point as the kernels see it, from 0 to 255; scale: detached.

    counted: the tensor comes in steps from zero; else in its own unit.
    """

    scale: Tensor
    zero: int = 0
    counted: bool = False

    def steps(self, value: Tensor) -> Tensor:
        """Return a rounded tensor in whole steps from zero, as floats; a gradient passes."""
        if self.counted:
            return value
        return weighed(value, torch.round(value.detach() / self.scale), weight=1.0 / self.scale)

    def real(self, value: Tensor) -> Tensor:
        """Return a rounded tensor in its own unit."""
        return value * self.scale if self.counted else value


@dataclass(frozen=True)
class Weights:
    """The scales of a weight. along: broadcast to it; channels: to the result, from its channels on; axis: of output
    channels in the weight.
    """

    along: Tensor
    channels: Tensor
    axis: int


def layer(run: Run, inputs: tuple[Tensor, ...], *, source: Grid, weights: Weights, into: Grid | None) -> Tensor:
    """A convolution or product of matrices: a whole sum, times one float.

    run: the float operator. inputs: rounded value, weight and perhaps bias. Without `into` the result is in its own
    unit.
    """
    value, weight, *rest = inputs
    factors = source.scale * weights.channels
    whole = [source.steps(value), Grid(weights.along).steps(weight)]
    whole += [_whole_bias(each, factors.reshape(-1)) for each in rest]
    if not torch.is_grad_enabled() and _largest(whole, axis=weights.axis) >= EXACT_SUMS:
        sums = run(*(each.double() for each in whole)).float()
    else:
        sums = run(*whole)
    steps: Tensor = sums * (factors if into is None else factors / into.scale)
    return steps


def floats(run: Run, inputs: tuple[Tensor, ...], *, source: Grid, weights: Weights) -> Tensor:
    """A layer whose kernel (MatMulIntegerToFloat) adds its bias in float."""
    value, weight, *rest = inputs
    found = layer(run, (value, weight), source=source, weights=weights, into=None)
    return found + rest[0].reshape(-1, *[1] * (weights.channels.ndim - 1)) if rest else found


def total(inputs: tuple[Tensor, ...], *, sources: tuple[Grid, ...], into: Grid, arm: bool) -> Tensor:
    """The sum of two 8-bit tensors (QLinearAdd), its zero point included."""
    first, second = (source.steps(each) for source, each in zip(sources, inputs, strict=True))
    ratios = [source.scale / into.scale for source in sources]
    with torch.no_grad():
        fixed = _fixed_point(ratios) if arm else None
        if fixed is not None:
            shift, (one, other) = fixed
            result = _away((first.double() * one + second.double() * other) * 2.0**-shift) + into.zero
        elif arm:
            result = (first * sources[0].scale + second * sources[1].scale) / into.scale + into.zero
        else:
            result = _fused_sum((first, second), ratios, zeros=[source.zero for source in sources], zero=into.zero)
    return joined(result, (first, second), weights=(ratios[0], ratios[1]))


def _fused_sum(steps: tuple[Tensor, Tensor], ratios: list[Tensor], *, zeros: list[int], zero: int) -> Tensor:
    """A sum by fused multiply-adds, which round once: product and sum are exact in float64."""
    first, second = (each.double().add_(at) for each, at in zip(steps, zeros, strict=True))
    one, other = (ratio.double() for ratio in ratios)
    scaled = (ratios[1] * zeros[1]).double()
    constant = (zero - (one * zeros[0] + scaled).float()).double()
    part = second.mul_(other).add_(constant).float()
    return first.mul_(one).add(part).float()


def product(inputs: tuple[Tensor, ...], *, sources: tuple[Grid, ...], into: Grid) -> Tensor:
    """The product of two 8-bit tensors (QLinearMul), its zero point included."""
    first, second = (source.steps(each) for source, each in zip(sources, inputs, strict=True))
    return first * second * (sources[0].scale * sources[1].scale / into.scale) + into.zero


def mean(value: Tensor, *, source: Grid, into: Grid, arm: bool) -> Tensor:
    """The mean over all spatial axes (QLinearGlobalAveragePool): a whole sum, times one float."""
    sums = source.steps(value).sum(dim=list(range(2, value.ndim)), keepdim=True)
    factor = source.scale / (into.scale * value[0, 0].numel())
    return _away(sums.double() * factor.double()) if arm else sums * factor


def window_mean(run: Run, value: Tensor, *, source: Grid, into: Grid) -> Tensor:
    """The mean over windows (QLinearAveragePool), its zero point included."""
    found: Tensor = run(source.real(value)) / into.scale + into.zero
    return found


def _whole_bias(value: Tensor, scale: Tensor) -> Tensor:
    whole = torch.round(value.detach().double() / scale.double()).float()
    return weighed(value, whole, weight=1.0 / scale)


def _largest(whole: list[Tensor], *, axis: int) -> float:
    """The largest sum that could come about, of whole inputs, weights and biases."""
    value, weight, *rest = whole
    most = weight.abs().transpose(0, axis).flatten(1).sum(dim=1).max() * value.abs().max()
    return float(most) + sum(float(each.abs().max()) for each in rest)


def _fixed_point(ratios: list[Tensor]) -> tuple[int, list[int]] | None:
    """Return (shift, multipliers) of a sum on Arm; None where it computes in float."""
    greater = max(float(ratio) for ratio in ratios)
    if min(float(ratio) for ratio in ratios) < _LEAST or greater >= _MOST:
        return None
    shift = _BITS + 1 - int(torch.frexp(torch.tensor(greater)).exponent)
    multipliers = [round(float(ratio) * 2.0**shift) for ratio in ratios]
    fits = _SHIFTS[0] <= shift <= _SHIFTS[1] and max(multipliers) < 2 ** (_BITS + 1)
    return (shift, multipliers) if fits else None


def _away(value: Tensor) -> Tensor:
    """Move halves away from zero, where Arm's rounding shift takes them."""
    return value + _NUDGE * value.detach().sign()
