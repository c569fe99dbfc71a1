"""Room: which tensors of a model can be held at once under a limit of memory.

The rule: sizes are measured, by running the model, whenever a sample comes whose shapes no sample before it covered;
memory is the resident set of this process, which is what a user sees and what a system kills for.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgeexport.errors import MachineError
from edgeexport.quantization.histogram import HALF
from edgeexport.quantization.observe import sizes
from edgeexport.runtimes.protocol import Feeds

if TYPE_CHECKING:
    from onnx import ModelProto

_BYTES_A_VALUE = 4
_BYTES_A_HISTOGRAM = 2 * HALF * 8
# What the model holds of its own tensors while it runs, in sizes of the largest one that is looked at.
_WORKING_TENSORS = 4
# While a session is opened: the exposed model, its bytes, the session's own weights and those packed for its kernels.
_WEIGHT_COPIES = 4

Shapes = dict[str, tuple[int, ...]]


@dataclass
class Room:
    """The memory that tensors may take in all, and what each takes on the largest samples so far."""

    model: ModelProto
    names: tuple[str, ...]
    limit_mb: int | None
    bytes_of: dict[str, int] = field(default_factory=dict)
    _measured: list[Shapes] = field(default_factory=list)
    _free: int = 0

    def holds(self, group: Sequence[str], feeds: Feeds) -> bool:
        """Say whether these tensors may be held at once on this sample.

        Raises MachineError where the limit does not even leave room for one of them.
        """
        if self.limit_mb is None or not self.names:
            return True
        shapes = {name: value.shape for name, value in feeds.items()}
        if not any(_covers(measured, shapes) for measured in self._measured):
            self._measure(feeds)
            self._measured.append(shapes)
        return len(self.group(group)) == len(group)

    def group(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return as many of these tensors as may be held at once, from the first on; all while nothing is measured."""
        if not self._measured:
            return tuple(names)
        left = self._free - _WORKING_TENSORS * max(self.bytes_of.values())
        chosen: list[str] = []
        for name in names:
            left -= self.bytes_of[name]
            if left < 0 and chosen:
                return tuple(chosen)
            if left < 0:
                self._refuse(left)
            chosen.append(name)
        return tuple(chosen)

    def _measure(self, feeds: Feeds) -> None:
        for name, count in sizes(self.model, self.names, feeds=feeds).items():
            self.bytes_of[name] = max(self.bytes_of.get(name, 0), count * _BYTES_A_VALUE)
        if not self._measured:
            weights = _WEIGHT_COPIES * self.model.ByteSize()
            kept = len(self.names) * _BYTES_A_HISTOGRAM
            self._free = (self.limit_mb or 0) * 1_000_000 - resident() - weights - kept

    def _refuse(self, left: int) -> None:
        needed = (self.limit_mb or 0) + (-left + 999_999) // 1_000_000
        raise MachineError(
            f"calibrating under memory_limit_mb = {self.limit_mb} leaves no room for a single tensor:"
            f" this process with the model takes {resident() / 1e6:.0f} MB already",
            next_step=f"allow at least {needed} MB, or calibrate in a process of its own",
        )


def resident() -> int:
    """Return the bytes of memory that this process holds now; 0 where the system does not tell.

    What the C library keeps of memory that was freed is given back first, or it would count as held.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    facts = Path("/proc/self/status")
    if not facts.is_file():
        return 0
    lines = facts.read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def _covers(measured: Shapes, shapes: Shapes) -> bool:
    """Whether no axis is longer than it was on a sample that was measured."""
    return all(
        len(measured[name]) == len(shape) and all(map(int.__le__, shape, measured[name]))
        for name, shape in shapes.items()
    )
