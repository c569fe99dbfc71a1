"""Plans: the pruning plan behind each network that stands is written beside the bundles, named after its rung.

The rule: a plan file in the output folder belongs to the run that is recorded there, and no run overwrites what its
recipe reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edgeexport.errors import RequestError
from edgeexport.pipeline.torch_rungs import TorchRoad, TorchRung
from edgeexport.records.base import to_json
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import AUTO, Distill, Recipe
from edgeexport.workspace import publish

# The names that `plan_name` gives, and no others.
OWN = re.compile(r"(distilled|pruned(-\d+-of-\d+)?)(-\d+)?\.pruning\.json")


def plan_name(rung: str) -> str:
    """Return the file name of a rung's plan: "pruned 1/3 (2)" has "pruned-1-of-3-2.pruning.json"."""
    return re.sub(r"[^a-z0-9]+", "-", rung.replace("/", " of ")).strip("-") + ".pruning.json"


def check_apart(recipe: Recipe, *, out: Path) -> None:
    """Raise RequestError where a run would overwrite a plan that its recipe reads."""
    for step in recipe.step:
        if isinstance(step, Distill) and isinstance(step.student, str) and step.student != AUTO:
            path = recipe.resolve(step.student).resolve()
            if path.parent == out.resolve() and OWN.fullmatch(path.name):
                raise RequestError(
                    f"the recipe reads the plan {path}, which this run would overwrite",
                    next_step="copy it beside the recipe, or give another folder with --out",
                )


@dataclass(frozen=True)
class Plans:
    """The road with a note on every rung that a plan made, and the plans by their file names."""

    road: TorchRoad
    files: dict[str, PruningPlan]

    def write(self, out: Path) -> None:
        """Write the plans into `out`, and remove those of an earlier run."""
        for name, plan in self.files.items():
            publish(out / name, to_json(plan))
        for path in out.iterdir():
            if OWN.fullmatch(path.name) and path.name not in self.files:
                path.unlink(missing_ok=True)


def plans_of(climbed: TorchRoad) -> Plans:
    """Return the plans of the networks that stand, and the road whose rows name their files."""
    made = dict(_made(climbed.standing))
    rows = tuple(
        msgspec.structs.replace(row, notes=(*row.notes, f"plan: {plan_name(row.name)}")) if row.name in made else row
        for row in climbed.rows
    )
    return Plans(replace(climbed, rows=rows), {plan_name(name): plan for name, plan in made.items()})


def _made(standing: tuple[TorchRung, ...]) -> Iterator[tuple[str, PruningPlan]]:
    """Yield each rung's name with the plan that cut it from the one before; most have none."""
    before: tuple[PruningPlan, ...] = ()
    for rung in standing:
        own = rung.weights.record.plans if rung.weights is not None else ()
        if own and own != before:
            yield rung.name, own[-1]
        before = own
