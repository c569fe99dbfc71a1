"""The order in which forms are tried for a target, and what a failure asks for next.

The rule: candidates come best first, lazily: reduced forms of the smallest rung, its fp32 form, then the rung below.
The source itself in fp32 is the last, so there is always something to fall back on. A remedy is tried only when the
form before it failed in the way that the remedy is for.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeexport.pipeline.forms import Static, static_form
from edgeexport.pipeline.lower import Candidate, Form, Lane, candidate, fp32_candidate
from edgeexport.pipeline.torch_rungs import TorchRung
from edgeexport.records.recipe import Quantize
from edgeexport.records.run import Rung


def candidates(lane: Lane, standing: tuple[TorchRung, ...]) -> Iterator[Candidate | Rung]:
    """Yield what could ship on a target, best first, gates held or not; of what cannot be built, just the row."""
    step = next((step for step in lane.road.recipe.step if isinstance(step, Quantize)), None)
    for rung in reversed(standing):
        if step is not None:
            yield from _reduced(lane, rung, step=step)
        yield fp32_candidate(lane, rung)


def _reduced(lane: Lane, rung: TorchRung, *, step: Quantize) -> Iterator[Candidate | Rung]:
    """Try the calibration methods in order; stop at the first whose gates hold, or when int8 cannot be built."""
    for form in _plain(lane, rung, step=step):
        found = candidate(lane, form)
        yield found
        if isinstance(found, Rung) or found.stands:
            return


def _plain(lane: Lane, rung: TorchRung, *, step: Quantize) -> Iterator[Form]:
    asked = dict.fromkeys(step.keep_float, "asked for in the recipe")
    for method in step.methods:
        yield static_form(lane, rung, choice=Static(method, asked), name=f"{rung.name} int8 {method}")
