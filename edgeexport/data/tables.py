"""Samples from .npz files: one array of inputs (or several, by input name) and one of labels.

The rule: `allow_pickle` is never set, so an .npz cannot run code.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.errors import DataError, Unlabelled

if TYPE_CHECKING:
    import numpy as np

INPUTS = ("inputs", "input", "x", "images", "data", "features")
LABELS = ("labels", "label", "y", "targets", "target")


class Table:
    """Samples from arrays whose first axis counts samples. Several inputs come as a dict by name."""

    def __init__(
        self, arrays: Mapping[str, np.ndarray[Any, Any]], *, origin: str, labelled: bool = True,
        classes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.origin = origin
        self.classes = tuple(classes)
        inputs, self.labels = _roles(arrays, origin=origin)
        if labelled and self.labels is None:
            raise Unlabelled(f"{origin}: has no labels", next_step="name the array of labels " + " or ".join(LABELS))
        lengths = {name: len(array) if array.ndim else 0 for name, array in inputs.items()}
        if self.labels is not None:
            lengths["labels"] = len(self.labels) if self.labels.ndim else 0
        if len(set(lengths.values())) > 1:
            raise DataError(f"{origin}: arrays of unlike length: {lengths}")
        self.count = max(lengths.values(), default=0)
        if not self.count:
            raise DataError(f"{origin}: holds no samples")
        self.inputs = inputs

    def __len__(self) -> int:
        """Return how many samples there are."""
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return sample `index`: its array (or arrays by name), and its label (None without labels)."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        target = None if self.labels is None else self.labels[index]
        if target is not None and not target.ndim:
            target = target.item()
        if len(self.inputs) == 1:
            return next(iter(self.inputs.values()))[index], target
        return {name: array[index] for name, array in self.inputs.items()}, target

    def name(self, index: int) -> str:
        """Return what to call sample `index` in messages."""
        return f"{self.origin}: sample {index}"


def load_table(source: Path | bytes, *, origin: str, labelled: bool = True, classes: Sequence[str] = ()) -> Table:
    """Read an .npz from a path or its bytes. Raises DataError naming `origin`."""
    import numpy as np

    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{origin}: is a single array, expected an .npz with inputs and labels")
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile, MemoryError) as error:
        raise DataError(
            f"{origin}: not readable as an .npz of plain arrays: {error}",
            next_step="save numeric arrays with numpy.savez; object arrays are never read",
        ) from error
    return Table(arrays, origin=origin, labelled=labelled, classes=classes)


def _roles(
    arrays: Mapping[str, np.ndarray[Any, Any]], *, origin: str
) -> tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any] | None]:
    """Tell inputs and labels apart by their names (in any case)."""
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise DataError(f"{origin}: array {name!r} has dtype {array.dtype}, expected numbers")
    labels = [name for name in arrays if name.lower() in LABELS]
    if len(labels) > 1:
        raise DataError(f"{origin}: several arrays could be the labels: {', '.join(sorted(labels))}")
    rest = {name: array for name, array in arrays.items() if name not in labels}
    named = [name for name in rest if name.lower() in INPUTS]
    chosen = {named[0]: rest[named[0]]} if len(named) == 1 else rest
    if not chosen:
        raise DataError(f"{origin}: holds no inputs", next_step="name the array of inputs " + " or ".join(INPUTS))
    return chosen, arrays[labels[0]] if labels else None
