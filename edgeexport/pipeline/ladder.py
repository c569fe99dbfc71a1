"""The order in which forms are tried for a target, and what a failure asks for next.

The rule: candidates come best first, lazily: reduced forms of the smallest rung, its fp32 form, then the rung below.
The source itself in fp32 is the last, so there is always something to fall back on. A remedy is tried only when the
form before it failed in the way that the remedy is for.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from edgeexport.pipeline.encoders import half_form, is_encoder, linear_forms
from edgeexport.pipeline.forms import Static
from edgeexport.pipeline.lower import Candidate, Form, Lane, candidate, fp32_candidate
from edgeexport.pipeline.mixing import float_layers
from edgeexport.pipeline.qat import may_train, trained_form
from edgeexport.pipeline.repairing import repaired
from edgeexport.pipeline.reweighting import WAYS, Way, static_int8
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
    step = lane.road.recipe.quantize
    for rung in reversed(standing):
        if step is not None:
            yield from _reduced(lane, rung, step=step)
        yield fp32_candidate(lane, rung)


def _reduced(lane: Lane, rung: TorchRung, *, step: Quantize) -> Iterator[Candidate | Rung]:
    """Yield the reduced forms of one rung: static int8 and its remedies, those of linear layers, float16."""
    linear_first = is_encoder(rung) and step.qat != "always"
    if linear_first:
        yield from _each(lane, linear_forms(lane, rung))
    fault = yield from _static_int8(lane, rung, step=step)
    if not linear_first and fault in {"unbuilt", "accuracy"}:
        yield from _each(lane, linear_forms(lane, rung))
    yield from _each(lane, half_form(lane, rung))


@dataclass(frozen=True)
class _Attempt:
    """A static int8 form: what is done to the weights, how ranges are chosen, how many layers are left in float."""

    way: Way
    choice: Static
    floats: int = 0

    def form(self, lane: Lane, rung: TorchRung) -> Form:
        """The form, named by what is done."""
        left = f"{self.floats} in float" if self.floats else ""
        name = " ".join(filter(None, [rung.name, "int8", self.way, self.choice.method, left]))
        return Form(name, rung, lambda: static_int8(lane, rung, way=self.way, choice=self.choice))


Found: TypeAlias = "list[tuple[_Attempt, Candidate]]"


def _static_int8(lane: Lane, rung: TorchRung, *, step: Quantize) -> Climb:
    """Yield the static int8 forms; return how the last one failed."""
    found: Found = []
    if step.qat == "always":
        fault = yield from _taught(lane, rung, step=step, found=found)
        if fault not in {"accuracy", "unbuilt"}:
            return fault
    if step.improve == "always":
        fault = yield from _contest(lane, rung, step=step, found=found)
    else:
        fault = yield from _tried(lane, rung, attempts=_plain(step), found=found)
        if fault == "accuracy" and step.improve != "never":
            fault = yield from _tried(lane, rung, attempts=_better(step, found), found=found)
    if fault == "accuracy" and found:
        fault = yield from _mixed(lane, rung, found=found)
    if step.qat == "if-needed" and may_train(lane, step) and _lost(lane, found, fault=fault):
        fault = yield from _taught(lane, rung, step=step, found=_lost(lane, found, fault=fault))
    too_slow = [tried for tried in found if _fault(lane, tried[1]) == "speed"]
    if too_slow:
        attempt, slow = min(too_slow, key=_merit)
        form = Form(f"{slow.row.name} repaired", rung, lambda: repaired(lane, slow, choice=attempt.choice, of=rung))
        yield candidate(lane, form)
    return fault


def _each(lane: Lane, forms: Iterable[Form]) -> Iterator[Candidate | Rung]:
    """Yield all forms, however the one before failed: they differ in every respect."""
    for form in forms:
        yield candidate(lane, form)


def _tried(lane: Lane, rung: TorchRung, *, attempts: Iterable[_Attempt], found: Found) -> Climb:
    """Yield attempts one by one as long as they fail by losing too much; return how the last one that was built failed.

    What cannot be built ends them only where nothing was built before.
    """
    fault: Fault = "accuracy" if found else "unbuilt"
    for attempt in attempts:
        made = candidate(lane, attempt.form(lane, rung))
        yield made
        if isinstance(made, Candidate):
            found.append((attempt, made))
            fault = _fault(lane, made)
        if fault != "accuracy":
            break
    return fault


def _lost(lane: Lane, found: Found, *, fault: Fault) -> Found:
    """The forms wholly in integers that lost too much, where nothing helped, or only floats did that cost too much."""
    whole = [tried for tried in found if not tried[0].floats]
    if fault != "accuracy" and len(whole) == len(found):
        return []
    return [tried for tried in whole if _fault(lane, tried[1]) == "accuracy"]


def _taught(lane: Lane, rung: TorchRung, *, step: Quantize, found: Found) -> Climb:
    """Yield the form whose weights are trained for their integers, from the best of `found`; return how it failed."""
    best = min(found, key=_merit)[0] if found else next(_plain(step))
    made = candidate(lane, trained_form(lane, rung, step=step, way=best.way, choice=best.choice))
    yield made
    return _fault(lane, made) if isinstance(made, Candidate) else "accuracy" if found else "unbuilt"


def _contest(lane: Lane, rung: TorchRung, *, step: Quantize, found: Found) -> Climb:
    """Build every form with the layers that can be int8, and yield them by what they lose, least first.

    Return how the best of them failed.
    """
    for attempts in (_plain(step), _better(step, found)):
        for attempt in attempts:
            made = candidate(lane, attempt.form(lane, rung))
            if isinstance(made, Candidate):
                found.append((attempt, made))
            else:
                yield made
    found.sort(key=_merit)
    for _, made in found:
        yield made
    return _fault(lane, found[0][1]) if found else "unbuilt"


def _fault(lane: Lane, refused: Candidate) -> Fault:
    if refused.misfit:  # better numbers do not change the type of its inputs
        return "other"
    verdict = lane.refused.get(refused.row.name)
    if verdict is None:
        return "accuracy"
    failing = {limit.limit for limit in verdict.limits if limit.state == "fails"}
    if "max_drop" in failing:
        return "accuracy"
    return "speed" if failing & {"never_slower", "max_latency_ms", "speedup"} else "other"


def _plain(step: Quantize) -> Iterator[_Attempt]:
    """The rung's own weights, by one way of choosing ranges after the other."""
    asked = dict.fromkeys(step.keep_float, "asked for in the recipe")
    for method in step.methods:
        yield _Attempt("", Static(method, asked))


