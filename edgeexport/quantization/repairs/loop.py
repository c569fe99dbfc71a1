"""Repair: try every edit of spine and plan that has something to change, keep what is measured faster.

The rule: an edit stays only if its file is faster than the best one so far by more than FASTER, and an edited spine
must first give the same numbers as the one it came from. How things are calibrated, built and timed is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeexport import graph
from edgeexport.errors import EdgeExportError
from edgeexport.progress import Progress, silent
from edgeexport.quantization.repairs.planned import plan_edits
from edgeexport.quantization.repairs.spine import SPINE_EDITS, SpineEdit, edited
from edgeexport.records.audit import RepairStep
from edgeexport.records.base import file_digest
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.target import Tolerance
from edgeexport.runtimes.ort import open_session
from edgeexport.runtimes.protocol import Feeds
from edgeexport.validation.compare import compare_sessions

FASTER = 0.98  # a ratio below this: the smallest effect that measurements here call one


@dataclass(frozen=True)
class Bench:
    """What a repair needs from outside.

    replan(spine): calibrate an edited spine and plan it. build(spine, plan, out): write the int8 file. timed(now,
    candidate): latency of the second file over that of the first, measured in turns. feeds: real samples in the
    spine's signature, for the proof that an edit changes no numbers.
    """

    replan: Callable[[Path], QuantizationPlan]
    build: Callable[[Path, QuantizationPlan, Path], None]
    timed: Callable[[Path, Path], float]
    feeds: Sequence[Feeds]


@dataclass(frozen=True)
class Repaired:
    """The best that was found: the spine and plan to go on with, the file they make, and all that was tried."""

    spine: Path
    plan: QuantizationPlan
    file: Path
    steps: tuple[RepairStep, ...]


def repair(spine: Path, plan: QuantizationPlan, *, bench: Bench, folder: Path, progress: Progress = silent) -> Repaired:
    """Return the fastest form of `spine` and `plan` that the known edits reach; files are written to `folder`.

    The given spine is never changed. Without anything worth keeping, spine and plan come back as they are. An edit
    that cannot be built is a step with its reason, not an error.
    """
    first = folder / "repair-0.int8.onnx"
    bench.build(spine, plan, first)
    best = Repaired(spine, plan, first, ())
    for edit in SPINE_EDITS:
        progress(f"repair: {edit.name}", None)
        best = _try_spine(best, edit, bench=bench, folder=folder)
    tried: set[str] = set()
    while edits := [edit for edit in plan_edits(best.spine, best.plan) if edit[0] not in tried]:
        name, reason, changed, places = edits[0]
        tried.add(name)
        progress(f"repair: {name}", None)
        step = RepairStep(name, "plan", reason, places, kept=False, outcome="")
        best = _judged(best, step, bench=bench, made=(best.spine, changed), folder=folder)
    return best


def _try_spine(best: Repaired, edit: SpineEdit, *, bench: Bench, folder: Path) -> Repaired:
    model, places = edited(graph.load(best.spine), edit)
    if not places:
        return best
    step = RepairStep(edit.name, "spine", edit.reason, places, kept=False, outcome="")
    path = folder / f"repair-{len(best.steps) + 1}.onnx"
    try:
        graph.save(model, path)
        if told := _differs(best.spine, path, feeds=bench.feeds):
            return _noted(best, step, outcome=told)
        plan = bench.replan(path)
    except EdgeExportError as error:
        return _noted(best, step, outcome=f"cannot be built: {error}")
    return _judged(best, step, bench=bench, made=(path, plan), folder=folder)


def _judged(
    best: Repaired, step: RepairStep, *, bench: Bench, made: tuple[Path, QuantizationPlan], folder: Path
) -> Repaired:
    """Build and time a changed pair; take it if it is faster."""
    out = folder / f"repair-{len(best.steps) + 1}.int8.onnx"
    try:
        bench.build(*made, out)
        ratio = bench.timed(best.file, out)
    except EdgeExportError as error:
        return _noted(best, step, outcome=f"cannot be built: {error}")
    if not ratio < FASTER:
        return _noted(best, step, outcome=f"not faster: {ratio:.3f} of the time before", ratio=ratio)
    kept = _noted(best, step, outcome=f"{ratio:.3f} of the time before", ratio=ratio, kept=True)
    return Repaired(*made, out, kept.steps)


def _noted(
    best: Repaired, step: RepairStep, *, outcome: str, ratio: float | None = None, kept: bool = False
) -> Repaired:
    done = RepairStep(step.name, step.level, step.reason, step.places, kept=kept, outcome=outcome, ratio=ratio)
    return Repaired(best.spine, best.plan, best.file, (*best.steps, done))


def _differs(before: Path, after: Path, *, feeds: Sequence[Feeds]) -> str:
    """Say how far an edited spine's numbers are off, empty when they are the same up to float rounding."""
    digests = (file_digest(before), file_digest(after))
    left, right = (open_session(path) for path in (before, after))
    parity = compare_sessions(
        left.run, right.run, samples=feeds, artifacts=digests, float_error=Tolerance().float_error
    )
    return "" if parity.holds else f"changes the numbers: {parity.reason}"
