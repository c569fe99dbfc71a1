"""What data means for a cache key: the files behind it and their digests, never a decoded sample.

The rule: user code is read as text, not imported. A live object has no file behind it, so its samples are digested.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeexport.data.arrays import sample_digest
from edgeexport.data.preprocess import resolve_preprocess
from edgeexport.data.sources import Samples, label_names, named_set, open_samples, read_raw
from edgeexport.data.usercode import is_reference, source_files
from edgeexport.errors import DataError
from edgeexport.records.recipe import Recipe


def data_identity(recipe: Recipe, digest: Callable[[Path], str]) -> dict[str, Any]:
    """Return plain data that changes whenever the recipe's data or its preprocessing does.

    digest: gives a file's digest (the workspace's one remembers it). A folder is known by its files' names, sizes and
    times. Raises DataError for a missing file. The model's labels change no sample, but must be readable.
    """
    data = recipe.data
    if recipe.model.labels is not None:
        label_names(recipe.resolve(recipe.model.labels))
    sources = {"train": data.train, "evaluate": data.evaluate, "pool": data.pool, "calibration": data.calibration}
    given = {name: value for name, value in sources.items() if value is not None}
    return {
        "sources": {name: _identity(value, recipe, digest=digest) for name, value in given.items()},
        "files": {name: digest(existing(recipe.resolve(name))) for name in data.files},
        "classes": None if data.classes is None else digest(existing(recipe.resolve(data.classes))),
        "preprocess": resolve_preprocess(recipe),
        "choices": [data.split, data.calibration_count, data.selection_share, data.selection_max, data.seed],
    }


def code_identity(reference: str, recipe: Recipe, *, digest: Callable[[Path], str]) -> dict[str, Any]:
    """Return the reference with the digests of all source files that it can reach in the recipe's folder."""
    root = Path(recipe.folder).resolve()
    files = source_files(reference, root)
    return {"reference": reference, "sources": {path.relative_to(root).as_posix(): digest(path) for path in files}}


def _identity(reference: Any, recipe: Recipe, *, digest: Callable[[Path], str]) -> dict[str, Any]:
    if not isinstance(reference, str | Path):
        samples = open_samples(reference, recipe, labelled=False)
        return {"live": type(reference).__qualname__, **_live(samples)}
    text = str(reference)
    if is_reference(text):
        return code_identity(text, recipe, digest=digest)
    named = named_set(text, recipe)
    if named is not None:
        return {"set": named[0]}
    path = recipe.resolve(text)
    return _folder(path) if path.is_dir() else {"file": digest(existing(path))}


def _live(samples: Samples) -> dict[str, str]:
    """Inputs and targets: new labels on the same pictures are other data."""
    inputs, targets = hashlib.sha256(), hashlib.sha256()
    for index in range(len(samples)):
        arrays, target = read_raw(samples, index)
        inputs.update(sample_digest(arrays).encode())
        targets.update(f"{_plain(target)!r}\n".encode())
    return {"samples": inputs.hexdigest(), "targets": targets.hexdigest()}


def _plain(target: Any) -> Any:
    """Return a target whose repr shows every value: that of a long array or tensor leaves out the middle."""
    if isinstance(target, Mapping):
        return {key: _plain(value) for key, value in target.items()}
    if isinstance(target, list | tuple):
        return [_plain(value) for value in target]
    return target.tolist() if hasattr(target, "tolist") else target


def existing(path: Path) -> Path:
    """Return `path` if a file is there. Raises DataError naming it."""
    if not path.is_file():
        raise DataError(f"{path}: no such file", next_step="paths count from the recipe's folder")
    return path


def _folder(path: Path) -> dict[str, Any]:
    rows = []
    for entry in path.rglob("*"):
        if entry.is_file():
            found = entry.stat()
            rows.append((entry.relative_to(path).as_posix(), found.st_size, found.st_mtime_ns))
    return {"folder": sorted(rows)}
