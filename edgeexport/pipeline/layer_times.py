"""The latency table: single layers in the form that ships, timed once on the device, or predicted where none may judge.

The rule: a table is made from shapes and a target alone, is stored, and says how its figures are known. All layers of
a sheet run in one process under onnxruntime's profiler; the least of several processes counts, since disturbances only
add. No time is mixed with times of another hour as it is: what was timed before is carried over by its ratio to
reference layers that run in every process.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edgeexport import graph, runtimes
from edgeexport.compression.latency import Grid, predicted_table
from edgeexport.devices import emulated
from edgeexport.devices.guest import root
from edgeexport.errors import CorruptFile, DeviceError
from edgeexport.graph import Layer
from edgeexport.pipeline.road import Road
from edgeexport.pipeline.shipped import shipped
from edgeexport.pipeline.timing import NO_DEVICE, device_for, lasting
from edgeexport.progress import Progress, silent
from edgeexport.records.base import digest, from_json, to_json
from edgeexport.records.latency import LatencyTable, LayerCost, LayerShape, ShapeCosts, TimedSheet
from edgeexport.records.target import Target
from edgeexport.validation.answers import ProfiledNode, read_nodes
from edgeexport.validation.emulation import presets_for
from edgeexport.validation.subjects import PLANS, Subject, prepared
from edgeexport.workspace import Stage, publish, versions

if TYPE_CHECKING:
    from edgeexport.devices.emulated import Emulated
    from edgeexport.devices.protocol import Device
    from edgeexport.quantization import LinearForm

    FormName = Literal["int8", "fp32"]

RUNTIME = "ort"
LAUNCHES = 3
# Of each process: enough for a mean of short kernels, and an end for long ones.
WARM: dict[str, float] = {"iterations": 20, "seconds": 0.3, "cap_seconds": 6.0}
SECONDS = 120.0
# Under emulation: inferences of nothing, of each layer, and the time that they may take.
WARM_UPS, REPEATS, COUNT_SECONDS = 3, 2, 600.0
# A sheet holds so many layers at most, and so many numbers in their weights.
MOST_LAYERS, MOST_WEIGHTS = 48, 16_000_000
# In every sheet that is timed: they say how fast the machine was just then. Several, since one may be disturbed.
REFERENCES = (
    Layer(LayerShape("conv", (16, 16), (3, 3), (1, 1), (1, 1), (1, 1)), 32, 32),
    Layer(LayerShape("conv", (16, 16), (1, 1), (1, 1), (0, 0), (1, 1)), 64, 64),
    Layer(LayerShape("depthwise", (16, 16), (3, 3), (1, 1), (1, 1), (1, 1)), 64, 64),
    Layer(LayerShape("linear", (16,)), 256, 512),
    Layer(LayerShape("linear", (64,)), 128, 256),
)
# A time is kept for later tables where the best two processes agree by this.
SETTLED = 1.1


@dataclass(frozen=True)
class Place:
    """Where, and in which form, a network is to be fast. device: as the user wants it.

    keep_float: nodes that the recipe leaves in float. linear: the form of an encoder's linear layers; None for networks
    that are static int8 throughout. Both from `fitted`.
    """

    target: Target
    form: FormName
    device: str | None = None
    keep_float: tuple[str, ...] = ()
    linear: LinearForm | None = None

    def machine(self) -> tuple[Device | None, str]:
        """Return the device that may judge the target and can time single layers; else None and why not."""
        if self.target.runtime != RUNTIME:
            return None, f"{self.target.runtime} gives no times of single operators"
        return device_for(self.target, self.device)

    def of_layers(self) -> Place:
        """Return the place of single layers: without the names and the rewritings of a whole network."""
        return replace(self, keep_float=(), linear=self.linear and self.linear._replace(rewritings=()))

    def judge(self) -> dict[str, Any] | str:
        """What decides figures of whole files: the lasting facts of the device that measures them, else why none may.

        `key` says no more of runtimes that give no times of single operators than that they do not.
        """
        machine, reason = device_for(self.target, self.device)
        return reason if machine is None else lasting(machine.describe())

    def counter(self) -> Emulated | None:
        """Return an emulated CPU like the target's that counts instructions, where nothing can be timed."""
        if self.target.runtime != RUNTIME or self.device == NO_DEVICE or self.machine()[0] is not None:
            return None
        presets = [] if root.missing() else presets_for(self.target)
        able = [preset.name for preset in presets if not emulated.counts_missing(preset)]
        return emulated.machine(able[0]) if able else None

    def key(self) -> dict[str, Any]:
        """What decides figures besides shapes."""
        machine, reason = self.machine()
        counter = self.counter()
        target = msgspec.to_builtins(self.target)
        return {
            "target": {name: value for name, value in target.items() if name not in {"title", "notes", "limits"}},
            "form": [self.form, self.keep_float, self.linear],
            "device": lasting(machine.describe(self.target.runtime)) if machine else reason,
            "counted on": [counter.name, root.recipe()] if counter else None,
            "versions": versions("numpy", *runtimes.get(self.target.runtime).packages),
        }


