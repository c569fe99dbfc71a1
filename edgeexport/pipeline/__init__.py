"""The whole road: the only place that knows the order of the wings, and decides what ships.

The rule: PyTorch steps run once, against the first target; formats and runtimes branch per target. A target that cannot
be met does not stop the others.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeexport import __version__, ranks, runtimes
from edgeexport.errors import EdgeExportError, RecipeError
from edgeexport.pipeline.gates import check_bars, max_drop
from edgeexport.pipeline.packing import bundle_name, packed
from edgeexport.pipeline.plans import check_apart, plans_of
from edgeexport.pipeline.road import Road, model_key, open_road
from edgeexport.pipeline.ship import Choice, choose, result
from edgeexport.pipeline.timing import device_for
from edgeexport.pipeline.torch_rungs import TorchRoad, climb
from edgeexport.progress import Progress, silent
from edgeexport.records.base import digest, listed, to_json
from edgeexport.records.recipe import Recipe
from edgeexport.records.run import RunRecord, TargetResult
from edgeexport.records.target import Target, load_target
from edgeexport.workspace import Workspace, publish, usable

REPORT = "report.html"
RECORD = "run.json"


def run(  # noqa: PLR0913 # the front door: each is a choice of its own that a user may want to make
    recipe: Recipe,
    targets: Sequence[str | Target] | str | Target,
    *,
    device: str | None = None,
    out: Path | str = "edgeexport-out",
    workspace: Path | str = ".edgeexport",
    require_proof: bool = False,
    progress: Progress = silent,
) -> RunRecord:
    """Take a recipe down the whole road and write one bundle per target, a report and its JSON twin into `out`.

    Beside them lies the plan of every pruned network that stands, which a recipe may give as the `student` of a step.
    targets: names, TOML paths or Target records. device: "local" (the default where this machine can judge the target)
    or "none". require_proof: what is not proven does not ship. Infeasible targets are in the record with their nearest
    miss, and leave no bundle in `out`. Under `torchrun` all processes train, and all but the first return a record
    without targets after that. Raises the errors of `edgeexport.errors`; an error that concerns one target only
    is raised when no other target could be served.
    """
    places = admitted(listed(targets), device=device)
    out = Path(out)
    check_apart(recipe, out=out)
    if ranks.first():
        usable(out)
    with Workspace(Path(workspace)) as work:
        check_bars(recipe, work, targets=places)
        road = open_road(recipe, work, progress=progress)
        climbed = climb(road, max_drop(road, places[0]), target=places[0], device=device)
        plans = plans_of(climbed)
        record = _record(road, plans.road)
        ranks.part()
        if not ranks.first():
            return record
        serve = functools.partial(choose, road, standing=climbed.standing, device=device, require_proof=require_proof)
        record = _packed(road, _served(places, serve, record=record), out=out)
        plans.write(out)
    from edgeexport.report import html

    publish(out / REPORT, html(record).encode())
    publish(out / RECORD, to_json(record))
    return record


def admitted(targets: Sequence[str | Target], *, device: str | None) -> list[Target]:
    """Return the targets by name or path, each once, all such as a runtime serves, with a device that is known.

    Raises RecipeError for the targets, RequestError for the device.
    """
    places = [load_target(target) if isinstance(target, str) else target for target in targets]
    names = [place.name for place in places]
    if not names:
        raise RecipeError("no target given", next_step="see `edgeexport targets`")
    if len(set(names)) != len(names):
        raise RecipeError(f"a target is given twice: {', '.join(names)}")
    for place in places:
        _check_formats(place)
        device_for(place, device)
    return places


def _check_formats(target: Target) -> None:
    """Raise RecipeError for a file format or inputs that the target's runtime has not."""
    formats = runtimes.get(target.runtime).formats
    if target.format not in formats:
        known = ", ".join(formats)
        raise RecipeError(
            f"{target.name}: {target.runtime} has no format {target.format!r}", next_step=f"known: {known}"
        )
    if target.io == "int8" and target.runtime == "ort":
        raise RecipeError(f"{target.name}: onnxruntime files keep float32 input; io = int8 is for litert")


@dataclass(frozen=True)
class _Served:
    """The record so far, with every target's ladder, and what was chosen for those that could be served."""

    record: RunRecord
    choices: tuple[tuple[Target, Choice], ...]


def _served(places: Sequence[Target], serve: Callable[..., Choice], *, record: RunRecord) -> _Served:
    """Serve every target; errors of single targets become their nearest miss unless nothing was served at all."""
    errors: list[EdgeExportError] = []
    choices: list[tuple[Target, Choice]] = []
    results: list[TargetResult] = []
    rungs = list(record.rungs)
    for target in places:
        try:
            choice = serve(target=target)
        except EdgeExportError as error:
            errors.append(error)
            results.append(_unserved(target, error))
            continue
        choices.append((target, choice))
        results.append(result(choice, target, bundle=None, bundle_bytes=None))
        rungs += choice.rows
    if errors and not choices:
        raise errors[0]
    return _Served(msgspec.structs.replace(record, rungs=tuple(rungs), targets=tuple(results)), tuple(choices))


def _packed(road: Road, served: _Served, *, out: Path) -> RunRecord:
    """Pack what ships; where nothing does, see to it that no older bundle seems to."""
    finished: dict[str, TargetResult] = {}
    for target, choice in served.choices:
        try:
            finished[target.name] = packed(road, target, choice=choice, record=served.record, out=out)
        except EdgeExportError as error:
            finished[target.name] = _unserved(target, error)
    results = tuple(finished.get(row.target, row) for row in served.record.targets)
    for row in results:
        if row.bundle is None:
            (out / bundle_name(row.target)).unlink(missing_ok=True)
    return msgspec.structs.replace(served.record, targets=results)


def _unserved(target: Target, error: EdgeExportError) -> TargetResult:
    advice = f" ({error.next_step})" if error.next_step else ""
    return TargetResult(
        target=target.name,
        title=target.title,
        runtime=target.runtime,
        shipped=None,
        verdict=None,
        bundle=None,
        bundle_bytes=None,
        score=None,
        source_score=None,
        drop=None,
        measurement=None,
        source_measurement=None,
        comparison=None,
        size_ratio=None,
        nearest_miss=f"{error}{advice}",
        exit_code=error.exit_code,
    )


def _record(road: Road, climbed: TorchRoad) -> RunRecord:
    recipe = road.recipe
    identity = {"model": model_key(recipe.model, recipe, workspace=road.workspace), "splits": road.splits_key}
    return RunRecord(
        recipe=recipe.name,
        recipe_digest=digest(identity),
        tool_version=__version__,
        metric=climbed.standing[0].scored.score.metric,
        splits=road.splits.counts(),
        rungs=climbed.rows,
        targets=(),
        warnings=road.splits.warnings,
        host=f"{platform.machine()}, {platform.system()}",
    )
