"""A bar: a figure, what it must not exceed or fall below, and where the bar comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Bar:
    """`value` against `bar`; `kind` "max" means value <= bar, "min" means value >= bar."""

    value: float
    bar: float
    source: str
    kind: Literal["max", "min"] = "max"

    @property
    def holds(self) -> bool:
        """Whether the figure meets the bar; a figure that is not a number never does."""
        return self.value <= self.bar if self.kind == "max" else self.value >= self.bar
