"""Unfinished: what a calibration has collected so far, kept in a folder so that a killed one goes on where it was.

The rule: a file is either whole or absent, and belongs to one model, method and set of samples; any other is ignored.
Extremes and counts are stored exactly, so a resumed calibration ends in the same bits.
"""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.quantization.histogram import HALF, Histogram
from edgeexport.quantization.seen import Seen
from edgeexport.workspace import publish

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAME = "calibration.npz"
# Seconds between two savings, and how many times the last one's own time must have passed.
SAVE_SECONDS = 2.0
_SAVE_RATIO = 30.0


@dataclass
class Unfinished:
    """The file in `folder` (none: nothing is kept) that holds what was seen under `key`."""

    folder: Path | None
    key: str
    histograms: bool
    _due: float = 0.0

    def restore(self, seen: Mapping[str, Seen]) -> None:
        """Give every tensor back what it had; leave `seen` as it is where there is nothing that fits."""
        self._due = time.monotonic() + SAVE_SECONDS
        stored = self._read()
        if stored is None or stored["names"].tolist() != list(seen):
            return
        for index, item in enumerate(seen.values()):
            item.low, item.high = float(stored["low"][index]), float(stored["high"][index])
            item.taken = int(stored["taken"][index])
            if self.histograms:
                exponent, zeros = int(stored["exponent"][index]), int(stored["zeros"][index])
                item.histogram = Histogram(stored["counts"][index].copy(), exponent, zeros)

    def save_when_due(self, seen: Mapping[str, Seen]) -> None:
        """Save every so often; the time between is long beside the time that saving takes."""
        if self.folder is None or time.monotonic() < self._due:
            return
        began = time.monotonic()
        self.save(seen)
        took = time.monotonic() - began
        self._due = time.monotonic() + max(SAVE_SECONDS, _SAVE_RATIO * took)

    def save(self, seen: Mapping[str, Seen]) -> None:
        """Publish what was seen so far. Raises NoSpace or MachineError."""
        import numpy as np

        if self.folder is None:
            return
        items = list(seen.values())
        columns: dict[str, Any] = {
            "key": np.array(self.key),
            "names": np.array(list(seen)),
            "low": np.array([item.low for item in items], np.float64),
            "high": np.array([item.high for item in items], np.float64),
            "taken": np.array([item.taken for item in items], np.int64),
        }
        if self.histograms:
            columns["exponent"] = np.array([item.histogram.exponent for item in items], np.int64)
            columns["zeros"] = np.array([item.histogram.zeros for item in items], np.int64)
            columns["counts"] = np.stack([item.histogram.counts for item in items])
        stream = io.BytesIO()
        np.savez(stream, **columns)
        publish(self.folder / NAME, stream.getvalue())

    def _read(self) -> dict[str, NDArray[Any]] | None:
        import numpy as np

        if self.folder is None or not (self.folder / NAME).is_file():
            return None
        try:
            content = io.BytesIO((self.folder / NAME).read_bytes())
            with np.load(content, allow_pickle=False) as stored:
                columns = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, zipfile.BadZipFile, EOFError):
            return None
        return columns if self._whole(columns) else None

    def _whole(self, columns: Mapping[str, NDArray[Any]]) -> bool:
        """Whether the key is ours and every column is there in its shape."""
        wanted = {"key", "names", "low", "high", "taken"} | (
            {"exponent", "zeros", "counts"} if self.histograms else set()
        )
        if columns.keys() != wanted or columns["key"].tolist() != self.key:
            return False
        count = len(columns["names"])
        shapes = {name: (count, 2 * HALF) if name == "counts" else (count,) for name in wanted - {"key"}}
        return all(columns[name].shape == shape for name, shape in shapes.items())
