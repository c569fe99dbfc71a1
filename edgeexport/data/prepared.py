"""Prepared: some samples of a source, as the model wants them. And the same, stacked for training."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.data.arrays import Arrays, joint_digest, sample_digest
from edgeexport.data.preprocess import prepare
from edgeexport.data.sources import Samples, read_raw, sample_name
from edgeexport.errors import DataError, NoSpace
from edgeexport.progress import Progress, silent
from edgeexport.records.artifact import Signature
from edgeexport.records.recipe import Preprocess

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_MEMORY_SHARE = 0.4
_REPORT_EVERY = 500


@dataclass(frozen=True)
class Prepared:
    """The samples at `indices` of a source, preprocessed for `signature`. Position i means `samples[indices[i]]`.

    Nothing is kept: each call reads and prepares anew, so any number of samples fits any memory.
    """

    samples: Samples
    indices: tuple[int, ...]
    preprocess: Preprocess | None
    signature: Signature

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self.indices)

    def pair(self, position: int) -> tuple[Arrays, Any]:
        """Return (feeds with batch 1, target) of one sample. Raises DataError naming the sample."""
        index = self.indices[position]
        raw, target = self.samples[index]
        feeds = prepare(raw, self.preprocess, signature=self.signature, name=sample_name(self.samples, index))
        return feeds, target

    def feeds(self, position: int) -> Arrays:
        """Return the feeds of one sample, batch axis (1) first."""
        return self.pair(position)[0]

    def target(self, position: int) -> Any:
        """Return the target of one sample."""
        return self.samples[self.indices[position]][1]

    def __getitem__(self, position: int) -> Arrays:
        """Return the feeds of one sample, so that a reader may start at any of them."""
        return self.feeds(position)

    def __iter__(self) -> Iterator[Arrays]:
        """Yield the feeds of every sample, in order."""
        return (self.feeds(position) for position in range(len(self)))

    def batches(self, size: int) -> Iterator[tuple[Arrays, list[Any]]]:
        """Yield (feeds, targets) of up to `size` samples at a time, in order."""
        import numpy as np

        for start in range(0, len(self), size):
            pairs = [self.pair(position) for position in range(start, min(start + size, len(self)))]
            stacked = {name: np.concatenate([feeds[name] for feeds, _ in pairs]) for name in pairs[0][0]}
            yield stacked, [target for _, target in pairs]

    def digest(self) -> str:
        """Return the joint digest of the raw samples, in order; equals the `digest` of the split they come from."""
        return joint_digest([sample_digest(read_raw(self.samples, index)[0]) for index in self.indices])


def arrays(prepared: Prepared, *, progress: Progress = silent) -> tuple[Arrays, Array | None]:
    """Return all feeds stacked (samples first) and all targets as one array, None where no sample has one.

    What would take more than 40 % of the free memory is kept in an unnamed temporary file and mapped.
    Raises DataError for an empty set, for targets that are not numbers of one shape or that only some samples have,
    NoSpace when the disk is full.
    """
    if not len(prepared):
        raise DataError("no samples to train on")
    first = prepared.feeds(0)
    needed = len(prepared) * sum(array.nbytes for array in first.values())
    mapped = needed > _MEMORY_SHARE * free_memory()
    shapes = {name: (len(prepared), *array.shape[1:]) for name, array in first.items()}
    stacked = {name: _storage(shapes[name], array.dtype, mapped=mapped) for name, array in first.items()}
    targets = []
    for position in range(len(prepared)):
        feeds, target = prepared.pair(position)
        for name, array in feeds.items():
            if array.shape[1:] != stacked[name].shape[1:]:
                raise DataError(f"sample {position}: {name!r} has shape {array.shape}, sample 0 {first[name].shape}")
            stacked[name][position] = array[0]
        targets.append(target)
        if position % _REPORT_EVERY == 0:
            progress("reading training samples", position / len(prepared))
    return stacked, _target_array(targets)


def _target_array(targets: list[Any]) -> Array | None:
    import numpy as np

    missing = [position for position, target in enumerate(targets) if target is None]
    if len(missing) == len(targets):
        return None
    if missing:
        raise DataError(
            f"{len(missing)} of {len(targets)} training samples have no label, first sample {missing[0]}",
            next_step="give all of them labels, or none",
        )
    try:
        found = np.asarray(targets)
    except (ValueError, TypeError) as error:
        raise DataError(f"the targets do not stack into one array: {error}") from error
    if found.dtype.kind not in "biuf":
        raise DataError(
            f"the targets have dtype {found.dtype}, expected numbers to train on",
            next_step="give numbers, or None in place of every target: then there are no labels",
        )
    return found


def free_memory() -> int:
    """Return the bytes of memory that are free for use; 4 GiB where the system does not tell."""
    facts = Path("/proc/meminfo")
    if facts.is_file():
        for line in facts.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 * 2**30


def _storage(shape: tuple[int, ...], dtype: Any, *, mapped: bool) -> Array:
    """Return an array to fill: in memory, or over a temporary file that vanishes with it."""
    import numpy as np

    if not mapped:
        return np.empty(shape, dtype)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with tempfile.TemporaryFile() as stream:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            raise NoSpace(
                f"stacking the training samples needs {size} bytes in {tempfile.gettempdir()}: {error.strerror}",
                next_step="free space there, or set TMPDIR",
            ) from error
        return np.memmap(stream, dtype=dtype, mode="w+", shape=shape)
