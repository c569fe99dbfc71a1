"""What is done to encoders (transformers) on their way to int8: rewritings of the float model, forms, the choice."""

from __future__ import annotations

from typing import Literal

from edgeexport.records.base import Record

EncoderForm = Literal["static", "dynamic", "blockwise"]


class Smoothing(Record):
    """Scales moved from activations into weights. smoothed: tensor -> nodes that read it; left: tensor -> why not."""

    model_digest: str
    strength: float
    smoothed: dict[str, tuple[str, ...]]
    left: dict[str, str] = {}


class SplitTensor(Record):
    """One tensor whose `channels` leave [low, high], the range of all the others; what is beyond is computed apart."""

    channels: tuple[int, ...]
    low: float
    high: float
    seen_low: float
    seen_high: float


class OutlierSplit(Record):
    """Tensors that were split so that int8 steps fit their usual channels, not their few giant ones."""

    model_digest: str
    tensors: dict[str, SplitTensor]


class EncoderPlan(Record):
    """What of an encoder runs or is stored in int8, node -> how; and what stays in float, node -> reason."""

    model_digest: str
    form: EncoderForm
    quantized: dict[str, str]
    keep_float: dict[str, str] = {}
    floor: str = ""


class FormTrial(Record):
    """One form that was tried: the rewritings before it, how close its outputs are to float, and what it costs.

    cosine, sqnr_db: over all values of the worst output. path: file name in the folder of the trials.
    time_ratio: against fp32, None where it was not measured.
    """

    form: EncoderForm
    rewritings: tuple[str, ...]
    cosine: float
    sqnr_db: float
    bytes: int
    time_ratio: float | None = None
    path: str = ""


class FormChoice(Record):
    """All forms of one encoder, best first, with the reason in words; failed: form -> why it could not be made.

    untimed: form -> why its time could not be measured; then no form is ordered by its time.
    """

    model_digest: str
    samples: int
    trials: tuple[FormTrial, ...]
    reason: str
    failed: dict[str, str] = {}
    untimed: dict[str, str] = {}
