"""Repair: try the known edits of spine and plan that have something to change, keep what is measured faster.

The rule: an edit stays only if its file is faster than the best one so far by more than FASTER says, and an edited
spine must first give the numbers of the given one. How things are calibrated, built and timed is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgeexport import graph
from edgeexport.errors import DeviceError, EdgeExportError
from edgeexport.progress import Progress, silent
from edgeexport.quantization.repairs.planned import plan_edits
from edgeexport.quantization.repairs.spine import SPINE_EDITS, SpineEdit, all_of, edited
from edgeexport.records.audit import RepairStep
from edgeexport.records.base import file_digest
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.target import Tolerance
from edgeexport.runtimes.ort import open_session
from edgeexport.runtimes.protocol import Feeds
from edgeexport.validation.compare import compare_sessions

NOT_MEASURED = "not measured: "  # begins the outcome of an edit that a quieter machine may judge
FASTER = 0.98  # a ratio below this: 2 % is the smallest effect that measurements here claim


@dataclass(frozen=True)
class Bench:
    """What a repair needs from outside.

    replan(spine): calibrate an edited spine and plan it. build(spine, plan, out): write the file as it would run.
    timed(now, candidate): latency of the second file over that of the first, measured in turns, in fresh processes
    (two sessions in one process have been seen to differ by a factor of two). feeds: real samples in the spine's
    signature, for the proof that an edit changes no numbers.
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

    All edits of the spine are tried together, and one by one where that does not pay, then those of the plan one by
    one. The given spine is never changed; without anything worth keeping, spine and plan come back as they are. An
    edit that cannot be built or timed is a step with its reason, not an error.
    """
    search = _Search(
        bench, folder, progress, spine=spine, plan=plan, source=spine, file=folder / "unrepaired.int8.onnx"
    )
    bench.build(spine, plan, search.file)
    if not search.try_spine(all_of(graph.load(spine), SPINE_EDITS)):
        for edit in SPINE_EDITS:
            search.try_spine(edit)
    search.try_plans()
    return Repaired(search.spine, search.plan, search.file, tuple(search.steps))


@dataclass
class _Search:
    """The best so far, and what was tried."""

    bench: Bench
    folder: Path
    progress: Progress
    spine: Path
    plan: QuantizationPlan
    source: Path
    file: Path
    steps: list[RepairStep] = field(default_factory=list)

    def out(self, suffix: str) -> Path:
        """A path that no step before has written."""
        return self.folder / f"repair-{len(self.steps)}{suffix}"

    def try_spine(self, edit: SpineEdit) -> bool:
        """Edit, prove, calibrate and judge; say whether the edit stayed."""
        model, places = edited(graph.load(self.spine), edit)
        if not places or any(step.name == edit.name for step in self.steps):
            return False
        self.progress(f"repair: {edit.name}", None)
        step = RepairStep(edit.name, "spine", edit.reason, places, kept=False, outcome="")
        path = self.out(".onnx")
        try:
            graph.save(model, path)
            told = _differs(self.source, path, feeds=self.bench.feeds)
            plan = self.plan if told else self.bench.replan(path)
        except EdgeExportError as error:
            told = f"not tried: {error}"
        return self.note(step, outcome=told) if told else self.judge(step, path, plan=plan)

    def try_plans(self) -> None:
        """Try each edit of the plan once, each on the best plan so far."""
        tried: set[str] = set()
        while edits := [edit for edit in plan_edits(self.spine, self.plan) if edit.name not in tried]:
            edit = edits[0]
            tried.add(edit.name)
            self.progress(f"repair: {edit.name}", None)
            step = RepairStep(edit.name, "plan", edit.reason, edit.places, kept=False, outcome="")
            self.judge(step, self.spine, plan=edit.changed())

    def judge(self, step: RepairStep, spine: Path, *, plan: QuantizationPlan) -> bool:
        """Build and time; take the pair if it is faster."""
        out = self.out(".int8.onnx")
        try:
            self.bench.build(spine, plan, out)
            ratio = self.bench.timed(self.file, out)
        except DeviceError as error:
            return self.note(step, outcome=f"{NOT_MEASURED}{error}")
        except EdgeExportError as error:
            return self.note(step, outcome=f"not tried: {error}")
        if not ratio < FASTER:
            return self.note(step, outcome=f"not faster: {ratio:.3f} of the time before", ratio=ratio)
        self.spine, self.plan, self.file = spine, plan, out
        return self.note(step, outcome=f"{ratio:.3f} of the time before", ratio=ratio, kept=True)

    def note(self, step: RepairStep, *, outcome: str, ratio: float | None = None, kept: bool = False) -> bool:
        self.steps.append(msgspec.structs.replace(step, outcome=outcome, ratio=ratio, kept=kept))
        return kept


def _differs(before: Path, after: Path, *, feeds: Sequence[Feeds]) -> str:
    """Say how far an edited spine's numbers are off, empty when they are the same up to float rounding."""
    digests = (file_digest(before), file_digest(after))
    left, right = (open_session(path) for path in (before, after))
    parity = compare_sessions(
        left.run, right.run, samples=feeds, artifacts=digests, float_error=Tolerance().float_error
    )
    return "" if parity.holds else f"changes the numbers: {parity.reason}"
