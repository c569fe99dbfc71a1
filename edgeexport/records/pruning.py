"""PruningPlan: what goes, and why just that. Printable, stored, and applied again to rebuild the network."""

from __future__ import annotations

from typing import Literal

from edgeexport.records.base import Record
from edgeexport.records.latency import Basis

GoalName = Literal["speedup", "max_size_mb", "macs"]
COUNTED: dict[GoalName, str] = {"speedup": "latency", "max_size_mb": "size", "macs": "multiply-accumulates"}
# So many of the parts that stay are named in one sentence.
NAMED = 3


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

    @property
    def told(self) -> str:
        """What the plan does to this goal, and how that is known, in one line."""
        figures = f"{self.before:.4g} → {self.after:.4g} {self.unit}"
        table = f", table {self.table.removeprefix('sha256:')[:12]}" if self.table else ""
        return f"{COUNTED[self.goal]} {figures} ({self.ratio:.2f} times less, {self.basis}{table})"


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

    def __str__(self) -> str:
        """Return the plan as lines of text: its goals, every part that goes, and every part that stays with the reason.

        Only the root layer of a group of coupled layers is named, as in `groups`.
        """
        share = self.macs_before / max(self.macs_after, 1)
        lines = [f"pruning plan by {self.criterion}, widths by {self.round_to}"]
        lines += [f"  goal     {goal.told}, asked {goal.asked:.4g}" for goal in self.goals]
        lines.append(f"  MACs     {self.macs_before:,} → {self.macs_after:,} ({share:.2f} times less)")
        lines += [
            f"  narrower `{group.layer}` ({group.kind}): {group.width} → {group.width - len(group.removed)}"
            for group in self.groups
        ]
        lines += [f"  out      `{name}`: the whole block" for name in self.blocks]
        return "\n".join([*lines, *(f"  stays    `{name}`: {reason}" for name, reason in self.refused.items())])

    @property
    def left_alone(self) -> str:
        """How many parts stay whole, and why the first of them do; empty where none does."""
        if not self.refused:
            return ""
        named = [f"`{name}`: {reason}" for name, reason in list(self.refused.items())[:NAMED]]
        more = len(self.refused) - len(named)
        count = f"{len(self.refused)} part{'s are' if len(self.refused) > 1 else ' is'} left alone"
        return f"{count}: {'; '.join(named)}{f'; and {more} more' if more else ''}"
