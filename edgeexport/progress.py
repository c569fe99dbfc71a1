"""The one way in which long work speaks: a callback with a short text and the fraction done (0 to 1, or None).

A text names a step in a few words, "export source". What is said within a step begins with a colon, ": sample 3": the
rooms below do not know which step they are part of, so whoever starts the step hands them `details(progress)`.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float | None], None]


def silent(text: str, fraction: float | None = None) -> None:
    """Say nothing: the default of every `progress` parameter."""


def details(progress: Progress) -> Progress:
    """Return a callback whose texts are details of the step that was told last."""

    def tell(text: str, fraction: float | None = None) -> None:
        progress(f": {text}", fraction)

    return tell
