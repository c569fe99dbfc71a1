"""The order in which forms are tried for a target, and what a failure asks for next.

The rule: candidates come best first, lazily: reduced forms of the smallest rung, its fp32 form, then the rung below.
The source itself in fp32 is the last, so there is always something to fall back on. A remedy is tried only when the
form before it failed in the way that the remedy is for.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import Literal, TypeAlias

from edgeexport.pipeline.encoders import half_form, is_encoder, linear_forms
from edgeexport.pipeline.forms import Static, static_form
from edgeexport.pipeline.lower import Candidate, Form, Lane, candidate, fp32_candidate
from edgeexport.pipeline.repairing import repaired
from edgeexport.pipeline.torch_rungs import TorchRung
from edgeexport.records.recipe import Quantize
from edgeexport.records.run import Rung

# Why a form did not ship: it could not be built, lost too much, was too slow, or missed another limit.
Fault = Literal["unbuilt", "accuracy", "speed", "other"]
Climb: TypeAlias = "Generator[Candidate | Rung, None, Fault]"


def candidates(lane: Lane, standing: tuple[TorchRung, ...]) -> Iterator[Candidate | Rung]:
    """Yield what could ship on a target, best first, gates held or not; of what cannot be built, just the row.

    Whoever asks for the next one has refused the one before, and has left its verdict in `lane.refused`.
    """
    step = next((step for step in lane.road.recipe.step if isinstance(step, Quantize)), None)
    for rung in reversed(standing):
        if step is not None:
            yield from _reduced(lane, rung, step=step)
        yield fp32_candidate(lane, rung)


def _reduced(lane: Lane, rung: TorchRung, *, step: Quantize) -> Iterator[Candidate | Rung]:
    """Yield the reduced forms of one rung: static int8 and its remedies, those of linear layers, float16."""
    if is_encoder(rung):
        yield from _each(lane, linear_forms(lane, rung))
    fault = yield from _static_int8(lane, rung, step=step)
    if not is_encoder(rung) and fault in {"unbuilt", "accuracy"}:
        yield from _each(lane, linear_forms(lane, rung))
    yield from _each(lane, half_form(lane, rung))


def _static_int8(lane: Lane, rung: TorchRung, *, step: Quantize) -> Climb:
    """Yield the static int8 forms; return how the last one failed."""
    found: list[Candidate] = []
    fault = yield from _tried(lane, _plain(lane, rung, step=step), found=found)
    if fault == "speed":
        yield from _tried(lane, _faster(lane, rung, step=step, slow=found[-1]), found=found)
    return fault


def _each(lane: Lane, forms: Iterable[Form]) -> Iterator[Candidate | Rung]:
    """Yield all forms, however the one before failed: they differ in every respect."""
    for form in forms:
        yield candidate(lane, form)


def _tried(lane: Lane, forms: Iterable[Form], *, found: list[Candidate]) -> Climb:
    """Yield forms one by one as long as they fail by losing too much; return how the last one failed."""
    fault: Fault = "unbuilt"
    for form in forms:
        made = candidate(lane, form)
        yield made
        fault = _fault(lane, made)
        if isinstance(made, Candidate):
            found.append(made)
        if fault != "accuracy":
            break
    return fault


def _fault(lane: Lane, refused: Candidate | Rung) -> Fault:
    if isinstance(refused, Rung):
        return "unbuilt"
    verdict = lane.refused.get(refused.row.name)
    if verdict is None:
        return "accuracy"
    failing = {limit.limit for limit in verdict.limits if limit.state == "fails"}
    if "max_drop" in failing:
        return "accuracy"
    return "speed" if failing & {"never_slower", "max_latency_ms"} else "other"


def _plain(lane: Lane, rung: TorchRung, *, step: Quantize) -> Iterator[Form]:
    """The rung's own weights, by one way of choosing ranges after the other."""
    for method in step.methods:
        yield static_form(lane, rung, choice=_static(step, method), name=f"{rung.name} int8 {method}")


def _faster(lane: Lane, rung: TorchRung, *, step: Quantize, slow: Candidate) -> Iterator[Form]:
    """The same form with the edits that are measured faster."""
    plan = slow.quantized.record.plan if slow.quantized else None
    choice = _static(step, plan.method if plan else step.methods[0])
    yield Form(f"{slow.row.name} repaired", rung, lambda: repaired(lane, slow, choice=choice, of=rung))


def _static(step: Quantize, method: str) -> Static:
    return Static(method, dict.fromkeys(step.keep_float, "asked for in the recipe"))
