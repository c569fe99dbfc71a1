"""Ranges: what calibration saw, tensor by tensor."""

from __future__ import annotations

from edgeexport.records.base import Record


class Range(Record):
    """The interval that a tensor's values are mapped from, and the extremes that were really seen."""

    low: float
    high: float
    seen_low: float
    seen_high: float


class Ranges(Record):
    """Tensor name -> range, by which method, over which samples (digest and count), for which model (digest)."""

    method: str
    model_digest: str
    samples_digest: str
    count: int
    tensors: dict[str, Range]
