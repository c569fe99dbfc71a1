"""PruningPlan: which channels go. Printable, stored, and applied again to rebuild the network."""

from __future__ import annotations

from edgeexport.records.base import Record


class PruningGroup(Record):
    """One group of coupled layers, named by its root layer, and the output channels of that layer that are removed."""

    layer: str
    kind: str
    width: int
    removed: tuple[int, ...]


class PruningPlan(Record):
    """All removals of one round, in order, with what they were meant to reach and what they reach.

    macs_before, macs_after: multiply-accumulates of one sample. refused: layer -> why it was left alone.
    """

    criterion: str
    round_to: int
    macs_before: int
    macs_after: int
    groups: tuple[PruningGroup, ...]
    refused: dict[str, str] = {}
