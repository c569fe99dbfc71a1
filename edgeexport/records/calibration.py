"""CalibrationSet: a named kind of samples, one TOML under `calibration/`."""

from __future__ import annotations

import tomllib
from importlib.resources.abc import Traversable
from pathlib import Path

from edgeexport.errors import RecipeError
from edgeexport.records.base import Record, from_table
from edgeexport.records.recipe import Preprocess
from edgeexport.records.target import facts


class CalibrationSet(Record):
    """Facts about samples: where they are, what they are, how they become inputs, and under which licence.

    source: a file beside the TOML (embedded sets), or empty when the TOML only names a preprocessing.
    digest: `sha256:...` of that file. arrays: names of the arrays inputs and labels have in an .npz.
    """

    name: str
    title: str
    source: str = ""
    digest: str = ""
    count: int = 0
    seed: int = 0
    licence: str = ""
    citation: str = ""
    classes: tuple[str, ...] = ()
    preprocess: Preprocess | None = None


def calibration_names() -> list[str]:
    """Return the names of all calibration sets that come with edgeexport, sorted."""
    files = (entry.name for entry in facts("calibration").iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def load_calibration_set(reference: str) -> tuple[CalibrationSet, Traversable]:
    """Read a set by name or TOML path; return it with the folder that its `source` is relative to."""
    if reference.endswith(".toml"):
        source: Traversable = Path(reference)
        folder: Traversable = Path(reference).parent
    elif reference in calibration_names():
        folder = facts("calibration")
        source = folder / f"{reference}.toml"
    else:
        raise RecipeError(f"no calibration set {reference!r}", next_step="known: " + ", ".join(calibration_names()))
    try:
        table = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{reference}: not readable as TOML: {error}") from error
    table.setdefault("name", source.name.removesuffix(".toml"))
    return from_table(table, CalibrationSet, origin=reference), folder
