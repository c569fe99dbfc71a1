"""Calibration: run the fp32 model over samples and note what range each tensor takes.

The rule: memory is flat in the number of samples. What does not fit under a limit is collected in several passes. A NaN
or an infinity, in a sample or inside the model, is an error that names the sample and the tensor, never a range.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeexport import graph
from edgeexport.errors import DataError
from edgeexport.progress import Progress, silent
from edgeexport.quantization.clipping import METHODS, Limits
from edgeexport.quantization.histogram import HALF
from edgeexport.quantization.observe import Observer, check_inputs, observer
from edgeexport.quantization.placement import place, prepared, supported
from edgeexport.quantization.room import Room
from edgeexport.quantization.seen import Seen
from edgeexport.quantization.unfinished import Unfinished
from edgeexport.records.base import digest, file_digest
from edgeexport.records.ranges import Ranges
from edgeexport.runtimes.protocol import Feeds

if TYPE_CHECKING:
    from onnx import ModelProto

# Told after every sample of a pass: how many each of these tensors has taken in, and what they showed.
Told = Callable[[int, Mapping[str, Seen]], None]


def calibrate(  # noqa: PLR0913 # a front door: what is collected, from what, how much memory it may take, where it resumes
    model_path: Path,
    samples: Iterable[Feeds],
    *,
    method: str = "minmax",
    samples_digest: str,
    progress: Progress = silent,
    symmetric: bool = False,
    memory_limit_mb: int | None = None,
    state: Path | None = None,
) -> Ranges:
    """Return the ranges of every tensor that can be a quantization point.

    samples: feeds in the model's signature, any batch size. method: one of METHODS. symmetric: the ranges will serve
    a symmetric number format (which has more points). "minmax" equals onnxruntime's MinMaxCalibrater bit for bit.
    memory_limit_mb: what this process may hold while it calibrates; under a tight one samples are read several times,
    so an iterator that can be read once only is refused then. state: a folder where the work so far is kept every few
    seconds; a call with the same model, method and samples goes on from there, to the same bits.
    Raises DataError for no samples, samples that do not fit, and values that are not finite; MachineError for a limit
    under which not even one tensor fits.
    """
    if method not in METHODS:
        raise DataError(f"unknown calibration method {method!r}", next_step="known: " + ", ".join(METHODS))
    model = graph.load(model_path)
    names = calibration_points(model, symmetric=symmetric)
    model_digest = file_digest(model_path)
    histograms = method != "minmax"
    key = digest([model_digest, samples_digest, "histogram" if histograms else "minmax", HALF])
    room = Room(model, names, memory_limit_mb if histograms else None)
    collection = Collection(room, Samples(samples), Unfinished(state, key, histograms), progress)
    seen = collection.run()
    return Ranges(
        method=method,
        model_digest=model_digest,
        samples_digest=samples_digest,
        count=collection.total,
        tensors={name: item.range(method) for name, item in seen.items() if item.low <= item.high},
    )


def calibration_points(model: ModelProto, *, symmetric: bool = False) -> tuple[str, ...]:
    """Return the tensors that carry a scale when every operator that can run in integers does, in graph order."""
    ready = prepared(model)
    return tuple(place(ready, supported(ready), symmetric=symmetric).activations)


def watch(model: ModelProto, tensors: tuple[str, ...], *, samples: Iterable[Feeds]) -> Iterator[dict[str, Limits]]:
    """Run samples one by one; yield the least and greatest value of each of these tensors that is not empty.

    Raises DataError for samples that do not fit and values that are not finite.
    """
    seen = {name: Seen() for name in tensors}
    looker = observer(model, seen, histograms=False)
    for index, feeds in enumerate(samples):
        looker.look(feeds, where=f"sample {index}")
        yield {name: (item.low, item.high) for name, item in seen.items() if item.low <= item.high}
        for item in seen.values():
            item.low, item.high = math.inf, -math.inf


@dataclass(frozen=True)
class Samples:
    """Feeds that may be read from any one on, or once only."""

    feeds: Iterable[Feeds]

    @property
    def once(self) -> bool:
        """Whether they can be read only once."""
        return isinstance(self.feeds, Iterator)

    @property
    def count(self) -> int | None:
        """How many there are, where that is known beforehand."""
        return len(self.feeds) if isinstance(self.feeds, Sized) else None

    def since(self, start: int) -> Iterator[tuple[int, Feeds]]:
        """Yield (index, feeds) from `start` on; those before it are not read where they can be reached by index."""
        take = getattr(self.feeds, "__getitem__", None)
        if self.count is not None and take is not None:
            return ((index, take(index)) for index in range(start, self.count))
        return itertools.islice(enumerate(self.feeds), start, None)


@dataclass
class Collection:
    """The passes over the samples: each takes as many tensors as fit, from the sample on that they have not seen."""

    room: Room
    samples: Samples
    unfinished: Unfinished
    progress: Progress
    told: Told | None = None
    total: int = -1

    def run(self) -> dict[str, Seen]:
        """Return what every tensor showed in all samples."""
        seen = {name: Seen() for name in self.room.names}
        self.unfinished.restore(seen)
        while (start := min((item.taken for item in seen.values()), default=max(self.total, 0))) != self.total:
            if self.total >= 0 and self.samples.once:
                self._refuse_once(start)
            group = self.room.group([name for name, item in seen.items() if item.taken == start])
            self._pass({name: seen[name] for name in group}, start=start, everything=seen)
        if not self.total:
            raise DataError("there are no calibration samples", next_step="give at least one; 100 to 500 are usual")
        self.unfinished.save(seen)
        return seen

    def _pass(self, group: dict[str, Seen], *, start: int, everything: Mapping[str, Seen]) -> None:
        """Let a group of tensors take in samples from `start` on: to the end, or until they no longer fit at once."""
        looker: Observer | None = None
        count = start
        for index, feeds in self.samples.since(start):
            where = f"calibration sample {index}"
            check_inputs(feeds, where=where)
            if not self.room.holds(tuple(group), feeds):
                self._refuse_once(index)
                return
            if looker is None:
                looker = observer(self.room.model, group, histograms=self.unfinished.histograms)
            looker.look(feeds, where=where)
            count = index + 1
            for item in group.values():
                item.taken = count
            self._tell(count, group, everything=everything)
        self.total = count

    def _tell(self, count: int, group: Mapping[str, Seen], *, everything: Mapping[str, Seen]) -> None:
        if self.told is not None:
            self.told(count, group)
        self.unfinished.save_when_due(everything)
        total = self.samples.count
        done = (
            sum(item.taken for item in everything.values()) / (total * len(everything))
            if total and everything
            else None
        )
        self.progress(f"calibrate: sample {count}", done)

    def _refuse_once(self, index: int) -> None:
        if self.samples.once:
            raise DataError(
                f"calibration sample {index}: its tensors do not fit into memory_limit_mb = {self.room.limit_mb} at"
                " once, so samples must be read several times, but they come from an iterator that can be read once",
                next_step="give a list or another sequence of samples, or allow more memory",
            )
