"""Read what the counting plugin wrote: instructions between the marks around each inference.

The rule: two warm-ups are left out, and of the rest the least counts. A log without the marks that the job must have
made is no count.
"""

from __future__ import annotations

from pathlib import Path

from edgeexport.errors import DeviceError
from edgeexport.records.emulation import InstructionCounts

KINDS = ("total", "simd", "multiply_accumulate", "dot_product", "loads", "stores")
WARM_UPS = 2


def read_counts(log: Path, *, inferences: int) -> InstructionCounts:
    """Return the counts of one inference, from a log with marks 2i and 2i + 1 before and after inference i.

    inferences: how many the job made, the warm-ups included. Raises DeviceError.
    """
    each = read_each(log, inferences=inferences)[WARM_UPS:]
    if not each:
        raise DeviceError(
            f"the instruction log has {inferences} inferences, none of them after the {WARM_UPS} warm-ups"
        )
    least = min(each, key=lambda counts: counts["total"])
    most = max(counts["total"] for counts in each)
    return InstructionCounts(**least, inferences=len(each), deviation=most / least["total"] - 1)


def read_each(log: Path, *, inferences: int) -> list[dict[str, int]]:
    """Return the counts of every inference, the first ones included. Raises DeviceError."""
    marks = _marks(log)
    wanted = [range(2 * index, 2 * index + 2) for index in range(inferences)]
    if not inferences or any(mark not in marks for pair in wanted for mark in pair):
        raise DeviceError(f"the instruction log has marks {sorted(marks)}, not two for each of {inferences} inferences")
    return [_between(marks[start], marks[end]) for start, end in wanted]


def _marks(log: Path) -> dict[int, tuple[int, ...]]:
    """Mark -> (thread, counts of that thread so far)."""
    lines = log.read_text(encoding="ascii", errors="replace").splitlines() if log.exists() else []
    rows = [line.split()[1:] for line in lines if line.startswith("mark ")]
    return {int(row[0]): tuple(map(int, row[1:])) for row in rows if len(row) == len(KINDS) + 2}


def _between(before: tuple[int, ...], after: tuple[int, ...]) -> dict[str, int]:
    if before[0] != after[0]:
        raise DeviceError(f"an inference began on thread {before[0]} and ended on thread {after[0]}")
    return {kind: b - a for kind, a, b in zip(KINDS, before[1:], after[1:], strict=True)}