def layer_table(road: Road, place: Place, *, wanted: Sequence[Grid]) -> LatencyTable:
    """Return the table of these shapes, made once for each workspace and machine.

    A layer that was timed for another table of the same place is not timed again.
    """
    place = place.of_layers()
    costs = road.workspace.unfinished("layer costs", key=place.key())

    def make(_: Path) -> LatencyTable:
        return time_layers(place, wanted, progress=road.detail, known=costs)

    key = {**place.key(), "wanted": [_grid_key(grid) for grid in wanted]}
    stage: Stage[LatencyTable] = road.workspace.stage("layer times", key=key, make=make, kind=LatencyTable)
    return stage.record


def _grid_key(grid: Grid) -> list[Any]:
    return [msgspec.to_builtins(grid.shape), grid.inputs, grid.outputs]


def time_layers(
    place: Place, wanted: Sequence[Grid], *, progress: Progress = silent, known: Path | None = None
) -> LatencyTable:
    """Time every point of every grid on the device of `place`, or predict them where it cannot.

    known: a folder of sheets of the same place that were timed before; those timed here are added.
    Raises DeviceError where the device does not answer, ModelError for a layer that the target's form cannot have.
    """
    machine, reason = place.machine()
    counter = place.counter()
    worker = machine or counter
    if worker is None:
        return predicted_table(wanted, target=place.target.name, form=place.form, reason=reason)
    layers = [Layer(grid.shape, *point) for grid in wanted for point in grid.points]
    stored = _stored(known)
    have = {layer for sheet in stored for layer in _points(sheet)}
    new = [layer for layer in layers if layer not in have]
    # Where all is known, the references alone say how fast the machine is now.
    parts = list(_sheets(new)) or ([[]] if machine else [])
    fresh: list[TimedSheet] = []
    for done, part in enumerate(parts):
        progress(f"cost of {len(new)} layers on {worker.name}", done / len(parts))
        sheet, lasts = _sheet(part, place, machine=machine, counter=counter)
        fresh.append(sheet)
        if known is not None and lasts.shapes:
            publish(known / f"{digest(lasts).removeprefix('sha256:')[:20]}.json", to_json(lasts))
    costs = _carried(stored, fresh)
    facts = worker.describe(place.target.runtime)
    return LatencyTable(
        target=place.target.name,
        form=place.form,
        basis="measured" if machine else "counted",
        unit="ms" if machine else "M instructions",
        shapes=tuple(_costs(grid, costs) for grid in wanted),
        device=facts.device,
        runtime_version=facts.runtime_version,
        threads=place.target.threads,
        conditions=lasting(facts),
        reason=reason,
    )


def _stored(known: Path | None) -> list[TimedSheet]:
    """Read the sheets that were timed before; a damaged one is forgotten, since it can be timed again."""
    found = []
    for path in sorted(known.glob("*.json")) if known is not None else ():
        with contextlib.suppress(CorruptFile):
            found.append(from_json(path.read_bytes(), TimedSheet, origin=str(path)))
    return found


def _sheet(
    layers: Sequence[Layer], place: Place, *, machine: Device | None, counter: Emulated | None
) -> tuple[TimedSheet, TimedSheet]:
    """Find what the layers of one sheet cost, with the references; return it, and what of it may be kept."""
    if machine is None:
        assert counter is not None
        counted = TimedSheet(_by_shape(_counted(layers, place, machine=counter)))
        return counted, counted
    found = _timed(list(dict.fromkeys([*layers, *REFERENCES])), place, machine=machine)
    settled = [layer for layer in layers if found[layer][:2][-1] <= SETTLED * found[layer][0]]
    references = tuple(found[each][0] for each in REFERENCES)
    sheet, lasts = (
        TimedSheet(_by_shape({layer: found[layer][0] for layer in some}), references) for some in (layers, settled)
    )
    return sheet, lasts


def _by_shape(costs: Mapping[Layer, float]) -> tuple[ShapeCosts, ...]:
    points: dict[LayerShape, list[LayerCost]] = {}
    for layer, cost in costs.items():
        points.setdefault(layer.shape, []).append(LayerCost(layer.inputs, layer.outputs, cost))
    return tuple(ShapeCosts(shape, tuple(each)) for shape, each in points.items())


def _carried(stored: Sequence[TimedSheet], fresh: Sequence[TimedSheet]) -> dict[Layer, float]:
    """Costs as of now: those of each sheet by its ratio to the references that were timed with it, and are now."""
    now = [min(times) for times in zip(*(sheet.references for sheet in fresh), strict=True)]
    costs: dict[Layer, float] = {}
    for sheet in (*stored, *fresh):
        pace = [present / past for present, past in zip(now, sheet.references, strict=True)]
        costs |= {layer: cost * (statistics.median(pace) if pace else 1.0) for layer, cost in _points(sheet).items()}
    return costs


