"""Rounds: how much of a pruning step each of its rounds is asked for.

The rule: what is left to do is shared in equal ratios among the rounds that are left, so a round that went further than
it was asked makes the next ones easier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import Prune


def round_asked(now: Mapping[str, float], step: Prune, *, done: Sequence[PruningPlan]) -> dict[str, float]:
    """Return goal -> the most that the next round may leave.

    now: goal -> what the network costs, in the unit of its price. done: the plans of the rounds before, which stand.
    """
    left = step.rounds - len(done)
    asked = {}
    for goal, total in now.items():
        wanted = float(getattr(step, goal))
        if goal == "max_size_mb":
            ratio = max(total / wanted, 1.0)
        else:
            ratio = wanted
            for plan in done:
                ratio /= next((each.ratio for each in plan.goals if each.goal == goal), 1.0)
        asked[goal] = total / max(ratio, 1.0) ** (1 / left)
    return asked
