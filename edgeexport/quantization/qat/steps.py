"""Rounding to integers that a gradient passes through, and the taps that do it at the sites of a twin.

The rule: forwards the very numbers of the int8 file: float32 division by the scale, halves to even, saturation at the
ends of the type. Backwards the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432) for values, and the
gradient of learned step size quantization (Esser et al. 2020, arXiv:1902.08153) for steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# A site's scale by ("activation", tensor) or ("weight", weight); filled anew for every run of a simulation.
Scales = dict[tuple[str, str], Tensor]
# A trained scale stays above this share of what it was.
_LEAST_FACTOR = 0.01
_INT32 = (-(2.0**31), 2.0**31 - 1)


def whole_steps(value: Tensor, scale: Tensor, *, bounds: tuple[float, float]) -> Tensor:
    """Return round(value / scale), halves to even, within `bounds`; as floats."""
    return torch.round(value / scale).clamp_(*bounds)


class _Rounded(torch.autograd.Function):
    """value, scale, bounds, share, zero, counts → whole steps, times scale unless it `counts`.

    share: what the gradient of the scale is multiplied with. zero: None for a value in its own unit; else it comes in
    steps, with this much added.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, *facts: Any) -> Tensor:
        scale, bounds, share, zero, counts = facts
        steps, whole = _counted(value, scale, zero=zero)
        kept = whole.clamp(*bounds)
        inside = kept == whole
        ctx.share, ctx.shape, ctx.comes, ctx.goes = share, scale.shape, zero is not None, counts
        slope = torch.where(inside, kept - steps, kept) if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(inside, slope, scale)
        if counts:
            return kept
        return kept.mul_(scale) if slope is None else kept * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inside, slope, scale = ctx.saved_tensors
        of_scale = None
        if slope is not None:
            of_scale = (gradient * slope).sum_to_size(ctx.shape) * ctx.share
            of_scale = of_scale / scale if ctx.goes else of_scale
        passed = gradient * inside
        if ctx.comes != ctx.goes:
            passed = passed * scale if ctx.comes else passed / scale
        return passed, of_scale, None, None, None, None


def _counted(value: Tensor, scale: Tensor, *, zero: int | None) -> tuple[Tensor, Tensor]:
    """Return (steps from zero, the same rounded) as float32. A zero point that was added is in when halves are cut."""
    steps = value / scale if zero is None else value
    whole = torch.round(steps)
    if zero:
        steps, whole = steps - zero, whole - zero
    return steps.float(), whole.float()


@dataclass(frozen=True)
class Units:
    """What a tensor comes and goes in: its own unit, or steps of its scale.

    zero: None for one that comes in its own unit; else with this much added. counts: it goes in steps.
    """

    zero: int | None = None
    counts: bool = False


REAL = Units()


def rounded(value: Tensor, scale: Tensor, *, bounds: tuple[float, float], count: int, units: Units = REAL) -> Tensor:
    """Return `value` on the grid of `scale`. count: values that one scale stands for (Esser et al. 2020, 2.2)."""
    share = 1.0 / max(1.0, count * max(-bounds[0], bounds[1])) ** 0.5
    return _Rounded.apply(value, scale, bounds, share, units.zero, units.counts)  # type: ignore[no-any-return, no-untyped-call]


class _Weighed(torch.autograd.Function):
    """value, result, weight → result. weight: what the gradient of the value is multiplied with."""

    @staticmethod
    def forward(ctx: Any, *facts: Any) -> Tensor:
        _, result, ctx.weight = facts
        found: Tensor = result.view_as(result)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] * ctx.weight, None, None


def weighed(value: Tensor, result: Tensor, *, weight: Tensor | float) -> Tensor:
    """Return `result`, which has the gradient of `value` times `weight`."""
    return _Weighed.apply(value, result, weight)  # type: ignore[no-any-return, no-untyped-call]


class _Joined(torch.autograd.Function):
    """first, second, result, weights → result; what the gradients of the two are multiplied with are its weights."""

    @staticmethod
    def forward(ctx: Any, *facts: Any) -> Tensor:
        first, second, result, ctx.weights = facts
        ctx.shapes = first.shape, second.shape
        found: Tensor = result.view_as(result)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.weights, ctx.shapes, strict=True)
        found = [(gradients[0] * weight).sum_to_size(shape) for weight, shape in pairs]
        return found[0], found[1], None, None


def joined(result: Tensor, pair: tuple[Tensor, Tensor], *, weights: tuple[Tensor, Tensor]) -> Tensor:
    """Return `result`, which has the gradients of both of a pair, each times its weight."""
    return _Joined.apply(*pair, result, weights)  # type: ignore[no-any-return, no-untyped-call]


