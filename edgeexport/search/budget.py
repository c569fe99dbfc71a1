"""Budget: minutes into steps, and steps into the rounds of successive halving.

The rule: wall time decides one number, once; it is kept, so that a search that was killed goes on with the same rounds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from edgeexport.errors import RequestError
from edgeexport.records.shrink import HalvingRound

# Of each round one in so many goes on, for as many times the steps (Jamieson and Talwalkar 2016, arXiv:1502.07943).
REDUCTION = 3
# What is left of the budget pays for building and scoring students between trainings; all else comes on top.
TRAINING_SHARE = 0.7
# Fewer steps tell nothing of a student: rather fewer students.
LEAST_STEPS = 10
UNITS = {"s": 1 / 60, "m": 1.0, "h": 60.0, "": 1.0}


def minutes(text: str) -> float:
    """Return the minutes that `90m`, `1.5h`, `45s` or `90` says. Raises RequestError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    value = float(found[1]) * UNITS[found[2]] if found else 0.0
    if value <= 0:
        raise RequestError(f"{text!r} is no budget", next_step="write it as 90m, 1.5h or 45s")
    return value


def check_budget(minutes: float) -> None:
    """Raise RequestError for minutes in which nothing can be trained."""
    if not 0 < minutes < math.inf:
        raise RequestError(f"budget_minutes = {minutes:g} is no budget", next_step="give more than 0 minutes")


def rounds(students: int, total: int) -> tuple[HalvingRound, ...]:
    """Return the rounds that `total` steps in all allow: so many students at first as get steps that tell something."""
    for count in range(students, 0, -1):
        sizes = [count]
        while sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // REDUCTION))
        base = total // sum(size * REDUCTION**index for index, size in enumerate(sizes))
        if base >= LEAST_STEPS or count == 1:
            return tuple(HalvingRound(size, max(base, 1) * REDUCTION**index) for index, size in enumerate(sizes))
    return ()


def steps_in_all(students: int, *, seconds: float, one: Callable[[int], float]) -> int:
    """Return the `total` for `rounds` whose trainings take no more than that together; 1 if none does.

    one: steps -> seconds of a training from its start. Each of them sees its first batches as new ones, and looks at
    its held-out samples: many short trainings take longer than a long one of as many steps.
    """

    def fits(total: int) -> bool:
        return sum(each.students * one(each.steps) for each in rounds(students, total)) <= seconds

    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
