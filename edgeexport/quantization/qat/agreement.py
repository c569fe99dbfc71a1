"""Checks of a simulation against the int8 file that it stands for: what is stored, and what onnxruntime computes.

The rule: what is stored must be equal bit for bit, or ModelError. What is computed is compared site by site, each on
the file's own integers before it, so that one site's difference is not another's; more than one step is a ModelError
too. It is compared in the arithmetic of this machine, whose onnxruntime answers, wherever the file is to run.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgeexport import graph
from edgeexport.errors import CorruptFile, ModelError
from edgeexport.quantization.qat.simulation import Simulation
from edgeexport.quantization.qat.twin import Twin
from edgeexport.runtimes.ort import EXACT_SUMS, UNFUSED, OrtSession, open_session
from edgeexport.runtimes.protocol import Feeds

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXACT = {"config_entries": {EXACT_SUMS: "1"}}
# Sums of floats end on the other side of a half now and then; what is further off is another computation.
MOST_STEPS = 1


@dataclass(frozen=True)
class Agreement:
    """values: integers compared; equal: how many are the same; worst: the largest difference, in steps, at `tensor`.

    fused: integer kernels computed them, as they do where the file ships. foreign: where the simulation's own CPUs
    compute otherwise than this machine, it was compared as this machine computes.
    """

    values: int
    equal: int
    worst: int
    tensor: str
    fused: bool = True
    foreign: bool = False

    @property
    def holds(self) -> bool:
        """Whether no site is more than one step off."""
        return self.worst <= MOST_STEPS

    def sentence(self) -> str:
        """Say it in words."""
        share = 100.0 * self.equal / max(1, self.values)
        where = f" (at {self.tensor!r})" if self.worst else ""
        runtime = "onnxruntime" if self.fused else "onnxruntime without integer kernels"
        here = f", as {platform.machine()} computes" if self.foreign else ""
        found = f"{share:.3f} % of {self.values} integers equal, {self.worst} steps{where}"
        return f"simulation and {runtime}: {found}{here}"


def prove_stored(simulation: Simulation, twin: Twin) -> None:
    """Raise ModelError unless the int8 file of `twin` stores the simulation's integers, scales and zero points."""
    if twin.shape() != simulation.shape:
        raise ModelError("the int8 file computes something else than was trained: its nodes are other ones")
    plan = simulation.plan("")
    wrong = [*_points(simulation, twin, points=plan.activations), *_tensors(simulation, twin)]
    if wrong:
        raise ModelError(f"the int8 file stores other numbers than were trained: {'; '.join(wrong[:3])}")


def prove_agrees(simulation: Simulation, twin: Twin, *, int8: Path, samples: Iterable[Feeds]) -> Agreement:
    """Return how far the int8 file of `twin` is from its simulation. Raises ModelError if it is more than one step."""
    found = agreement(simulation, twin, int8=int8, samples=samples)
    if not found.holds:
        raise ModelError(
            f"the int8 file computes something else than its simulation, which may differ by {MOST_STEPS} step: "
            f"{found.sentence()}",
            next_step='leave the layer there in float, or quantize without training (qat = "never")',
        )
    return found


def agreement(simulation: Simulation, twin: Twin, *, int8: Path, samples: Iterable[Feeds]) -> Agreement:
    """Run the file's every site on the file's own integers before it, and compare with onnxruntime's integers.

    int8: the file of `twin`. Raises ModelError if the simulation does not reach a site.
    """
    names = [site.integers for site in twin.activations]
    session, fused = _opened(graph.expose(graph.load(int8), names).SerializeToString())
    values = equal = worst = 0
    tensor = ""
    for feeds in samples:
        found = session.run(feeds)
        for name, (ours, theirs) in _stepwise(simulation, twin, feeds=feeds, found=found).items():
            gap = np.abs(ours - theirs)
            values, equal = values + gap.size, equal + int((gap == 0).sum())
            if gap.size and int(gap.max()) > worst:
                worst, tensor = int(gap.max()), name
    return Agreement(values, equal, worst, tensor, fused, foreign=simulation.arm != _is_arm())


def _is_arm() -> bool:
    """Whether the onnxruntime that answers here has the kernels of Arm."""
    return platform.machine() == "aarch64"


def _opened(model: bytes) -> tuple[OrtSession, bool]:
    """Open the file with integer kernels if that is possible; say whether it was."""
    try:
        return open_session(model, options=EXACT), True
    except CorruptFile:
        return open_session(model, options=UNFUSED), False


def _stepwise(
    simulation: Simulation, twin: Twin, *, feeds: Feeds, found: Mapping[str, NDArray[Any]]
) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Source tensor → (simulated, real) steps from zero."""
    zeros = {site.tensor: twin.stored[site.zero_point].astype(np.int32) for site in twin.activations}
    given = {site.tensor: found[site.integers].astype(np.int32) - zeros[site.tensor] for site in twin.activations}
    own = {mine.tensor: theirs for mine, theirs in zip(simulation.activations, twin.activations, strict=True)}
    forced = _forced(simulation, {mine: given[theirs.tensor] for mine, theirs in own.items()})
    with forced, simulation.computing(arm=_is_arm()), torch.no_grad():
        simulation(*(torch.from_numpy(np.array(feeds[name])) for name in simulation.lifted.input_names))
        seen = {mine: simulation.taps[mine].seen for mine in own}
    for mine, value in seen.items():
        if value is None:
            raise ModelError(f"the simulation does not compute {own[mine].source!r}")
    return {own[mine].source: (value.numpy().astype(np.int32), given[own[mine].tensor]) for mine, value in seen.items()}


@contextmanager
def _forced(simulation: Simulation, given: Mapping[str, NDArray[Any]]) -> Iterator[None]:
    taps = {tensor: simulation.taps[tensor] for tensor in given}
    try:
        for tensor, tap in taps.items():
            tap.given = torch.from_numpy(given[tensor].astype(np.float32))
        yield
    finally:
        for tap in taps.values():
            tap.given = tap.seen = None


def _points(simulation: Simulation, twin: Twin, *, points: Mapping[str, Any]) -> Iterator[str]:
    mine = [(site.source, site.step) for site in simulation.activations]
    theirs = [(site.source, site.step) for site in twin.activations]
    if mine != theirs:
        yield f"it rounds {theirs}, the simulation {mine}"
        return
    for site in twin.activations:
        point = points[site.source]
        scale, zero_point = twin.stored[site.scale], twin.stored[site.zero_point]
        if np.float32(point.scale) != scale.item() or point.zero_point != zero_point.item():
            yield f"{site.source!r} has scale {scale} and zero point {zero_point}, trained were {point}"


def _tensors(simulation: Simulation, twin: Twin) -> Iterator[str]:
    trained, plan = simulation.integers(), simulation.plan("")
    for theirs in twin.weights:
        site, point = simulation.weights[theirs.weight], plan.weights[theirs.weight]
        stored = twin.stored[theirs.integers].astype(np.int64)
        integers = trained[site.tensor] + (point.zero_points[0] if site.constant else 0)
        if not np.array_equal(stored.T if theirs.turned else stored, integers):
            yield f"integers of {site.weight!r}"
        if not np.array_equal(np.ravel(twin.stored[theirs.scales]), np.asarray(point.scales, np.float32)):
            yield f"scales of {site.weight!r}"
    for bias, other in zip(simulation.biases, twin.biases, strict=True):
        if not np.array_equal(twin.stored[other.integers].ravel(), trained[bias.tensor].ravel()):
            yield f"integers of {bias.bias!r}"
