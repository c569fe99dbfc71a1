"""Sensitivity: what each layer costs in accuracy when it alone is int8, and what int8 wins there."""

from __future__ import annotations

from typing import Literal

from edgeexport.records.base import Record


class LayerSensitivity(Record):
    """Nodes that become int8 together. sqnr_db: of the worst output, with these alone in int8. won: see Sensitivity.

    metric_drop: in the metric's unit, None where no metric was asked for.
    """

    nodes: tuple[str, ...]
    op: str
    sqnr_db: float
    won: float
    metric_drop: float | None = None

    @property
    def loss(self) -> float:
        """What is lost: the metric's drop, or else noise as a share of the signal's power."""
        return self.metric_drop if self.metric_drop is not None else float(10.0 ** (-self.sqnr_db / 10.0))


class Sensitivity(Record):
    """Every int8 layer of a plan, in graph order. cost says what `won` is: measured milliseconds, or millions of MACs.

    The latter is a prediction, for targets whose CPU is not at hand.
    """

    model_digest: str
    samples: int
    cost: Literal["measured ms", "predicted MMACs"]
    layers: tuple[LayerSensitivity, ...]
