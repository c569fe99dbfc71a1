"""Verdict: bar against figure. A limit holds, fails or is unproven; nothing is ever just "ok"."""

from __future__ import annotations

from typing import Literal

from edgeexport.records.base import Record

State = Literal["holds", "fails", "unproven"]
# Limits that hold without being asked for: no recipe has a key for them.
UNASKED = {"never_larger": "'not larger than fp32'", "never_slower": "'not slower than fp32'"}


class Score(Record):
    """A metric over samples. `per_class` has (class, count, value) rows for classified samples."""

    metric: str
    value: float
    unit: str
    samples: int
    samples_digest: str
    higher_is_better: bool = True
    per_class: tuple[tuple[str, int, float], ...] = ()


class Drop(Record):
    """How much worse the candidate is than the source on the same samples, in the metric's unit (positive = worse).

    low, high: 95 % interval. bound: one-sided 95 % upper bound.
    method: "mcnemar", "bootstrap", or "identical" (the source itself).
    agreement: share of samples with the same top-1 as the source, None where that has no meaning.
    worst_class: (class, drop, Holm-corrected p) over classes with at least 50 samples.
    lost, gained: samples only the source, or only the candidate, got right; None where a sample is not right or wrong.
    """

    value: float
    low: float
    high: float
    bound: float
    method: str
    samples: int
    agreement: float | None = None
    worst_class: tuple[str, float, float] | None = None
    lost: int | None = None
    gained: int | None = None


class LimitVerdict(Record):
    """One limit: the bar, the figure, where the figure's interval ends, and in words why it is not simply holding."""

    limit: str
    bar: float | None
    value: float | None
    bound: float | None
    state: State
    reason: str = ""

    @property
    def called(self) -> str:
        """What a user knows the limit as: its key in a recipe, or words where there is none."""
        return UNASKED.get(self.limit, self.limit)


class Verdict(Record):
    """All limits of one candidate on one target. `state` is the worst of them: fails > unproven > holds."""

    target: str
    candidate: str
    split: Literal["selection", "evaluation"]
    limits: tuple[LimitVerdict, ...]

    @property
    def state(self) -> State:
        """The worst state among the limits."""
        states = {limit.state for limit in self.limits}
        return "fails" if "fails" in states else "unproven" if "unproven" in states else "holds"