def _points(sheet: TimedSheet) -> dict[Layer, float]:
    return {Layer(each.shape, at.inputs, at.outputs): at.cost for each in sheet.shapes for at in each.costs}


def _costs(grid: Grid, costs: Mapping[Layer, float]) -> ShapeCosts:
    return ShapeCosts(grid.shape, tuple(LayerCost(*point, costs[Layer(grid.shape, *point)]) for point in grid.points))


def _sheets(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Part the layers into sheets, none too large."""
    part: list[Layer] = []
    weights = 0
    for layer in dict.fromkeys(layers):
        size = layer.inputs * layer.outputs * max(1, len(layer.shape.kernel) and layer.shape.kernel[0] ** 2)
        if part and (len(part) == MOST_LAYERS or weights + size > MOST_WEIGHTS):
            yield part
            part, weights = [], 0
        part.append(layer)
        weights += size
    if part:
        yield part


def _partly_float(place: Place, layers: Sequence[Layer]) -> Place:
    """Return the place of a sheet, with its own floats."""
    floats = tuple(f"layer{n}" for n, layer in enumerate(layers) if layer.shape.in_float)
    return replace(place.of_layers(), keep_float=floats)


def _timed(layers: Sequence[Layer], place: Place, *, machine: Device) -> dict[Layer, list[float]]:
    """Milliseconds of each layer of one sheet: the means of a few processes, least first."""
    with tempfile.TemporaryDirectory(prefix="edgeexport-sheet-") as name:
        folder = Path(name)
        path = folder / "sheet.onnx"
        model, feeds = graph.sheet(layers)
        graph.save(model, path)
        subject = shipped(path, [feeds], place=_partly_float(place, layers), folder=folder)
        runs = [profiled(subject, machine=machine, folder=folder / "in") for _ in range(LAUNCHES)]
    found = [graph.layer_times((node.name, node.us / max(node.calls, 1) / 1e3) for node in nodes) for nodes in runs]
    missing = [layer for index, layer in enumerate(layers) if not all(index in times for times in found)]
    if missing:
        raise DeviceError(f"{machine.name}: the profile has no time of {missing[0]} and {len(missing) - 1} others")
    return {layer: sorted(times[index] for times in found) for index, layer in enumerate(layers)}


def _counted(layers: Sequence[Layer], place: Place, *, machine: Emulated) -> dict[Layer, float]:
    """Millions of instructions of each layer of one sheet: of an inference of it alone, beyond one of nothing."""
    with tempfile.TemporaryDirectory(prefix="edgeexport-sheet-") as name:
        folder = Path(name)
        model, feeds = graph.sheet(layers, apart=True)
        graph.save(model, folder / "sheet.onnx")
        subject = shipped(folder / "sheet.onnx", [feeds], place=_partly_float(place, layers), folder=folder)
        nothing = {key: value[:0] for key, value in feeds.items()}
        alone = [{**nothing, key: value} for key, value in feeds.items() for _ in range(REPEATS)]
        turn = prepared(replace(subject, inputs=[nothing] * WARM_UPS + alone), folder / "in", plan=PLANS["smoke"])
        found = machine.count_each(turn.job, files=turn.files, timeout=COUNT_SECONDS, outputs_to=folder / "out")
    least = min(found[:WARM_UPS])
    each = [found[start : start + REPEATS] for start in range(WARM_UPS, len(found), REPEATS)]
    return {layer: max(min(counts) - least, 1) / 1e6 for layer, counts in zip(layers, each, strict=True)}


def profiled(subject: Subject, *, machine: Device, folder: Path) -> tuple[ProfiledNode, ...]:
    """Return the times of every node of a file, in a fresh process. Raises DeviceError."""
    turn = prepared(subject, folder, plan=PLANS["smoke"])
    job = {**turn.job, "mode": "profile", "warmup": WARM}
    found = read_nodes(machine.run(job, files=turn.files, timeout=SECONDS))
    if isinstance(found, str):
        raise DeviceError(f"{machine.name}: {found}")
    return found


def whole(subject: Subject, *, place: Place, folder: Path) -> float | None:
    """Return what one inference of a whole file costs, in the unit of the place's table; None where that is predicted.

    Milliseconds are those of all nodes together under the profiler: the least of a few processes.
    """
    machine, _ = place.machine()
    counter = place.counter()
    if machine is None and counter is not None:
        longer = replace(subject, inputs=subject.samples()[:1] * (WARM_UPS + REPEATS))
        turn = prepared(longer, folder, plan=PLANS["smoke"])
        found = counter.count_each(turn.job, files=turn.files, timeout=COUNT_SECONDS, outputs_to=folder / "out")
        return min(found[WARM_UPS:]) / 1e6
    if machine is None:
        return None
    runs = [profiled(subject, machine=machine, folder=folder) for _ in range(LAUNCHES)]
    return min(sum(node.us / max(node.calls, 1) for node in nodes) for nodes in runs) / 1e3
