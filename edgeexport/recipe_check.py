"""Recipe check: are a recipe's calibration samples what they should be, and are there enough of them.

The rule: samples come by the road that a run takes, preprocessing included, and what is made on the way (splits, the
spine) stays in the workspace for that run. Nothing is trained.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec

from edgeexport import data, graph
from edgeexport.errors import DataError
from edgeexport.pipeline.road import Road, open_road
from edgeexport.pipeline.torch_rungs import source_rung
from edgeexport.progress import Progress, silent
from edgeexport.quantization.calibrate import Samples
from edgeexport.quantization.convergence import convergence
from edgeexport.records.data_check import Convergence, DataCheckReport
from edgeexport.records.recipe import Recipe, Train
from edgeexport.records.stages import Spine
from edgeexport.workspace import Stage, Workspace


def inspect_recipe(
    recipe: Recipe, *, workspace: Path | str = ".edgeexport", progress: Progress = silent
) -> DataCheckReport:
    """Check the calibration samples of a recipe against its source model: duplicates, blanks, scale, layout, number.

    Raises what `run` raises for samples that cannot be read or do not fit the model.
    """
    with Workspace(Path(workspace)) as work:
        road = open_road(recipe, work, progress=progress)
        spine = _spine(road)
        path = spine.folder / spine.record.artifact.path
        prepared = road.prepared("calibration", spine.record.signature)
        progress("look at the calibration samples", 0.0)
        check = data.check_samples(
            prepared,
            signature=spine.record.signature,
            normalized=road.preprocess is not None and bool(road.preprocess.mean or road.preprocess.std),
            expected=graph.expected_inputs(graph.load(path)),
            progress=road.detail,
        )
        if any(isinstance(step, Train) for step in recipe.step):
            return DataCheckReport(recipe.name, check, None, "the recipe trains the model first: its ranges come later")
        progress("calibrate on parts of the samples", 0.0)
        settled, note = _settled(path, prepared, method=_method(recipe), progress=road.detail)
    return DataCheckReport(recipe.name, check, settled, note)


def _spine(road: Road) -> Stage[Spine]:
    """The source's spine, untrained."""
    recipe = msgspec.structs.replace(road.recipe, step=())
    return source_rung(dataclasses.replace(road, recipe=recipe), None).spine


def _method(recipe: Recipe) -> str:
    return recipe.quantize.methods[0] if recipe.quantize else "minmax"


def _settled(path: Path, prepared: data.Prepared, *, method: str, progress: Progress) -> tuple[Convergence | None, str]:
    try:
        return convergence(path, Samples(prepared), method=method, progress=progress), ""
    except DataError as error:
        return None, str(error)
