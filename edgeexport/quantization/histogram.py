"""A histogram that grows: one pass, fixed memory, the same counts in whatever order the values come.

The rule: bins have a width that is a power of two and are anchored at zero, so that doubling the width merges exact
pairs. The width follows from the largest magnitude seen alone; at least HALF / 2 bins lie between zero and it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HALF = 4096
# Values taken at once: small enough for what is made of them to stay in the CPU's cache.
_CHUNK = 65_536
_LEAST_EXPONENT = -60


def _no_counts() -> NDArray[np.int64]:
    import numpy as np

    return np.zeros(2 * HALF, np.int64)


@dataclass
class Histogram:
    """Counts of values. Bin i holds [(i - HALF) * width, (i + 1 - HALF) * width)."""

    counts: NDArray[np.int64] = field(default_factory=_no_counts)
    exponent: int = _LEAST_EXPONENT
    zeros: int = 0

    @property
    def width(self) -> float:
        """The width of a bin: the bins reach from -2^exponent to 2^exponent."""
        return math.ldexp(1.0, self.exponent) / HALF

    def add(self, values: NDArray[Any], *, largest: float) -> None:
        """Count finite values, `largest` being their largest magnitude. Exact zeros are counted apart."""
        import numpy as np

        flat = np.asarray(values, np.float32).ravel()
        if largest > 0.0:
            self._grow(math.frexp(float(np.float32(largest)))[1])
        scale = np.float32(1.0 / self.width)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            zeros = part.size - int(np.count_nonzero(part))
            self.zeros += zeros
            # Floats of this size hold whole numbers exactly; what is below 2^exponent cannot land beyond the last bin.
            bins = np.floor(part * scale)
            bins += np.float32(HALF)
            self.counts += np.bincount(bins.astype(np.int64), minlength=2 * HALF)
            self.counts[HALF] -= zeros

    def edges(self) -> NDArray[np.float64]:
        """Return the 2 * HALF + 1 edges of the bins."""
        import numpy as np

        return np.arange(-HALF, HALF + 1, dtype=np.float64) * np.float64(self.width)

    def _grow(self, exponent: int) -> None:
        while self.exponent < exponent:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = _no_counts()
            self.counts[HALF // 2 : HALF // 2 + HALF] = merged
            self.exponent += 1