def scale_of(factor: Tensor, start: Tensor) -> Tensor:
    """Return the scale that is trained as a factor of its start.

    Under SGD a step changes it as if it were trained itself; under Adam, by a share of itself, however small it is.
    """
    return weighed(factor, factor.detach(), weight=start.square().reciprocal()).clamp(min=_LEAST_FACTOR) * start


class RoundedActivation(nn.Module):
    """The tap of an activation: q = round(x / scale) + zero point, saturated to its type, as a float again.

    units: in which an integer kernel gives x, and wants q. given: steps from zero to go on with in place of x's own,
    which are left in `seen`; to compare with an int8 file.
    """

    def __init__(self, scales: Scales, key: tuple[str, str], *, bounds: tuple[int, int]) -> None:
        super().__init__()
        self._scales, self._key, self._bounds = scales, key, bounds
        self.units = REAL
        self.given: Tensor | None = None
        self.seen: Tensor | None = None

    def forward(self, value: Tensor) -> Tensor:
        """Round; a gradient passes."""
        scale = self._scales[self._key]
        if self.given is not None:
            self.seen = _counted(value, scale, zero=self.units.zero)[1].clamp(*self._bounds)
            return self.given if self.units.counts else self.given * scale
        count = value[0].numel() if value.ndim else 1
        return rounded(value, scale, bounds=self._bounds, count=count, units=self.units)


class RoundedWeight(nn.Module):
    """The tap of a weight with a scale for each index of `axis`, or a single one."""

    def __init__(self, scales: Scales, weight: str, *, axis: int | None, bounds: tuple[int, int]) -> None:
        super().__init__()
        self._scales, self._key, self._axis, self._bounds = scales, ("weight", weight), axis, bounds

    def forward(self, value: Tensor) -> Tensor:
        """Round; a gradient passes."""
        scale = along(self._scales[self._key], axis=self._axis, rank=value.ndim)
        return rounded(value, scale, bounds=self._bounds, count=value.numel() // scale.numel())

    def integers(self, value: Tensor) -> Tensor:
        """Return the whole steps of a weight from its zero point, as floats."""
        scale = along(self._scales[self._key], axis=self._axis, rank=value.ndim)
        return whole_steps(value.detach(), scale.detach(), bounds=self._bounds)

    def real(self, value: Tensor) -> Tensor:
        """Return a weight on its grid."""
        scale = along(self._scales[self._key], axis=self._axis, rank=value.ndim)
        return self.integers(value) * scale.detach()


class RoundedBias(nn.Module):
    """The tap of a bias: 32-bit steps of input scale · weight scale. Its gradient passes as it is."""

    def __init__(self, scales: Scales, *, step: str, weight: str) -> None:
        super().__init__()
        self._scales, self._step, self._weight = scales, ("activation", step), ("weight", weight)

    def forward(self, value: Tensor) -> Tensor:
        """Round; a gradient passes."""
        with torch.no_grad():
            real = self.integers(value).float() * self.scale()
        return weighed(value, real, weight=1.0)

    def scale(self) -> Tensor:
        """Return the product of the two scales, in float32 as the quantizer computes it."""
        return (self._scales[self._step] * self._scales[self._weight]).detach()

    def integers(self, value: Tensor) -> Tensor:
        """Return the whole steps of a bias, as float64."""
        return whole_steps(value.detach().double(), self.scale().double(), bounds=_INT32)


def along(scales: Tensor, *, axis: int | None, rank: int) -> Tensor:
    """Return scales in a shape that broadcasts along `axis` of a tensor of this rank; a single one without shape."""
    if axis is None:
        return scales.reshape(())
    return scales.reshape([-1 if index == axis else 1 for index in range(rank)])


def following(value: Tensor, *, axis: int | None, limit: int, least: Tensor | float) -> Tensor:
    """Return the scales that `plan.weight_scales` gives these values, none below `least`: same numbers, same bits."""
    from edgeexport.quantization.plan import LEAST_SCALE

    size = value.detach().abs()
    others = [index for index in range(value.ndim) if index != axis]
    largest = (size.max().reshape(1) if axis is None else size.amax(others)).double()
    scales = 2.0 * largest / (2.0 * limit)
    dead = largest == 0.0
    if bool(dead.all()):
        scales = torch.ones_like(scales)
    scales = torch.where(dead, scales.max(), scales).clamp(min=LEAST_SCALE).float()
    return torch.maximum(scales.double(), torch.as_tensor(least, dtype=torch.float64)).float()
