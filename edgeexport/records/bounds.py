"""Bounds: what a number in a recipe or target may be.

The rule: bounds hold for records built in Python too, which msgspec does not validate, so they are checked where a
record is made; an error names the key, the value and the bound.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgeexport.errors import RecipeError


class Bound(NamedTuple):
    """What a number must be, in words and as a test. whole: only integers will do."""

    says: str
    holds: Callable[[float], bool]
    whole: bool = False

    def allows(self, value: object) -> bool:
        """Say whether `value` is a finite number (a whole one, if need be) within the bound."""
        kind = int if self.whole else (int, float)
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        return math.isfinite(value) and self.holds(value)


COUNT = Bound("a whole number of at least 1", lambda value: value >= 1, whole=True)
SEED = Bound("a whole number of at least 0", lambda value: value >= 0, whole=True)
NOT_NEGATIVE = Bound("a finite number of at least 0", lambda value: value >= 0)
POSITIVE = Bound("a finite number above 0", lambda value: value > 0)
ABOVE_ONE = Bound("a finite number above 1", lambda value: value > 1)
SHARE = Bound("a number from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_ONE = Bound("a number of at least 0 and below 1", lambda value: 0 <= value < 1)
INNER_SHARE = Bound("a number above 0 and below 1", lambda value: 0 < value < 1)


def check_bounds(record: object, place: str, **bounds: Bound) -> None:
    """Raise RecipeError for the first field of `record` that is outside its bound; None stands for "not given"."""
    for key, bound in bounds.items():
        value = getattr(record, key)
        if value is not None and not bound.allows(value):
            raise RecipeError(f"`{place}.{key}` is {value!r}, expected {bound.says}")


def check_named(record: object, place: str, **known: Sequence[str]) -> None:
    """Raise RecipeError for the first field of `record` that is neither a known name nor a "module:function"."""
    for key, names in known.items():
        value = getattr(record, key)
        if value is not None and value not in names and (not isinstance(value, str) or ":" not in value):
            close = difflib.get_close_matches(str(value), names, n=1)
            raise RecipeError(
                f"`{place}.{key}` is {value!r}, expected {', '.join(names)} or module:function",
                next_step=f"did you mean {close[0]!r}?" if close else "",
            )


def check_shape(shape: Sequence[int], place: str) -> None:
    """Raise RecipeError unless every size of a shape is a positive integer."""
    if not all(COUNT.allows(size) for size in shape):
        raise RecipeError(f"`{place}` is {list(shape)}, expected whole numbers of at least 1")