def _better(step: Quantize, found: Found) -> Iterator[_Attempt]:
    """Weights changed to lose less: rounded by what they do, then balanced between layers before that."""
    choice = min(found, key=_merit)[0].choice if found else next(_plain(step)).choice
    for way in WAYS if step.improve == "always" else WAYS[-2:]:
        yield _Attempt(way, choice)


def _mixed(lane: Lane, rung: TorchRung, *, found: Found) -> Climb:
    """Yield the best form so far with ever more layers in float, those first that lose most for what int8 wins there.

    The number doubles until the gates hold, and then goes back to the least with which they do: layers in float take
    time. What a layer loses is looked up with the rung's own weights: changed ones make sense in integers only.
    """
    best, _ = min(found, key=_merit)
    plain = min((pair for pair in found if not pair[0].way), key=_merit, default=None)
    layers = float_layers(lane, plain[1]) if plain is not None else []
    doubling = {1 << step for step in range(len(layers).bit_length())}
    fault: Fault = "accuracy"
    fewer = 0
    for count in sorted({*doubling, len(layers)} if layers else ()):
        tries = [_left(best, layers[:number]) for number in range(fewer + 1, count + 1)]
        attempt, made = yield from _fewest(lane, rung, tries=tries)
        yield made
        if isinstance(made, Candidate):
            found.append((attempt, made))
            fault = _fault(lane, made)
        if fault != "accuracy":
            break
        fewer = count
    return fault


def _left(best: _Attempt, layers: list[dict[str, str]]) -> _Attempt:
    """The form with these layers in float."""
    left = {name: reason for layer in layers for name, reason in layer.items()}
    choice = Static(best.choice.method, {**best.choice.keep_float, **left})
    return replace(best, choice=choice, floats=len(layers))


def _fewest(
    lane: Lane, rung: TorchRung, *, tries: list[_Attempt]
) -> Generator[Candidate | Rung, None, tuple[_Attempt, Candidate | Rung]]:
    """Build the last attempt; where its gates hold, return the first with which they do, by bisection.

    What fails on the way is yielded: it is a row of the ladder.
    """
    low, high = -1, len(tries) - 1
    best = candidate(lane, tries[high].form(lane, rung))
    while isinstance(best, Candidate) and best.stands and high - low > 1:
        middle = (low + high) // 2
        made = candidate(lane, tries[middle].form(lane, rung))
        if isinstance(made, Candidate) and made.stands:
            best, high = made, middle
        else:
            yield made
            low = middle
    return tries[high], best


def _merit(tried: tuple[_Attempt, Candidate]) -> tuple[bool, float, float]:
    """What a form loses on the selection split, to sort by: gates first, then the metric, then SQNR against float."""
    row = tried[1].row
    lost = row.drop.value if row.drop else math.inf
    return not tried[1].stands, lost, -(row.parity.worst_sqnr_db() if row.parity else 0.0)
