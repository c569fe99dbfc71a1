"""Samples: anything with `__len__` and `__getitem__(i) -> (raw inputs, target)`, and where they may come from.

A source is "module:function", the name of a set under `calibration/`, a path (folder or zip of labelled pictures, .npz,
or a set's .toml), or a live object. Relative paths count from the recipe's folder.
"""

from __future__ import annotations

from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Protocol

from edgeexport.data.arrays import Arrays, as_arrays, check_finite
from edgeexport.data.pictures import FolderStore, Pictures, Store, ZipStore
from edgeexport.data.tables import load_table
from edgeexport.data.usercode import UserCode, is_reference, resolve_reference
from edgeexport.errors import DataError
from edgeexport.records.base import digest
from edgeexport.records.calibration import CalibrationSet, calibration_names, load_calibration_set
from edgeexport.records.recipe import Recipe


class Samples(Protocol):
    """A finite, indexable source of raw samples."""

    def __len__(self) -> int:
        """Return how many samples there are."""

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:
        """Return (raw inputs, target): an array or a dict of arrays, and whatever the metric understands."""


class UserSamples:
    """A user's sequence: what it raises, or a wrong answer, becomes an error that names the sample."""

    def __init__(self, sequence: Any, *, origin: str, folder: str | None = None) -> None:
        if not (hasattr(sequence, "__len__") and hasattr(sequence, "__getitem__")):
            raise DataError(
                f"{origin}: a {type(sequence).__name__} is no source of samples",
                next_step="return an object with `__len__` and `__getitem__(i) -> (inputs, target)`",
            )
        self.sequence, self.origin, self.folder = sequence, origin, folder
        self.classes = tuple(str(item) for item in getattr(sequence, "classes", ()))
        with UserCode(origin, folder):
            self.count = len(sequence)
        if not self.count:
            raise DataError(f"{origin}: holds no samples")

    def __len__(self) -> int:
        """Return how many samples the sequence has."""
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return the user's (inputs, target)."""
        with UserCode(self.name(index), self.folder):
            found = self.sequence[index]
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise DataError(f"{self.name(index)}: is a {type(found).__name__}, expected the pair (inputs, target)")
        return found[0], found[1]

    def name(self, index: int) -> str:
        """Return what to call sample `index` in messages."""
        return f"{self.origin}: sample {index}"


def sample_name(samples: Samples, index: int) -> str:
    """Return what to call sample `index` in messages: its own name where it has one."""
    name = getattr(samples, "name", None)
    return str(name(index)) if callable(name) else f"sample {index}"


def read_raw(samples: Samples, index: int) -> tuple[Arrays, Any]:
    """Return sample `index` as arrays by input name ("" for an only one) and its target; values are finite.

    Raises DataError naming the sample.
    """
    raw, target = samples[index]
    arrays = as_arrays(raw, name=sample_name(samples, index))
    check_finite(arrays, name=sample_name(samples, index))
    return arrays, target


def open_samples(reference: Any, recipe: Recipe, *, labelled: bool = True) -> Samples:
    """Open a source. With `labelled=False` (calibration) pictures and arrays need no labels.

    Raises DataError for a missing, empty, damaged or unlabelled source, RecipeError or RequestError for user code.
    """
    if not isinstance(reference, str | Path):
        return _live(reference)
    text = str(reference)
    if is_reference(text):
        found = resolve_reference(text, recipe.folder)
        with UserCode(text, recipe.folder):
            samples = found() if _makes_samples(found) else found
        return UserSamples(samples, origin=text, folder=recipe.folder)
    if (named := named_set(text, recipe)) is not None:
        return _open_named(*named, labelled=labelled)
    return _open_path(recipe.resolve(text), recipe, labelled=labelled)


def _makes_samples(value: Any) -> bool:
    """Tell a function or class that makes samples from samples themselves (which may be callable too)."""
    return isinstance(value, type) or (callable(value) and not hasattr(value, "__getitem__"))


def _live(reference: Any) -> Samples:
    origin = getattr(reference, "__qualname__", type(reference).__qualname__)
    if _makes_samples(reference):
        with UserCode(origin):
            reference = reference()
    return UserSamples(reference, origin=origin)


