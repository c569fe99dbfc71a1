"""What export and clean-up did: which route was kept and why, and what each clean-up changed."""

from __future__ import annotations

from edgeexport.records.base import Record
from edgeexport.records.parity import Parity


class ExportRecord(Record):
    """An export that agrees with the network. exporter: the route that was kept. parity: file against network.

    notes: one sentence for each route that was tried before and rejected, with its reason.
    """

    exporter: str
    opset: int
    parity: Parity
    notes: tuple[str, ...] = ()


class CleanStep(Record):
    """One clean-up: how many nodes there were before and after, and why it was left out if it was."""

    name: str
    nodes_before: int
    nodes_after: int
    left_out: str = ""


class CleanRecord(Record):
    """All clean-ups in the order in which they ran."""

    steps: tuple[CleanStep, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Return one sentence for each clean-up that removed nodes or was left out."""
        told = (_tell(step) for step in self.steps)
        return tuple(sentence for sentence in told if sentence)


def _tell(step: CleanStep) -> str:
    if step.left_out:
        return f"clean-up {step.name!r} was left out: {step.left_out}"
    removed = step.nodes_before - step.nodes_after
    return f"clean-up {step.name!r}: {step.nodes_before} nodes became {step.nodes_after}" if removed else ""
