"""The whole road: the only place that knows the order of the wings, and decides what ships.

The rule: PyTorch steps run once, against the first target; formats and runtimes branch per target. A target that cannot
be met does not stop the others.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgeexport import __version__
from edgeexport.errors import EdgeExportError, RecipeError
from edgeexport.pipeline.gates import max_drop
from edgeexport.pipeline.packing import packed
from edgeexport.pipeline.road import Road, model_key, open_road
from edgeexport.pipeline.ship import Choice, choose, result
from edgeexport.pipeline.timing import device_for
from edgeexport.pipeline.torch_rungs import TorchRoad, climb
from edgeexport.progress import Progress, silent
from edgeexport.records.base import digest, to_json
from edgeexport.records.recipe import Recipe
from edgeexport.records.run import RunRecord, TargetResult
from edgeexport.records.target import Target, load_target
from edgeexport.workspace import Workspace, publish

REPORT = "report.html"
RECORD = "run.json"


def run(
    recipe: Recipe,
    targets: Sequence[str | Target],
    *,
    device: str | None = None,
    out: Path | str = "edgeexport-out",
    workspace: Path | str = ".edgeexport",
    progress: Progress = silent,
) -> RunRecord:
    """Take a recipe down the whole road and write one bundle per target, a report and its JSON twin into `out`.

    targets: names, TOML paths or Target records. device: "local" (the default where this machine can judge the target)
    or "none". Infeasible targets are in the record with their nearest miss. Raises the errors of `edgeexport.errors`;
    an error that concerns one target only is raised when no other target could be served.
    """
    places = _resolved(targets)
    for target in places:
        device_for(target, device)
    out = Path(out)
    with Workspace(Path(workspace)) as work:
        road = open_road(recipe, work, progress=progress)
        climbed = climb(road, max_drop(road, places[0]))
        record = _record(road, climbed)
        record = _served(road, climbed, places=places, record=record, device=device, out=out)
    from edgeexport.report import html

    publish(out / REPORT, html(record).encode())
    publish(out / RECORD, to_json(record))
    return record


def _resolved(targets: Sequence[str | Target]) -> list[Target]:
    places = [load_target(target) if isinstance(target, str) else target for target in targets]
    names = [place.name for place in places]
    if not names:
        raise RecipeError("no target given", next_step="see `edgeexport targets`")
    if len(set(names)) != len(names):
        raise RecipeError(f"a target is given twice: {', '.join(names)}")
    return places


def _served(
    road: Road, climbed: TorchRoad, *, places: Sequence[Target], record: RunRecord, device: str | None, out: Path
) -> RunRecord:
    """Serve every target; errors of single targets become their nearest miss unless nothing was served at all."""
    errors: list[EdgeExportError] = []
    served: list[tuple[Target, Choice]] = []
    results: list[TargetResult] = []
    for target in places:
        try:
            choice = choose(road, target, standing=climbed.standing, device=device)
        except EdgeExportError as error:
            errors.append(error)
            results.append(_unserved(target, error))
            continue
        served.append((target, choice))
        results.append(result(choice, target, bundle=None, bundle_bytes=None))
        record = msgspec.structs.replace(record, rungs=(*record.rungs, *choice.rows))
    if errors and not served:
        raise errors[0]
    record = msgspec.structs.replace(record, targets=tuple(results))
    finished = {target.name: packed(road, target, choice=choice, record=record, out=out) for target, choice in served}
    return msgspec.structs.replace(record, targets=tuple(finished.get(row.target, row) for row in results))


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
