"""Seen: what calibration knows of one tensor so far, its extremes and how its values are spread.

The rule: it does not matter in what order or in how many parts the values came. What is not finite never gets in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeexport.errors import DataError
from edgeexport.quantization.clipping import METHODS, Limits
from edgeexport.quantization.histogram import Histogram
from edgeexport.records.ranges import Range

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class Seen:
    """What one tensor showed in the first `taken` samples. `low` > `high` as long as it showed nothing."""

    low: float = math.inf
    high: float = -math.inf
    taken: int = 0
    histogram: Histogram = field(default_factory=Histogram)

    def widen(self, low: float, high: float) -> None:
        """Take in the extremes of some values."""
        self.low, self.high = min(self.low, low), max(self.high, high)

    def add(self, values: NDArray[Any], *, where: str, count: bool) -> None:
        """Take in values; count: into the histogram too. Raises DataError, naming `where`, if any is not finite."""
        if not values.size:
            return
        low, high = extremes(values, where=where)
        self.widen(low, high)
        if count:
            self.histogram.add(values, largest=max(-low, high))

    def range(self, method: str) -> Range:
        """Return the range that a calibration method chooses. Something must have been seen."""
        low, high = METHODS[method](self.histogram, (self.low, self.high))
        return Range(low=low, high=high, seen_low=self.low, seen_high=self.high)


def extremes(values: NDArray[Any], *, where: str) -> Limits:
    """Return the least and the greatest of at least one value. Raises DataError if any is not finite."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        low, high = float(values.min()), float(values.max())
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    bad = ~np.isfinite(values)
    raise DataError(
        f"{where}: {np.count_nonzero(bad)} of {values.size} values are not finite, the first is {values[bad][0]}",
        next_step="remove or repair that sample; an infinity inside the model means values that overflow float32",
    )
