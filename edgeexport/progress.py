"""The one way in which long work speaks: a callback with a short text and the fraction done (0 to 1, or None)."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float | None], None]


def silent(text: str, fraction: float | None = None) -> None:
    """Say nothing: the default of every `progress` parameter."""
