"""QuantizationPlan: every quantization point with its numbers. Judged once, printed, stored, then just applied."""

from __future__ import annotations

from edgeexport.records.base import Record
from edgeexport.records.target import NumberFormat


class Point(Record):
    """One activation tensor: real = (q - zero_point) * scale, q of `dtype`."""

    dtype: str
    scale: float
    zero_point: int


class WeightPoint(Record):
    """One weight: a scale and zero point for each index along `axis`, or single ones when `axis` is None."""

    dtype: str
    axis: int | None
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]


class QuantizationPlan(Record):
    """All points of one model. `keep_float` are nodes left in float, name -> reason."""

    model_digest: str
    numbers: NumberFormat
    method: str
    activations: dict[str, Point]
    weights: dict[str, WeightPoint]
    keep_float: dict[str, str] = {}
