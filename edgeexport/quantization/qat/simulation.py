"""The simulation of an int8 file in torch: its twin, lifted, rounding at every site; trainable.

The rule: scales are worked out once at the start of a run, from what is trained now, and every site reads them there,
so that a bias and its layer never disagree; what an integer kernel computes is computed as it does. What training ends
in is weights and a plan, nothing else.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor, nn

from edgeexport import graph
from edgeexport.errors import ModelError
from edgeexport.quantization.plan import LARGEST_BIAS
from edgeexport.quantization.qat import arithmetic
from edgeexport.quantization.qat.arithmetic import Grid, Run, Weights
from edgeexport.quantization.qat.fused import KernelSite, read_by_kernels
from edgeexport.quantization.qat.steps import (
    RoundedActivation,
    RoundedBias,
    RoundedWeight,
    Scales,
    Units,
    along,
    following,
    scale_of,
)
from edgeexport.quantization.qat.twin import Twin, WeightSite
from edgeexport.records.plan import Point, QuantizationPlan, WeightPoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Kernels that round after they added the zero point.
_SHIFTED = frozenset({"Add", "Mul", "AveragePool"})
_BOUNDS = {"uint8": (0, 255), "int8": (-128, 127)}


@dataclass(frozen=True)
class _Place:
    """Where the numbers of a site are: its key among the scales, and its point. counted: it is passed on in steps."""

    kind: str
    name: str
    point: Point
    counted: bool = False


class Simulation(nn.Module):
    """What an int8 file computes, as a module whose float weights have their ONNX names.

    It starts with the plan's scales. learn_steps: those of weights and activations are trained too (LSQ). Otherwise
    those of activations stay, and those of weights follow their values, as the planner's do: where the plan has a wider
    one, by as much wider. Zero points never change. arm: its kernels are meant.
    """

    def __init__(self, twin: Twin, plan: QuantizationPlan, *, learn_steps: bool = False, arm: bool = False) -> None:
        super().__init__()
        self.activations, self.biases, self.arm = tuple(twin.activations), tuple(twin.biases), arm
        self.weights = _one_each(twin.weights)
        self._plan, self._fits, self.shape, self.kernels = plan, twin.fits, twin.shape(), tuple(twin.kernels)
        self.weight_names = {site.tensor: site.weight for site in twin.weights}
        self._points = {site.step: plan.activations[site.source] for site in self.activations}
        self._scales: Scales = {}
        self.lifted = graph.lift(twin.model)
        self.taps = self._tapped(twin)
        self._fuse(twin)
        self._places: dict[tuple[str, str], int] = {}
        self._starts: list[Tensor] = []
        self._wider: dict[str, Tensor] = {}
        self._wider = self._beside_the_plan()
        self._factors = nn.ParameterList()
        if learn_steps:
            with self._filled():
                learnt = [key for key in self._scales if not self._is_constant(key)]
            self._places = {key: index for index, key in enumerate(learnt)}
            self.restart_steps()
            self._factors = nn.ParameterList(nn.Parameter(torch.ones_like(start)) for start in self._starts)

    def forward(self, *inputs: Tensor) -> Any:
        """Run on inputs in the model's order; one tensor, or a tuple of them."""
        with torch.autocast("cpu", enabled=False), self._filled():
            return self.lifted(*inputs)

    @contextlib.contextmanager
    def computing(self, *, arm: bool) -> Iterator[None]:
        """For the time of this context, compute as onnxruntime does on Arm, or on x86."""
        meant, self.arm = self.arm, arm
        try:
            yield
        finally:
            self.arm = meant

    def restart_steps(self) -> None:
        """Let scales that are learnt start from the weights as they are now; before anything is learnt."""
        places, self._places = self._places, {}
        with self._filled():
            self._starts = [self._scales[key].detach().clone() for key in places]
        self._places = places

    def stored_weights(self) -> dict[str, NDArray[Any]]:
        """Return ONNX name → value of every weight that training may move; what int8 stores lies on its grid."""
        found = self.lifted.export_weights()
        with torch.no_grad(), self._filled():
            for site in self.weights.values():
                found[site.weight] = self.taps[site.tensor].real(self.value(site.weight)).numpy()
        return found

    def integers(self) -> dict[str, NDArray[Any]]:
        """Return tensor of the twin → steps from zero of every weight and bias."""
        with torch.no_grad(), self._filled():
            named = [(site.tensor, site.weight) for site in self.weights.values()]
            named += [(site.tensor, site.bias) for site in self.biases]
            return {tensor: self.taps[tensor].integers(self.value(name)).numpy() for tensor, name in named}

    def plan(self, model_digest: str) -> QuantizationPlan:
        """Return the plan for the model with `stored_weights`: the scales as they are now."""
        with torch.no_grad(), self._filled():
            scales = {key: tuple(value.reshape(-1).tolist()) for key, value in self._scales.items()}
        steps = {site.source: site.step for site in self.activations}
        activations = {
            name: Point(point.dtype, scales["activation", steps[name]][0], point.zero_point) if name in steps else point
            for name, point in self._plan.activations.items()
        }
        weights = {
            name: WeightPoint("int8", site.axis, scales["weight", name], (0,) * len(scales["weight", name]))
            for name, site in self.weights.items()
            if not site.constant
        }
        weights = {**self._plan.weights, **weights}
        replaced = {"model_digest": model_digest, "activations": activations, "weights": weights}
        return msgspec.structs.replace(self._plan, **replaced)

    def value(self, name: str) -> Tensor:
        """Return the present float value of a weight or bias."""
        return self.lifted.get_parameter(self.lifted.weight_names[name])

    def _tapped(self, twin: Twin) -> dict[str, Any]:
        """Put a tap on every site; return them by tensor. They live in the lifted module."""
        taps: dict[str, Any] = {}
        for site in self.activations:
            bounds = _shifted(self._points[site.step])
            taps[site.tensor] = RoundedActivation(self._scales, ("activation", site.step), bounds=bounds)
        for each in twin.weights:
            bounds = (-each.limit, each.limit)
            if each.constant:
                point = self._plan.weights[each.weight]
                bounds = _shifted(Point(point.dtype, point.scales[0], point.zero_points[0]))
            taps[each.tensor] = RoundedWeight(self._scales, each.weight, axis=each.axis, bounds=bounds)
        for bias in self.biases:
            taps[bias.tensor] = RoundedBias(self._scales, step=bias.step, weight=bias.weight)
        for tensor, tap in taps.items():
            self.lifted.tap(tensor, tap)
        return taps

    def _fuse(self, twin: Twin) -> None:
        """Let integer kernels compute as they do; the taps between them pass on steps."""
        weights = {site.tensor: site for site in twin.weights}
        places = {site.tensor: _Place("activation", site.step, self._points[site.step]) for site in self.activations}
        for each in (each for each in twin.weights if each.constant):
            point = self._plan.weights[each.weight]
            constant = Point(point.dtype, point.scales[0], point.zero_points[0])
            places[each.tensor] = _Place("weight", each.weight, constant)
        counted = read_by_kernels(twin)
        for site in self.activations:
            self.taps[site.tensor].units = Units(counts=site.tensor in counted)
            places[site.tensor] = replace(places[site.tensor], counted=site.tensor in counted)
        for kernel in twin.kernels:
            for taker in kernel.into:
                zero = _zero(self._points[taker.step]) if kernel.op in _SHIFTED else 0
                self.taps[taker.tensor].units = Units(zero, taker.tensor in counted)
            given = [places[name] for name in (*kernel.sources, *(taker.tensor for taker in kernel.into[:1]))]
            bound = functools.partial(self._computed, kernel, given=given, weight=weights.get(kernel.weight))
            self.lifted.compute(kernel.tensor, bound)

    def _computed(self, kernel: KernelSite, run: Run, *, given: list[_Place], weight: WeightSite | None) -> Run:
        """Return what computes a kernel. given: where the numbers of its sources, and of its result, are."""

        def computed(*inputs: Tensor | None) -> Tensor:
            grids = [self._grid(each) for each in given]
            sources, into = tuple(grids[: len(kernel.sources)]), grids[-1] if kernel.into else None
            present = tuple(each for each in inputs if each is not None)
            if weight is not None:
                scales = self._scales["weight", weight.weight].detach()
                numbers = _weights(scales, kernel, site=weight, rank=present[1].ndim)
                if not kernel.whole_bias:
                    return arithmetic.floats(run, present, source=sources[0], weights=numbers)
                return arithmetic.layer(run, present, source=sources[0], weights=numbers, into=into)
            assert into is not None
            match kernel.op:
                case "Add":
                    return arithmetic.total(present, sources=sources, into=into, arm=self.arm)
                case "Mul":
                    return arithmetic.product(present, sources=sources, into=into)
                case "GlobalAveragePool":
                    return arithmetic.mean(present[0], source=sources[0], into=into, arm=self.arm)
                case _:
                    return arithmetic.window_mean(run, present[0], source=sources[0], into=into)

        return computed

    def _grid(self, place: _Place) -> Grid:
        scale = self._scales[place.kind, place.name].detach().reshape(())
        return Grid(scale, _zero(place.point), place.counted)

    @contextlib.contextmanager
    def _filled(self) -> Iterator[None]:
        """Work out every scale for the time of a run; sites read them."""
        try:
            for step, point in self._points.items():
                self._scales["activation", step] = self._given(("activation", step), torch.tensor(point.scale))
            for name, site in self.weights.items():
                self._scales["weight", name] = self._weight_scale(site)
            yield
        finally:
            self._scales.clear()

    def _given(self, key: tuple[str, str], otherwise: Tensor) -> Tensor:
        """The trained scale of a site, or the one that it has otherwise."""
        place = self._places.get(key)
        return otherwise if place is None else scale_of(self._factors[place], self._starts[place])

    def _weight_scale(self, site: WeightSite) -> Tensor:
        if site.constant:
            return torch.tensor(self._plan.weights[site.weight].scales)
        least = self._least(site)
        key = ("weight", site.weight)
        if key in self._places:
            return torch.maximum(self._given(key, least), least.float())
        found = following(self.value(site.weight), axis=site.axis, limit=site.limit, least=least)
        if site.weight not in self._wider:
            return found
        return torch.maximum(found.double() * self._wider[site.weight], least).float()

    def _beside_the_plan(self) -> dict[str, Tensor]:
        """Weight → how many times the plan's scales are those that its values ask for; exact in float64."""
        planned = {name: self._plan.weights[name] for name in self.weights if name in self._plan.weights}
        points = {name: point for name, point in planned.items() if point.axis == self.weights[name].axis}
        with torch.no_grad(), self._filled():
            now = {name: self._scales["weight", name].double() for name in points}
        return {name: torch.tensor(points[name].scales, dtype=torch.float64) / now[name] for name in points}

    def _least(self, site: WeightSite) -> Tensor:
        """The least scales with which biases fit 32 bits and pairs their sums (`plan_quantization` says the same)."""
        least = torch.zeros((), dtype=torch.float64)
        if site.weight in self._fits:
            value = self.value(site.weight).detach().contiguous().numpy()
            least = torch.from_numpy(self._fits[site.weight](value))
        for bias in (bias for bias in self.biases if bias.weight == site.weight):
            size = self.value(bias.bias).detach().abs().double()
            step = self._scales["activation", bias.step].detach().double() * LARGEST_BIAS
            least = torch.maximum(least, (size.max() if site.axis is None else size) / step)
        return least

    def _is_constant(self, key: tuple[str, str]) -> bool:
        return key[0] == "weight" and self.weights[key[1]].constant


