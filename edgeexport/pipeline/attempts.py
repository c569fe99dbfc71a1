"""Attempts: a distil or prune step that fails is rolled back with its reason, and the last good network goes on.

The rule: a training that diverges, and what cannot be done to a network that a step made, is the step's failure. A
network that cannot be what the recipe says, samples and user code that fail, and a goal out of reach end the run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgeexport.errors import ConverterFailed, EdgeExportError, ModelError, StepFailed
from edgeexport.records.run import Rung

if TYPE_CHECKING:
    from edgeexport.pipeline.torch_rungs import TorchRung


@contextlib.contextmanager
def attempted() -> Iterator[None]:
    """Raise StepFailed in place of ModelError and ConverterFailed: what is done here is done to a step's network."""
    try:
        yield
    except (ModelError, ConverterFailed) as error:
        raise StepFailed(str(error), next_step=error.next_step) from error


def given_up(name: str, last: TorchRung, *, reason: str, notes: tuple[str, ...] = ()) -> Rung:
    """Return the row of a rung that was not made: it shows the spine that it would have been made from."""
    return Rung(name, "fp32", None, last.spine.record.artifact, "rolled back", reason, notes=notes)


def why(error: EdgeExportError) -> str:
    """Return what a row says of an error: what is wrong, and what to do."""
    return f"{error}; {error.next_step}" if error.next_step else str(error)
