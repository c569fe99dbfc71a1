"""The gate: new figures against those of a stored record, for CI.

The rule: only like is compared with like; what differs is named. A regression is one that the noise does not explain,
and where the noise is larger than the answer the gate says so and does not pass.
"""

from __future__ import annotations

import math

import msgspec

from edgeexport.errors import RequestError
from edgeexport.records.benchmark import BenchRecord, Entry, Gated
from edgeexport.records.measurement import Conditions, Interval
from edgeexport.records.verdict import State
from edgeexport.validation.launches import DRIFT_LIMIT
from edgeexport.validation.statistics import unpaired_ratio

TOO_FEW = "too few launches for an interval"


def gate(record: BenchRecord, against: BenchRecord, *, allowed: float) -> tuple[Gated, ...]:
    """Judge every entry against the entry of the same label (or the only one) there: latency and peak memory, or on an
    emulated CPU the instructions.

    allowed: 0.05 lets a figure be 5 % worse. Raises RequestError when an entry has no counterpart, or one that was
    measured under other conditions.
    """
    judged: list[Gated] = []
    for entry in record.entries:
        old = _counterpart(entry, record, against=against)
        check_alike(entry.measurement.conditions, old.measurement.conditions)
        judged += [_instructions(entry, old, allowed=allowed)] if old.counts else _times(entry, old, allowed=allowed)
    return tuple(judged)


def share_of(text: str) -> float:
    """Return the share that `5%` or `0.05` says, from 0 to below 1. Raises RequestError."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise RequestError(f"{text!r} is not a share", next_step="write it as 5% or 0.05")
    return share


def check_alike(new: Conditions, old: Conditions) -> None:
    """Raise RequestError naming every condition that differs, with both values."""
    fields = [name for name in Conditions.__struct_fields__ if getattr(new, name) != getattr(old, name)]
    if fields:
        told = "; ".join(
            f"{name}: {_short(getattr(new, name))} against {_short(getattr(old, name))}" for name in fields
        )
        raise RequestError(f"measured under other conditions: {told}", next_step="make a new record to compare with")


def _short(value: object) -> str:
    text = str(msgspec.to_builtins(value)) or "nothing"
    return text if len(text) <= 60 else text[:57] + "..."


def _counterpart(entry: Entry, record: BenchRecord, *, against: BenchRecord) -> Entry:
    old = [each for each in against.entries if each.device == entry.device]
    named = [each for each in old if each.measurement.label == entry.measurement.label]
    lone = len(old) == 1 and sum(each.device == entry.device for each in record.entries) == 1
    if not named and not lone:
        there = ", ".join(f"{each.measurement.label} on {each.device}" for each in against.entries)
        raise RequestError(f"{entry.measurement.label} on {entry.device} is not in the stored record: {there}")
    return (named or old)[0]


def _times(entry: Entry, old: Entry, *, allowed: float) -> list[Gated]:
    return [_latency(entry, old, allowed=allowed), *_memory(entry, old, allowed=allowed)]


def _instructions(entry: Entry, old: Entry, *, allowed: float) -> Gated:
    """Instructions of one inference. They repeat within 0.3 %, so the figure itself is judged."""
    new, stored, what = entry.counts, old.counts, "instructions"
    label = entry.measurement.label
    if new is None or stored is None:
        told = f"this measurement is invalid: {'; '.join(entry.measurement.reasons)}"
        return Gated(label, entry.device, what, Interval(1.0), allowed, "unproven", told)
    share = new.total / stored.total
    reason = "" if share <= 1 + allowed else f"{share:.4g} times as many, {1 + allowed:.4g} allowed"
    if stored.dot_product and not new.dot_product:
        reason = f"no dot products any more ({stored.dot_product} before): the fast path was missed"
    state: State = "fails" if reason else "holds"
    return Gated(label, entry.device, what, Interval(share, share, share), allowed, state, reason)


def _latency(entry: Entry, old: Entry, *, allowed: float) -> Gated:
    new, stored = entry.measurement, old.measurement
    label = new.label
    if new.latency is None or stored.latency is None:
        which = "this measurement" if new.latency is None else "the stored measurement"
        reasons = "; ".join((new if new.latency is None else stored).reasons)
        return Gated(
            label, entry.device, "latency", Interval(1.0), allowed, "unproven", f"{which} is invalid: {reasons}"
        )
    ratio = unpaired_ratio(new.latency.launch_medians_ms, stored.latency.launch_medians_ms)
    state, reason = _state(ratio, allowed)
    if new.sentinel_ms and stored.sentinel_ms and abs(new.sentinel_ms / stored.sentinel_ms - 1) > DRIFT_LIMIT:
        share = new.sentinel_ms / stored.sentinel_ms
        state = "unproven"
        reason = f"the machine itself takes {share:.3g} times as long for the same work as when the record was made"
    return Gated(label, entry.device, "latency", ratio, allowed, state, reason)


def _state(ratio: Interval, allowed: float) -> tuple[State, str]:
    if ratio.low is None or ratio.high is None:
        return "unproven", TOO_FEW
    if ratio.value <= 1 + allowed:
        if ratio.high > 1 + allowed and (ratio.high - ratio.low) / 2 > allowed:
            told = f"from {ratio.low:.3g} to {ratio.high:.3g} times as long"
            return "unproven", f"{told}: noise is larger than the {allowed:.3g} allowed"
        return "holds", f"up to {ratio.high:.3g} times" if ratio.high > 1 + allowed else ""
    if ratio.low <= 1:
        return "unproven", f"{ratio.value:.3g} times as long, but no difference is shown: at least {ratio.low:.3g}"
    return "fails", f"{ratio.value:.3g} times as long, {1 + allowed:.3g} allowed"


def _memory(entry: Entry, old: Entry, *, allowed: float) -> list[Gated]:
    """Peak memory, where the stored one has it; it hardly varies, so the figure itself is judged."""
    new, stored = entry.measurement.memory, old.measurement.memory
    if stored is None:
        return []
    label, what = entry.measurement.label, "peak memory"
    if new is None or new.method != stored.method:
        told = f"this measurement has {new.method if new else 'none'}, the stored one {stored.method}"
        return [Gated(label, entry.device, what, Interval(1.0), allowed, "unproven", told)]
    share = new.peak_bytes / stored.peak_bytes
    state: State = "holds" if share <= 1 + allowed else "fails"
    reason = "" if state == "holds" else f"{share:.3g} times as much, {1 + allowed:.3g} allowed"
    ratio = Interval(share, share, share)
    return [Gated(label, entry.device, what, ratio, allowed, state, reason)]
