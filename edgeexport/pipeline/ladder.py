"""The order in which forms are tried for a target, and what a failure asks for next.

The rule: candidates come best first, lazily: reduced forms of the smallest rung, its fp32 form, then the rung below.
The source itself in fp32 is the last, so there is always something to fall back on. A remedy is tried only when the
form before it failed in the way that the remedy is for.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from typing import Literal, TypeAlias

from edgeexport.pipeline.encoders import half_form, is_encoder, linear_forms
from edgeexport.pipeline.forms import Static, static_form
from edgeexport.pipeline.lower import Built, Candidate, Form, Lane, candidate, fp32_candidate
from edgeexport.pipeline.repairing import repaired
from edgeexport.pipeline.reweighting import Refinement, equalized, refined
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
    if step.improve == "always":
        return (yield from _contest(lane, rung, step=step))
    fault = yield from _tried(lane, _plain(lane, rung, step=step), found=found)
    if fault == "accuracy" and step.improve != "never":
        fault = yield from _tried(lane, _better(lane, rung, step=step, found=found), found=found)
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


def _better(lane: Lane, rung: TorchRung, *, step: Quantize, found: list[Candidate]) -> Iterator[Form]:
    """Weights changed to lose less: balanced, then rounded by what they do, on top of what was best so far."""
    choice = _static(step, _method(found) or step.methods[0])
    balanced = f"{rung.name} int8 equalized {choice.method}"
    yield Form(balanced, rung, lambda: _from_equalized(lane, rung, choice=choice, how="bias-corrected"))
    if found and min(found, key=merit).row.name == balanced:
        name = f"{rung.name} int8 equalized rounded {choice.method}"
        yield Form(name, rung, lambda: _from_equalized(lane, rung, choice=choice, how="rounded"))
    else:
        name = f"{rung.name} int8 rounded {choice.method}"
        yield Form(name, rung, lambda: refined(lane, rung, choice=choice, how="rounded", of=rung))


def _from_equalized(lane: Lane, rung: TorchRung, *, choice: Static, how: Refinement) -> Built:
    """Equalize, then refine: in two stages, since ranges are collected in between."""
    built = refined(lane, equalized(lane, rung), choice=choice, how=how, of=rung)
    return replace(built, before=(rung.spine.record.artifact, *built.before))


def _contest(lane: Lane, rung: TorchRung, *, step: Quantize) -> Climb:
    """Build every static form, and yield them by what they lose on the selection split, least first."""
    found: list[Candidate] = []
    fault: Fault = "unbuilt"
    for forms in (_plain(lane, rung, step=step), _better(lane, rung, step=step, found=found)):
        for made in (candidate(lane, form) for form in forms):
            if isinstance(made, Candidate):
                found.append(made)
            else:
                yield made
    for made in sorted(found, key=merit):
        yield made
        fault = _fault(lane, made)
    return fault


def merit(tried: Candidate) -> tuple[bool, float, float]:
    """What a form loses on the selection split, to sort by: gates first, then the metric, then SQNR against float."""
    row = tried.row
    lost = row.drop.value if row.drop else math.inf
    return not tried.stands, lost, -(row.parity.worst_sqnr_db() if row.parity else 0.0)


def _method(found: list[Candidate]) -> str:
    """The calibration method of the form that lost least; empty when there is none."""
    best = min(found, key=merit, default=None)
    plan = best.quantized.record.plan if best is not None and best.quantized is not None else None
    return plan.method if plan else ""


def _static(step: Quantize, method: str) -> Static:
    return Static(method, dict.fromkeys(step.keep_float, "asked for in the recipe"))
