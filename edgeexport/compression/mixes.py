"""Mixes: in which proportions of depth and width a student may be cut from its teacher.

The rule: a mix says what may go and in which order, never how much; how much follows from the goal and its price.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeexport.compression.candidates import Candidates
from edgeexport.records.recipe import MixName


@dataclass(frozen=True)
class Mix:
    """What goes: channels and heads (`width`), whole blocks (`depth`).

    scope: as in `prune`. blocks_first: see `compression.prune.Means`.
    """

    width: bool = True
    depth: bool = False
    scope: Literal["global", "per-layer"] = "global"
    blocks_first: float = 0.0

    def of(self, found: Candidates) -> Candidates:
        """Return those candidates that this mix may take."""
        return Candidates(found.groups if self.width else (), found.blocks if self.depth else (), found.refused)


# Half of the way by blocks leaves both halves a root of the whole ratio: neither is driven to its end.
MIXES: dict[MixName, Mix] = {
    "width": Mix(),
    "even-width": Mix(scope="per-layer"),
    "depth": Mix(width=False, depth=True),
    "depth-then-width": Mix(depth=True, scope="per-layer", blocks_first=0.5),
    "free": Mix(depth=True),
}
