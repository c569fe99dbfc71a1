"""Emulation: what an emulated CPU computed, how many instructions it took, and what it was emulated with.

The rule: there are no times here. Instructions are not time: no caches, no issue width; they compare variants of one
model on one preset.
"""

from __future__ import annotations

from edgeexport.records.base import Record
from edgeexport.records.parity import OutputParity


class Installed(Record):
    """One installation of the emulated machines. recipe: digest of what was asked for, the host's versions included.

    packages: file name -> digest of every Debian package and wheel. files: path -> digest of every file (of a link:
    where it points). counts_missing: why instructions cannot be counted, empty when they can.
    """

    recipe: str
    packages: dict[str, str]
    files: dict[str, str]
    counts_missing: str = ""


class InstructionCounts(Record):
    """Arm instructions of one inference: the least of `inferences` after two warm-ups, on the thread that calls.

    simd: those that compute in, load or store vector registers, the next two included. multiply_accumulate: of vectors
    and floats. dot_product: dot products and matrix multiply-accumulates (SDOT, USDOT, SMMLA, BFMMLA, ...); the two do
    not overlap. deviation: largest (count - least) / least of `total` among the inferences.
    """

    total: int
    simd: int
    multiply_accumulate: int
    dot_product: int
    loads: int
    stores: int
    inferences: int
    deviation: float


class EmulatedRun(Record):
    """A file on one preset against the host. `holds` is False with the `reason`; counts_missing: why there are none."""

    device: str
    cpu: str
    runtime_version: str
    holds: bool
    reason: str = ""
    outputs: tuple[OutputParity, ...] = ()
    counts: InstructionCounts | None = None
    counts_missing: str = ""


class EmulationRecord(Record):
    """What emulation says of one file for one target. No run means not validated, and `notes` say why.

    holds: no run found a difference; with no runs it says nothing. notes: remarks that are no gate, such as a missed
    fast path or what an old board's runtime makes of the file.
    """

    target: str
    artifact: str
    holds: bool
    reason: str = ""
    runs: tuple[EmulatedRun, ...] = ()
    notes: tuple[str, ...] = ()
