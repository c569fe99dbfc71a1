"""Shrink: what a search for the smallest and fastest model within limits has tried, and what came of it."""

from __future__ import annotations

from typing import Literal

from edgeexport.records.base import Record
from edgeexport.records.latency import Basis
from edgeexport.records.recipe import Limits
from edgeexport.records.run import RunRecord
from edgeexport.records.verdict import Drop, Score


class HeadStart(Record):
    """How many times faster than the fp32 source the uncut network is in the form that ships. reason: why 1 is assumed.

    bytes: of its file.
    """

    times: float
    basis: Basis
    bytes: int
    reason: str = ""

    @property
    def known(self) -> str:
        """How `times` is known."""
        return "assumed" if self.basis == "predicted" else self.basis


class Effort(Record):
    """How many optimizer steps a search's minutes allow here, in all. Timed once, so that a resumed search repeats."""

    steps: int


class HalvingRound(Record):
    """One round of successive halving: how many students are trained, each from the start, for how many steps."""

    students: int
    steps: int


class Trial(Record):
    """One student. times: how many times faster than the fp32 source; cost, bytes: of the form that ships.

    kept: shares of multiply-accumulates and of the file. steps: of its longest training, whose fp32 weights `score` and
    `drop` are of, on the selection split. front: no other trained one loses less, is faster and is smaller.
    """

    name: str
    status: Literal["chosen", "trained", "dropped", "not trained"]
    reason: str = ""
    times: float | None = None
    cost: float | None = None
    bytes: int = 0
    kept: tuple[float, float] = (0.0, 0.0)
    steps: int = 0
    score: Score | None = None
    drop: Drop | None = None
    front: bool = False


class ShrinkRecord(Record):
    """A whole search. basis, unit: how the trials' costs are known.

    rounds: of the halving. explanation: sentences on why nothing holds the limits, empty where something does.
    recipe_file: the recipe that was written, with its plan beside it, and run; empty where none was. run: what it gave.
    """

    recipe: str
    target: str
    limits: Limits
    metric: str
    basis: Basis
    unit: str
    head_start: HeadStart
    budget_minutes: float
    rounds: tuple[HalvingRound, ...]
    trials: tuple[Trial, ...]
    explanation: tuple[str, ...] = ()
    recipe_file: str = ""
    run: RunRecord | None = None
    notes: tuple[str, ...] = ()

    @property
    def feasible(self) -> bool:
        """Whether a bundle that holds the limits, or contradicts none, was written."""
        return self.run is not None and not self.explanation

    @property
    def exit_code(self) -> int:
        """0 for a bundle; else what is at fault, as a run says it: a limit that is not met (1), or something else."""
        if self.feasible:
            return 0
        return max((result.exit_code for result in self.run.targets), default=1) if self.run is not None else 1

    @property
    def outcome(self) -> str:
        """Return "feasible", "infeasible" where a limit is not met, or "failed"."""
        return {0: "feasible", 1: "infeasible"}.get(self.exit_code, "failed")
