"""Parity: how far two artifacts disagree on the same inputs."""

from __future__ import annotations

from edgeexport.records.base import Record


class OutputParity(Record):
    """One output. relative_error = max_abs_error / largest |reference|; sqnr_db is capped at 200 for equal tensors."""

    output: str
    max_abs_error: float
    relative_error: float
    sqnr_db: float
    cosine: float


class Divergence(Record):
    """The first tensor, in graph order, whose disagreement exceeds the tolerance, and the node that makes it."""

    tensor: str
    node: str
    op: str
    sqnr_db: float


class Parity(Record):
    """Reference against candidate over `samples` inputs; `holds`: the gate's tolerance is met; `reason`: why not."""

    reference: str
    candidate: str
    samples: int
    outputs: tuple[OutputParity, ...]
    holds: bool
    reason: str = ""
    first_divergence: Divergence | None = None

    def worst_sqnr_db(self) -> float:
        """Return the lowest SQNR over the outputs, in dB."""
        return min(output.sqnr_db for output in self.outputs)
