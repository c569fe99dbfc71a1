"""Equalized: which channels of a float model were given other sizes, and which were left and why."""

from __future__ import annotations

from edgeexport.records.base import Record


class Scaled(Record):
    """One set of tensors whose channels were multiplied by factors between `least` and `largest`.

    gain_db: how much less rounding noise the set and the weights around it make, as predicted, in dB.
    """

    channels: int
    least: float
    largest: float
    gain_db: float


class Equalized(Record):
    """What `equalize` did, by the first tensor of each set: `changed` → factors, `left` → the reason it stayed.

    source_digest: of the model that was given; model_digest: of the one that was written.
    """

    source_digest: str
    model_digest: str
    changed: dict[str, Scaled]
    left: dict[str, str]
