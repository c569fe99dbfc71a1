"""Half: what a model in half precision (IEEE 754 binary16) can hold, and how near it comes to the edge."""

from __future__ import annotations

from edgeexport.records.base import Record

LARGEST_HALF = 65504.0
LEAST_NORMAL_HALF = 2.0**-14


class Half(Record):
    """An fp16 model, made from the fp32 one of `model_digest`.

    tensor, largest: the float tensor with the largest magnitude over `samples` samples.
    headroom: the factor by which values may grow beyond it.
    subnormal_share: share of the weights that are not zero but below 2^-14, where fp16 has fewer than 11 bits.
    """

    model_digest: str
    samples: int
    tensor: str
    largest: float
    headroom: float
    subnormal_share: float