def _zero(point: Point) -> int:
    """The zero point as kernels see it: int8 becomes uint8 on x86, and on Arm only the distance from it counts."""
    return point.zero_point - _BOUNDS[point.dtype][0]


def _weights(scales: Tensor, kernel: KernelSite, *, site: WeightSite, rank: int) -> Weights:
    """The scales of a layer's weight; its channels are axis 1 of a convolution's result, else the last one."""
    channels = scales.reshape(-1, *[1] * (rank - 2 if kernel.op == "Conv" else 0))
    return Weights(along(scales, axis=site.axis, rank=rank), channels, kernel.axis)


def _shifted(point: Point) -> tuple[int, int]:
    """The ends of a point's type, counted from its zero point."""
    low, high = _BOUNDS[point.dtype]
    return low - point.zero_point, high - point.zero_point


def _one_each(sites: list[WeightSite]) -> dict[str, WeightSite]:
    """Weight → its site. Raises ModelError for a weight that is stored in two ways."""
    found: dict[str, WeightSite] = {}
    for site in sites:
        first = found.setdefault(site.weight, site)
        ways = [(each.axis, each.limit, each.constant) for each in (first, site)]
        if ways[0] != ways[1]:
            raise ModelError(f"the weight {site.weight!r} is stored in two ways (axis, limit, constant): {ways}")
    return found
