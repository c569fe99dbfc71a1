"""Scales at which the pairs of weights that AVX2 adds in 16 bits always fit, and that still use most of 8 bits.

The rule: two integers of one sign that a kernel adds are together at most 128 (255 · 128 fits 16 bits, 255 · 129 does
not). Which ones meet is `ort_saturation.partners`. The scale makes room for all pairs of an output channel, so nearest
rounding never breaks the rule; whoever rounds otherwise takes `room`, and whoever writes a file checks it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Two integers of one sign, the larger products of which still fit: 255 · 128 <= 32767 < 255 · 129.
MOST_TOGETHER = 128
# Two weights that fill a sum exactly could both be rounded up; with this much more room (far above what float32 loses)
# their fractions cannot both reach one half.
_MARGIN = 1 + 2.0**-20


def pair_scales(rows: NDArray[Any], *, met: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the least scale for each row (outputs, width) of weights with which its pairs fit once rounded to nearest.

    met: (ways, width), the partner of every column, as `ort_saturation.partners` says.
    """
    import numpy as np

    values = rows.astype(np.float64)
    largest = np.zeros(len(rows))
    for way in met:
        others = values[:, way]
        alike = (values * others > 0) & (way != np.arange(len(way)))
        both = np.where(alike, np.abs(values) + np.abs(others), 0.0)
        largest = np.maximum(largest, both.max(axis=1) / MOST_TOGETHER * _MARGIN)
    return largest


def room(others: NDArray[Any], *, limit: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the least and the greatest integer that may be added to each of `others` in one sum.

    others: (ways, ...), 0 where there is none.
    """
    import numpy as np

    least = -np.minimum(limit, MOST_TOGETHER + np.minimum(others, 0).min(axis=0))
    return least, np.minimum(limit, MOST_TOGETHER - np.maximum(others, 0).max(axis=0))
