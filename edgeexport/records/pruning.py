"""PruningPlan: what goes, and why just that. Printable, stored, and applied again to rebuild the network."""

from __future__ import annotations

from typing import Literal

from edgeexport.records.base import Record
from edgeexport.records.latency import Basis

GoalName = Literal["speedup", "max_size_mb", "macs"]


class PruningGroup(Record):
    """One group of coupled layers, named by its root layer, and the output channels of that layer that are removed.

    kind: the type of the root layer; or "heads", where `layer` makes the queries, and width and removed count heads.
    """

    layer: str
    kind: str
    width: int
    removed: tuple[int, ...]


class PlannedGoal(Record):
    """What a plan was asked to bring down: from `before` to at most `asked`; `after` is what it says it reaches.

    basis: how the figures are known. table: digest of the latency table that they come from.
    """

    goal: GoalName
    unit: str
    basis: Basis
    asked: float
    before: float
    after: float
    table: str = ""

    @property
    def ratio(self) -> float:
        """How many times less there is afterwards."""
        return self.before / max(self.after, 1e-12)


class PruningPlan(Record):
    """All removals of one round, in order, with what they were meant to reach and what they reach.

    macs_before, macs_after: multiply-accumulates of one sample. refused: layer -> why it was left alone. blocks:
    modules that are skipped: they give back their input.
    """

    criterion: str
    round_to: int
    macs_before: int
    macs_after: int
    groups: tuple[PruningGroup, ...]
    refused: dict[str, str] = {}
    blocks: tuple[str, ...] = ()
    goals: tuple[PlannedGoal, ...] = ()
