"""Check: what is wrong with samples that are about to calibrate a model, seen from the samples alone.

The rule: one pass, nothing kept but digests and sums. Each finding says what was seen and what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeexport.data.arrays import Arrays, sample_digest
from edgeexport.errors import DataError
from edgeexport.progress import Progress, silent
from edgeexport.records.artifact import Signature, TensorSpec
from edgeexport.records.data_check import DataCheck, Finding, InputFacts

if TYPE_CHECKING:
    import numpy as np

# A network's input is expected to be about 0 ± 1 unless the model says otherwise; beyond these it is not.
_FAR, _NARROW = 4.0, 1 / 8
_CHANNELS = (1, 3, 4)
# Neighbours in a row that differ this much more than every third value: channels are interleaved there.
_INTERLEAVED = 0.7
_SHOWN = 5


@dataclass
class _Sums:
    """Running sums over one input."""

    low: float = math.inf
    high: float = -math.inf
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    next_one: float = 0.0
    third_one: float = 0.0
    swapped: list[int] = field(default_factory=list)
    constant: list[int] = field(default_factory=list)

    def add(self, value: np.ndarray[Any, Any], spec: TensorSpec, *, position: int) -> None:
        """Take in one sample's array."""
        import numpy as np

        low, high = float(value.min()), float(value.max())
        self.low, self.high, self.count = min(self.low, low), max(self.high, high), self.count + value.size
        self.total += float(value.sum(dtype=np.float64))
        self.squares += float(np.square(value, dtype=np.float64).sum())
        if low == high and value.size > 1:
            self.constant.append(position)
        if not _is_picture(spec) or value.ndim != 4:
            return
        if value.shape[3] in _CHANNELS and value.shape[1] not in _CHANNELS:
            self.swapped.append(position)
        elif value.shape[3] > 8:
            self.next_one += float(np.abs(np.diff(value, axis=3)).mean())
            self.third_one += float(np.abs(value[..., 3:] - value[..., :-3]).mean())

    def facts(self) -> InputFacts:
        """Return what the sums say."""
        mean = self.total / self.count
        return InputFacts(self.low, self.high, mean, math.sqrt(max(0.0, self.squares / self.count - mean**2)))


def check_samples(
    samples: Iterable[Arrays],
    *,
    signature: Signature,
    normalized: bool = False,
    expected: Mapping[str, tuple[float, float]] | None = None,
    progress: Progress = silent,
) -> DataCheck:
    """Look at samples in a model's signature, batch axis first, and say what is wrong with them.

    normalized: mean and std are declared, so that values should be spread around zero. expected: input -> (mean,
    standard deviation) that the model itself was made for, where it says so. Raises DataError for no samples.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    sums = {name: _Sums() for name in specs}
    first_of: dict[str, int] = {}
    twins: list[tuple[int, int]] = []
    count = 0
    for position, feeds in enumerate(samples):
        count = position + 1
        first = first_of.setdefault(sample_digest(feeds), position)
        twins += [(position, first)] if first != position else []
        for name, value in feeds.items():
            if value.size:
                sums[name].add(value, specs[name], position=position)
        progress(f"check: sample {count}", None)
    if not count:
        raise DataError("there are no calibration samples", next_step="give at least one; 100 to 500 are usual")
    facts = {name: each.facts() for name, each in sums.items() if each.count}
    findings = [*_duplicates(twins)]
    for name, each in facts.items():
        findings += _of_values(name, sums[name])
        if _is_picture(specs[name]) and not sums[name].swapped:
            findings += _normalization(name, each, normalized=normalized, expected=(expected or {}).get(name))
    return DataCheck(count, facts, tuple(findings))


def _is_picture(spec: TensorSpec) -> bool:
    return spec.layout == "NCHW" and spec.dtype.startswith("float")


def _duplicates(twins: list[tuple[int, int]]) -> Iterator[Finding]:
    if twins:
        shown = ", ".join(f"{later} = {first}" for later, first in twins[:_SHOWN])
        text = f"{len(twins)} samples are exact copies of earlier ones ({shown}): they add nothing to the ranges"
        yield Finding("duplicate", "", text, tuple(later for later, _ in twins[:_SHOWN]), len(twins))


def _of_values(name: str, sums: _Sums) -> Iterator[Finding]:
    """What single samples, or the order of their values, show."""
    if sums.constant:
        text = f"{len(sums.constant)} samples hold one and the same value everywhere: blank or unreadable input?"
        yield Finding("constant", name, text, tuple(sums.constant[:_SHOWN]), len(sums.constant))
    if sums.swapped:
        text = "channels come last in the samples, the model takes them first: set `preprocess.layout`, or transpose"
        yield Finding("layout", name, text, tuple(sums.swapped[:_SHOWN]), len(sums.swapped))
    elif sums.next_one and sums.third_one < _INTERLEAVED * sums.next_one:
        text = (
            "every third value along a row is closer than the next one: channels seem interleaved,"
            " as when (height, width, 3) is reshaped to (3, height, width) where it must be transposed"
        )
        yield Finding("layout", name, text)


def _normalization(
    name: str, facts: InputFacts, *, normalized: bool, expected: tuple[float, float] | None
) -> Iterator[Finding]:
    mean, std = expected or (0.0, 1.0)
    seen = f"values {facts.low:.3g} to {facts.high:.3g}, mean {facts.mean:.3g}, standard deviation {facts.std:.3g}"
    origin = "the model's own first layers expect" if expected else "networks expect about"
    wanted = f"{origin} mean {mean:.3g}, standard deviation {std:.3g}"
    far = abs(facts.mean - mean) > _FAR * std or facts.std > _FAR * std
    if far or facts.std < _NARROW * std:
        raw = not expected and facts.low >= 0 and _FAR < facts.high <= 255
        hint = "; they look like raw 8-bit pixels: declare scale, mean and std in [preprocess]" if raw else ""
        yield Finding("normalization", name, f"{seen}; {wanted}{hint}")
    elif normalized and facts.low >= 0.0 and facts.high <= 1.0:
        yield Finding("normalization", name, f"{seen}: all within 0 and 1, though mean and std are declared")
