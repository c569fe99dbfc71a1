"""Environment variables in what a recipe says."""

from __future__ import annotations

import os
import re

from edgeexport.errors import RecipeError


def expand(text: str) -> str:
    """Expand `$NAME`, `${NAME}` and `${NAME:-default}` from the environment; a missing name without default raises."""

    def value(match: re.Match[str]) -> str:
        name = match["braced"] or match["plain"]
        found = os.environ.get(name) or match["default"]
        if found is None:
            raise RecipeError(f"the environment variable {name} in {text!r} is not set")
        return found

    return re.sub(r"\$(?:\{(?P<braced>\w+)(?::-(?P<default>[^}]*))?\}|(?P<plain>\w+))", value, text)
