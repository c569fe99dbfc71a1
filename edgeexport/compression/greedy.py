"""The choice: part after part goes, always the one that loses the least importance for what it saves.

The rule: widths only ever become multiples of the grid's unit, and a part that saves nothing of the goal that is
furthest off never goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from edgeexport.compression.heads import HEADS
from edgeexport.compression.price import Ledger
from edgeexport.records.pruning import PruningGroup

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgeexport.compression.channels import ChannelGroup
    from edgeexport.compression.depth import Block

# Where `round_to` leaves too little to remove, and for layers narrower than it, widths go by this.
FINE = 8
# From one width, so many narrower ones are looked at: a kernel may cost no less at the next one, but at that after it.
AHEAD = 4


class Steps(NamedTuple):
    """Which widths a layer may be cut to: multiples of `round_to`, or of 8 for layers narrower than `wide`."""

    round_to: int
    wide: int

    def widths(self, group: ChannelGroup) -> list[int]:
        """Return the widths a group may be cut to, widest first; of heads, any number."""
        unit = self.round_to if group.width >= self.wide else min(FINE, self.round_to)
        unit = 1 if group.kind == HEADS else unit
        return [kept for kept in range(group.width - 1, 0, -1) if kept % unit == 0]


def grids(round_to: int) -> tuple[Steps, ...]:
    """The grids to try in order, from the best for the kernels to the finest."""
    fine = min(FINE, round_to)
    return tuple(dict.fromkeys((Steps(round_to, round_to), Steps(round_to, round_to + 1), Steps(fine, fine))))


@dataclass(frozen=True)
class Parts:
    """What may go: groups with the importance of each channel, and blocks with what skipping them moves (0 to 1)."""

    groups: Sequence[ChannelGroup]
    scores: Mapping[str, NDArray[Any]]
    blocks: Sequence[Block] = ()
    effects: Mapping[str, float] = field(default_factory=dict)


@dataclass
class _Option:
    """One step that could be taken: a group down to a width, or a block. loss: -log of the importance that is left."""

    loss: float
    saved: tuple[float, ...]
    group: ChannelGroup | None = None
    end: int = 0
    block: Block | None = None
    kept: float = 1.0


class Choice:
    """The parts chosen so far, on a ledger."""

    def __init__(self, ledger: Ledger, parts: Parts, *, grid: Steps, per_layer: bool = False) -> None:
        import numpy as np

        self._ledger, self._parts, self._per_layer = ledger, parts, per_layer
        self._order = {g.layer: np.argsort(parts.scores[g.layer], kind="stable").tolist() for g in parts.groups}
        self._gone = {group.layer: 0 for group in parts.groups}
        self._widths = {group.layer: grid.widths(group) for group in parts.groups}
        self._skipped: list[str] = []
        self._known: dict[str, list[_Option]] = {}

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks to skip, in the network's order."""
        return tuple(block.name for block in self._parts.blocks if block.name in self._skipped)

    @property
    def groups(self) -> tuple[PruningGroup, ...]:
        """The channels and heads to remove, but of groups that only skipped blocks make."""
        skipped = [block for block in self._parts.blocks if block.name in self._skipped]
        dead = {layer for block in skipped for layer in block.layers}
        return tuple(
            PruningGroup(group.layer, group.kind, group.width, tuple(sorted(self._removed(group))))
            for group in self._parts.groups
            if self._gone[group.layer]
            and any(member.layer not in dead for member in group.members if member.side == "out")
        )

    def _removed(self, group: ChannelGroup) -> list[int]:
        return list(self._order[group.layer][: self._gone[group.layer]])

    def reach(self, asked: Sequence[float], *, of: Literal["all", "blocks", "channels"] = "all") -> bool:
        """Take steps until every total is at most what is asked; say whether that was reached.

        of: what may go; heads count as channels.
        """
        while True:
            excess = [total / max(goal, 1e-12) for total, goal in zip(self._ledger.totals, asked, strict=True)]
            worst = max(range(len(excess)), key=excess.__getitem__)
            if excess[worst] <= 1.0:
                return True
            options = [option for option in self._options(of) if option.saved[worst] > 1e-12]
            if not options:
                return False
            if self._per_layer:  # of channels and heads, those of the layers that are still the fullest
                fullest = max((option.kept for option in options if option.block is None), default=0.0)
                options = [option for option in options if option.block or option.kept == fullest]
            self._take(min(options, key=lambda option: option.loss / option.saved[worst]))

    def _options(self, of: str) -> Iterator[_Option]:
        for group in self._parts.groups if of != "blocks" else ():
            if group.layer not in self._known:
                self._known[group.layer] = list(self._of_group(group))
            yield from self._known[group.layer]
        for block in self._parts.blocks if of != "channels" else ():
            if block.name not in self._skipped:
                if block.name not in self._known:
                    loss = -math.log(max(1.0 - self._parts.effects[block.name], 1e-12))
                    saved = self._ledger.saving_of_skip(block.layers)
                    self._known[block.name] = [_Option(loss, saved, block=block)]
                yield from self._known[block.name]

    def _of_group(self, group: ChannelGroup) -> Iterator[_Option]:
        scores, ranked, start = self._parts.scores[group.layer], self._order[group.layer], self._gone[group.layer]
        kept = group.width - start
        left = float(scores[ranked[start:]].sum())
        for width in [width for width in self._widths[group.layer] if width < kept][:AHEAD]:
            end = group.width - width
            loss = math.log(left / float(scores[ranked[end:]].sum()))
            saved = self._ledger.saving(group, ranked[start:end])
            yield _Option(loss, saved, group=group, end=end, kept=kept / group.width)

    def _take(self, option: _Option) -> None:
        if option.group is not None:
            name = option.group.layer
            self._ledger.cut(option.group, self._order[name][self._gone[name] : option.end])
            self._gone[name] = option.end
            touched = {member.layer for member in option.group.members}
        else:
            assert option.block is not None
            self._ledger.skip(option.block.layers)
            self._skipped.append(option.block.name)
            touched = set(option.block.layers)
        for group in self._parts.groups:
            if touched.intersection(member.layer for member in group.members):
                self._known.pop(group.layer, None)
        for block in self._parts.blocks:
            if touched.intersection(block.layers):
                self._known.pop(block.name, None)