def _open_path(path: Path, recipe: Recipe, *, labelled: bool) -> Samples:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder", next_step="paths count from the recipe's folder")
    if path.suffix.lower() == ".npz":
        return load_table(path, origin=str(path), labelled=labelled, classes=class_table(recipe)[1])
    if not path.is_dir() and path.suffix.lower() != ".zip":
        raise DataError(f"{path}: not a source of samples", next_step="give a folder, .zip, .npz or module:function")
    store: Store = FolderStore(path) if path.is_dir() else ZipStore(path)
    return Pictures(store, classes=class_table(recipe)[0], labelled=labelled)


def named_set(reference: Any, recipe: Recipe) -> tuple[CalibrationSet, Traversable] | None:
    """Return the set that `reference` names (a name, or the path of a .toml) with its folder; None if it names none."""
    if not isinstance(reference, str):
        return None
    if reference.endswith(".toml"):
        return load_calibration_set(str(recipe.resolve(reference)))
    return load_calibration_set(reference) if reference in calibration_names() else None


def _open_named(found: CalibrationSet, folder: Traversable, *, labelled: bool) -> Samples:
    if not found.source:
        raise DataError(f"the set {found.name!r} names a preprocessing only, it holds no samples")
    try:
        content = (folder / found.source).read_bytes()
    except OSError as error:
        raise DataError(f"the set {found.name!r}: {found.source} is not readable: {error.strerror}") from error
    actual = digest(content)
    if actual != found.digest:
        raise DataError(f"the set {found.name!r}: {found.source} has digest {actual}, its TOML says {found.digest!r}")
    origin = f"the set {found.name!r}"
    table = load_table(content, origin=origin, labelled=labelled, classes=found.classes)
    if len(table) != found.count:
        raise DataError(f"{origin}: {found.source} holds {len(table)} samples, its TOML says {found.count}")
    return table


def class_table(recipe: Recipe) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (folder names, display names) in index order from `data.classes`; both empty when it is not given.

    The file has lines "index name ..." (the rest, if any, is what to display), or one name a line.
    """
    if recipe.data.classes is None:
        return (), ()
    path = recipe.resolve(recipe.data.classes)
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as a list of classes: {error}") from error
    if not all(len(words) > 1 and words[0].isdecimal() for words in lines):
        names = tuple(" ".join(words) for words in lines)
        return _unique(names, path), names
    rows = sorted((int(words[0]), words[1], " ".join(words[2:]) or words[1]) for words in lines)
    if [row[0] for row in rows] != list(range(len(rows))):
        raise DataError(f"{path}: the indices are not 0 to {len(rows) - 1}, each once")
    return _unique(tuple(row[1] for row in rows), path), tuple(row[2] for row in rows)


def _unique(names: tuple[str, ...], path: Path) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if not names or twice:
        raise DataError(f"{path}: " + (f"class {twice[0]!r} stands there twice" if twice else "names no classes"))
    return names


def label_names(path: Path) -> tuple[str, ...]:
    """Return the lines of a text file, one name a line, the first for class 0. Two classes may share a name.

    Raises DataError for a file that is missing, not text, empty, or has an empty line between names.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"`model.labels`: {path} is not readable as a list of names: {error}",
            next_step="paths count from the recipe's folder",
        ) from error
    if not names:
        raise DataError(f"`model.labels`: {path} holds no names")
    if "" in names:
        raise DataError(f"`model.labels`: {path}: line {names.index('') + 1} is empty", next_step="one name a line")
    return tuple(names)


def class_names(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the classes in index order, as people read them; empty when nothing tells them.

    `model.labels` comes first, then the data. Reads names only, never a sample, and never imports user code.
    """
    if recipe.model.labels is not None:
        return label_names(recipe.resolve(recipe.model.labels))
    data = recipe.data
    if data.classes is not None:
        return class_table(recipe)[1]
    for reference in (data.pool, data.train, data.evaluate):
        if reference is None or is_reference(reference):
            continue
        if (named := named_set(reference, recipe)) is not None:
            return named[0].classes
        if not isinstance(reference, str | Path):
            return tuple(str(item) for item in getattr(reference, "classes", ()))
        if str(reference).endswith(".npz"):
            continue
        samples = _open_path(recipe.resolve(str(reference)), recipe, labelled=False)
        if isinstance(samples, Pictures) and samples.classes:
            return samples.classes
    return ()
