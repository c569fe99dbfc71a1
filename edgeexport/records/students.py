"""Students: the ways in which a network can be cut, what each costs, and which of them is worth a training."""

from __future__ import annotations

from edgeexport.records.base import Record
from edgeexport.records.latency import Basis
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import MixName

# A student within this of the fastest one is as good as it: the one that keeps more is taken.
ALIKE = 0.05
# The smallest difference that a measurement claims at all: by so little a goal may be missed.
SLACK = 0.02
MB = 1e6


class Student(Record):
    """One way to cut a network, before any training.

    plan: None where the goals are out of reach by this mix, or another mix gives the same; `reason` says which, and why
    a planned one could not be built.
    bytes: of the file that ships, 0 where none was built. cost: of an inference, in the unit of the record; times:
    how many times less that is than before. kept: the shares of multiply-accumulates and of the file that are left.
    """

    mix: MixName
    plan: PruningPlan | None = None
    reason: str = ""
    bytes: int = 0
    cost: float | None = None
    times: float | None = None
    kept: tuple[float, float] = (0.0, 0.0)

    @property
    def capacity(self) -> float:
        """What it has left to learn with: the product of the shares that are kept."""
        return self.kept[0] * self.kept[1]

    def reaches(self, speedup: float | None, *, max_size_mb: float | None) -> bool:
        """Whether it was built, and what is known of it reaches the goals; others its plan has reached."""
        if self.plan is None or self.reason:
            return False
        slow = speedup is not None and self.times is not None and self.times < speedup * (1 - SLACK)
        return not slow and (max_size_mb is None or self.bytes <= max_size_mb * MB)


class Students(Record):
    """What was tried for a goal. basis, unit: how `cost` is known. reason: why nothing was measured.

    chosen: index of the student that is worth a training.
    """

    tried: tuple[Student, ...]
    chosen: int
    basis: Basis
    unit: str
    bytes_before: int
    cost_before: float | None = None
    reason: str = ""


def ranked(tried: tuple[Student, ...], *, speedup: float | None, max_size_mb: float | None) -> list[int]:
    """Return the indices of those that were built, best first: by what they reach, then by cost, then by capacity.

    Of those that cost within 5 % of the least the one that keeps most comes first. What no cost is known of comes last.
    """
    found = [index for index, student in enumerate(tried) if student.plan is not None and not student.reason]
    order: list[int] = []
    for wanted in (True, False):
        left = [i for i in found if tried[i].reaches(speedup, max_size_mb=max_size_mb) == wanted]
        while left:
            least = min(_cost(tried[index]) for index in left)
            alike = [index for index in left if _cost(tried[index]) <= least * (1 + ALIKE)]
            best = max(alike, key=lambda index: tried[index].capacity)
            order.append(best)
            left.remove(best)
    return order


def _cost(student: Student) -> float:
    return float("inf") if student.cost is None else student.cost
