"""What a look at calibration samples found: what is wrong with them, and whether there are enough."""

from __future__ import annotations

from typing import Literal

from edgeexport.records.base import Record


class Finding(Record):
    """One thing that is wrong, in words; `samples` are the positions concerned, `count` how many there are in all."""

    kind: Literal["duplicate", "constant", "normalization", "layout"]
    input: str
    text: str
    samples: tuple[int, ...] = ()
    count: int = 0


class InputFacts(Record):
    """Extremes, mean and standard deviation of all values of one input."""

    low: float
    high: float
    mean: float
    std: float


class DataCheck(Record):
    """How many samples were looked at, what their inputs hold, and what is wrong."""

    count: int
    inputs: dict[str, InputFacts]
    findings: tuple[Finding, ...]


class Prefix(Record):
    """How far the ranges after the first `count` samples are from the final ones, in parts of these.

    change: the mean over all tensors. worst: the tensor that is furthest, and by how much.
    """

    count: int
    change: float
    worst: str
    worst_change: float


class Convergence(Record):
    """Whether ranges have settled: from `enough` samples on they are within `tolerance` of the final ones on average.

    enough: None when those of the first half are not, or one tensor's is far off.
    """

    method: str
    count: int
    tolerance: float
    prefixes: tuple[Prefix, ...]
    enough: int | None


class DataCheckReport(Record):
    """A recipe's calibration samples: the check, and the convergence, or why it cannot be known."""

    recipe: str
    check: DataCheck
    convergence: Convergence | None
    note: str = ""
