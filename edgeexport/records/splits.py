"""SplitIndices: which samples calibrate, select and evaluate. Proven disjoint by digest before anything is judged."""

from __future__ import annotations

from typing import Literal

from edgeexport.records.base import Record

SplitName = Literal["train", "calibration", "selection", "evaluation"]
SourceName = Literal["train", "evaluate", "pool", "calibration"]


class Split(Record):
    """Samples with one purpose: the `data` source they come from, their positions in it, and their common digest.

    digest: `sha256:...` over the digests of the samples, in this order. unlabelled: how many have no label (None).
    """

    source: SourceName
    indices: tuple[int, ...]
    digest: str
    unlabelled: int = 0


class SplitIndices(Record):
    """All splits of one recipe. No digest of calibration, selection or train is also in evaluation.

    train: what training steps may see (train samples minus selection; calibration samples are among them unless
    they have a source of their own). warnings: sentences for the user, e.g. about samples that were left out.
    """

    train: Split
    calibration: Split
    selection: Split
    evaluation: Split
    warnings: tuple[str, ...] = ()

    def get(self, name: SplitName) -> Split:
        """Return the split called `name`."""
        found: Split = getattr(self, name)
        return found

    def counts(self) -> dict[str, int]:
        """Return how many samples each split has, by name."""
        names: tuple[SplitName, ...] = ("train", "calibration", "selection", "evaluation")
        return {name: len(self.get(name).indices) for name in names}
