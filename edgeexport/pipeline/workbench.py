"""Workbench: what a network costs on the target as it is and as planned, built and timed before any training.

The rule: networks are timed in the form that ships, not in the form they are trained in. What cannot be timed is
predicted, and every figure says how it is known.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import graph, onnx_export
from edgeexport.pipeline.layer_times import Place, layer_table, whole
from edgeexport.pipeline.road import Road, declared_signature
from edgeexport.pipeline.shipped import float_layers, remaining, samples_for, shipped
from edgeexport.pipeline.torch_rungs import TorchRung, training_data
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import Prune
from edgeexport.records.target import Tolerance

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from edgeexport.compression.candidates import Candidates
    from edgeexport.compression.price import Price
    from edgeexport.validation.measure import Subject

    Feeds = dict[str, np.ndarray]

GRADIENT_BATCHES = 8


def feeds_of(road: Road) -> list[Feeds]:
    """Return a few real inputs for the recipe's network, batch 1."""
    return list(road.parity_feeds(declared_signature(road.recipe.model.inputs)))


@dataclass(frozen=True)
class Workbench:
    """One network, the step that cuts it, where it is to be fast, and a folder for the files that are timed."""

    road: Road
    step: Prune
    place: Place
    last: TorchRung
    folder: Path

    def present(self) -> Subject:
        """Return the network as it is in the form that ships."""
        spine = self.last.spine
        samples = samples_for(self.road, self.place, signature=spine.record.signature)
        return shipped(spine.folder / spine.record.artifact.path, samples, place=self.place, folder=self._own("before"))

    def prices(
        self, module: nn.Module, example: Feeds, *, candidates: Candidates, before: Subject | None
    ) -> list[Price]:
        """Return what each goal of the step is counted in. before: from `present`."""
        from edgeexport.compression.greedy import FINE
        from edgeexport.compression.latency import grids, latency_price
        from edgeexport.compression.price import macs_price, size_price

        step, place = self.step, self.place
        prices: list[Price] = []
        floats = float_layers(before, place=place) if before is not None else frozenset()
        if step.speedup is not None and before is not None:
            wanted = grids(module, example, groups=candidates.groups, step=min(FINE, step.round_to), floats=floats)
            table = layer_table(self.road, place, wanted=wanted)
            prices.append(latency_price(module, example, table=table, total=self.cost(before), floats=floats))
        if step.max_size_mb is not None and before is not None:
            total_mb = before.path.stat().st_size / 1e6
            prices.append(size_price(module, example, int8=place.form == "int8", total_mb=total_mb, floats=floats))
        return prices + ([macs_price(module, example)] if step.macs is not None else [])

    def cost(self, subject: Subject) -> float | None:
        """Return what an inference of a whole file costs in the unit of the layers' table; None where that is none."""
        return whole(subject, place=self.place, folder=self._own(f"whole {subject.label}"))

    def evidence(self, module: nn.Module) -> dict[str, Any]:
        """Return the gradients that the criterion "taylor" needs; nothing for others."""
        if self.step.criterion != "taylor":
            return {}
        from edgeexport.compression.criteria import gradient_batches, taylor_scores
        from edgeexport.training import hard_loss

        settings, data = self.step.training, training_data(self.road)
        batches = gradient_batches(data, settings, count=GRADIENT_BATCHES)
        loss = hard_loss(data, settings, soft_share=0.0, answers=data.answers)
        return taylor_scores(module, batches, loss=loss, classes=data.answers in {None, "classes"})

    def built(self, module: nn.Module, plan: PruningPlan, *, feeds: Sequence[Feeds], name: str = "after") -> Subject:
        """Return the network as planned, not trained, in the form that ships. Raises ModelError, ConverterFailed."""
        from edgeexport.compression.prune import apply_pruning

        smaller = apply_pruning(copy.deepcopy(module), plan, example=feeds[0])
        folder = self._own(name)
        path = folder / f"{name}.onnx"
        onnx_export.export_module(
            smaller, self.road.recipe.model, path=path, samples=feeds, tolerance=Tolerance().float_error
        )
        cleaned, _ = onnx_export.clean(graph.load(path))
        graph.save(cleaned, path)
        samples = samples_for(self.road, self.place, signature=graph.signature(cleaned))
        return shipped(path, samples, place=remaining(self.place, path), folder=folder)

    def _own(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder
