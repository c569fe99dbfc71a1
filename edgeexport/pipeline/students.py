"""Students cut from the present network: every mix of depth and width, timed in the form that ships before training.

The rule: one student is trained, the best by its figures; the figures of all are told, and what the best still misses.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeexport.errors import ConverterFailed, ModelError, OutOfReach
from edgeexport.pipeline import torch_rungs
from edgeexport.pipeline.attempts import attempted
from edgeexport.pipeline.layer_times import Place
from edgeexport.pipeline.road import Road
from edgeexport.pipeline.shipped import fitted
from edgeexport.pipeline.timing import MODE, device_for
from edgeexport.pipeline.torch_rungs import TorchRung, load_rung
from edgeexport.pipeline.workbench import Workbench, feeds_of
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import Distill, MixName, Prune
from edgeexport.records.students import MB, Student, Students, ranked
from edgeexport.workspace import Stage, versions

if TYPE_CHECKING:
    from torch import nn

    from edgeexport.compression.candidates import Candidates
    from edgeexport.compression.price import Price
    from edgeexport.devices.protocol import Device
    from edgeexport.records.latency import Basis
    from edgeexport.validation.measure import Subject

# Where no student measures up, all are cut once more, by as much more as the best of them misses.
TRIES = 2


def students(
    road: Road,
    step: Distill,
    *,
    last: TorchRung,
    place: Place,
    begun: Callable[[PruningPlan], bool],
) -> Stage[Students]:
    """Cut students from the network of `last` by every mix of `step` and time them; once more where all miss its goals.

    The best is chosen even if it still misses them: `told` says by how much. What an invalid measurement led to is made
    anew the next time, unless the training of the chosen student has `begun`: that one is gone on with. Raises
    OutOfReach where no mix reaches the goals by its plan, and ModelError where none gives a student for another reason.
    """
    place = fitted(road, place, rung=last)

    def make(_: Path) -> Students:
        road.progress("cut students", None)
        with tempfile.TemporaryDirectory(prefix="edgeexport-students-") as folder:
            return _cutting(Workbench(road, as_prune(step), place, last, Path(folder)), step).run()

    key = {
        "goals": [step.speedup, step.max_size_mb, step.macs],
        "how": [step.mixes, step.round_to, step.locked],
        "from": torch_rungs.stage_key(last),
        "spine": last.spine.record.artifact.digest,
        "place": place.key(),
        "judge": place.judge(),
        "versions": versions("torch", "torch-pruning"),
        **road.data_key("calibration"),
    }

    def stale(known: Students) -> bool:
        plan = known.tried[known.chosen].plan
        if not known.reason or device_for(place.target, place.device)[0] is None:
            return False
        return plan is None or not begun(plan)

    return road.workspace.stage("students", key=key, make=make, kind=Students, stale=stale)


def as_prune(step: Distill) -> Prune:
    """Return the pruning step that a student is cut by."""
    return Prune(
        speedup=step.speedup,
        max_size_mb=step.max_size_mb,
        macs=step.macs,
        parts=("width", "depth", "heads"),
        round_to=step.round_to,
        locked=step.locked,
    )


@dataclass(frozen=True)
class _Network:
    """The network that is cut, what may go, and what it costs as it is. now: goal -> in the unit of its price."""

    module: nn.Module
    candidates: Candidates
    prices: Sequence[Price]
    now: Mapping[str, float]
    before: Subject


@dataclass
class _Cutting:
    bench: Workbench
    step: Distill
    network: _Network
    built: dict[int, Subject]
    tried: list[Student]
    beyond: set[MixName] = field(default_factory=set)

    def run(self) -> Students:
        """Cut, build and time; once more where nothing measures up. The best is chosen, even if it does not."""
        step, known = self.step, Students((), 0, "predicted", "", self.network.before.path.stat().st_size)
        asked = self._asked()
        for _ in range(TRIES):
            self._cut(asked)
            known = self._timed(known)
            order = ranked(tuple(self.tried), speedup=step.speedup, max_size_mb=step.max_size_mb)
            if not order:
                raise _none_reaches(self.tried, beyond=self.beyond)
            best = self.tried[order[0]]
            known = msgspec.structs.replace(known, tried=tuple(self.tried), chosen=order[0])
            if best.reaches(step.speedup, max_size_mb=step.max_size_mb):
                break
            asked = self._tighter(asked, best)
        return known

    def _asked(self) -> dict[str, float]:
        now, step = self.network.now, self.step
        ratios = {"speedup": step.speedup, "macs": step.macs}
        asked = {name: now[name] / ratio for name, ratio in ratios.items() if ratio is not None}
        asked |= {"macs": math.floor(asked["macs"])} if "macs" in asked else {}
        return asked | ({"max_size_mb": step.max_size_mb} if step.max_size_mb is not None else {})

    def _tighter(self, asked: Mapping[str, float], best: Student) -> dict[str, float]:
        """Ask for as much more as the best student misses."""
        step, found = self.step, dict(asked)
        if step.speedup is not None and best.times is not None:
            found["speedup"] *= min(best.times / step.speedup, 1.0)
        if step.max_size_mb is not None:
            found["max_size_mb"] *= min(step.max_size_mb * MB / best.bytes, 1.0)
        return found

    def _cut(self, asked: Mapping[str, float]) -> None:
        """Plan and build a student by each mix; what cannot be made, or is like another one, says so."""
        from edgeexport.compression.macs import count_macs

        feeds, known = feeds_of(self.bench.road), [(each.plan, each.mix) for each in self.tried]
        for name in self.step.mixes:
            student = self._planned(name, asked)
            twin = next((mix for plan, mix in known if plan and student.plan and _same(plan, student.plan)), None)
            if twin is not None:
                student = Student(name, reason=f"the same student as by {twin}")
            if student.plan is not None:
                known.append((student.plan, name))
                student = self._built(student, feeds=feeds, macs=count_macs(self.network.module, feeds[0]))
            self.tried.append(student)

    def _planned(self, name: MixName, asked: Mapping[str, float]) -> Student:
        from edgeexport.compression.mixes import MIXES
        from edgeexport.compression.prune import Means, plan_pruning

        mix, road, feeds = MIXES[name], self.bench.road, feeds_of(self.bench.road)
        means = Means(self.network.prices, asked, samples=feeds, blocks_first=mix.blocks_first)
        step = msgspec.structs.replace(self.bench.step, scope=mix.scope)
        found = mix.of(self.network.candidates)
        try:
            plan = plan_pruning(
                self.network.module, feeds[0], step=step, means=means, candidates=found, progress=road.detail
            )
        except ModelError as error:
            if isinstance(error, OutOfReach):
                self.beyond.add(name)
            return Student(name, reason=str(error))
        return Student(name, plan)

    def _built(self, student: Student, *, feeds: Any, macs: int) -> Student:
        assert student.plan is not None
        index = len(self.tried)
        self.bench.road.detail(f"build the student by {student.mix}", None)
        try:
            subject = self.bench.built(self.network.module, student.plan, feeds=feeds, name=f"student-{index}")
        except (ModelError, ConverterFailed) as error:
            return msgspec.structs.replace(student, reason=f"cannot be built: {error}")
        self.built[index] = subject
        size = subject.path.stat().st_size
        kept = (student.plan.macs_after / max(macs, 1), size / self.network.before.path.stat().st_size)
        return msgspec.structs.replace(student, bytes=size, kept=kept)

    def _timed(self, known: Students) -> Students:
        """Give every student that was built its cost: measured, else counted, else as its plan predicts it.

        All of them anew, in one way: what an earlier try measured says nothing beside what was not measured now.
        """
        place = self.bench.place
        known = msgspec.structs.replace(known, basis="predicted", unit="–", cost_before=None, reason="")
        if not self.built:
            return known
        for index in self.built:
            self._set(index, cost=None, before=None)
        machine, reason = device_for(place.target, place.device)
        if machine is not None:
            known, reason = self._measured(known, machine=machine)
            if known.basis == "measured":
                return known
        counter = place.counter()
        if counter is None:
            return self._predicted(msgspec.structs.replace(known, reason=reason))
        before = self.bench.cost(self.network.before)
        for index, subject in self.built.items():
            self._set(index, cost=self.bench.cost(subject), before=before)
        return msgspec.structs.replace(
            known, basis="counted", unit="M instructions", cost_before=before, reason=f"{reason}; on {counter.name}"
        )

    def _measured(self, known: Students, *, machine: Device) -> tuple[Students, str]:
        """Measure all students beside the network they are cut from, interleaved; why not, where that is not valid."""
        from edgeexport.validation.measure import measure

        subjects = [replace(self.network.before, label="before")]
        subjects += [replace(each, label=self.tried[index].mix) for index, each in self.built.items()]
        self.bench.road.progress(f"measure {len(self.built)} students before training", None)
        measured, compared = measure(subjects, device=machine, mode=MODE, progress=self.bench.road.detail)
        ratios = {each.candidate: each.ratio.value for each in compared}
        first = measured[0].latency
        if first is None or not all(each.digest in ratios for each in subjects[1:]):
            reasons = dict.fromkeys(why for each in measured for why in each.reasons)
            return known, f"the measurement is invalid: {'; '.join(reasons)}"
        before = first.median_ms.value
        for index, subject in self.built.items():
            self._set(index, cost=before * ratios[subject.digest], before=before)
        return msgspec.structs.replace(known, basis="measured", unit="ms", cost_before=before, reason=""), ""

    def _predicted(self, known: Students) -> Students:
        basis: Basis = known.basis
        unit = "–"
        for index in self.built:
            plan = self.tried[index].plan
            goal = next((each for each in plan.goals if each.goal == "speedup"), None) if plan else None
            if goal is not None:
                basis, unit = goal.basis, goal.unit
                self._set(index, cost=goal.after, before=goal.before)
        now = self.network.now.get("speedup")
        return msgspec.structs.replace(known, basis=basis, unit=unit, cost_before=now)

    def _set(self, index: int, *, cost: float | None, before: float | None) -> None:
        times = before / max(cost, 1e-12) if cost is not None and before is not None else None
        self.tried[index] = msgspec.structs.replace(self.tried[index], cost=cost, times=times)


def _cutting(bench: Workbench, step: Distill) -> _Cutting:
    """Find what may go, and what the network costs as it is."""
    from edgeexport.compression.candidates import find_candidates
    from edgeexport.compression.macs import positions
    from edgeexport.compression.price import Ledger

    feeds = feeds_of(bench.road)
    module = load_rung(bench.road, bench.last)
    candidates = find_candidates(module, feeds[0], step=bench.step, progress=bench.road.detail)
    with attempted():
        before = bench.present()
    prices = bench.prices(module, feeds[0], candidates=candidates, before=before)
    totals = Ledger(module, positions(module, feeds[0]), prices=prices).totals
    now: dict[str, float] = {price.goal: total for price, total in zip(prices, totals, strict=True)}
    return _Cutting(bench, step, _Network(module, candidates, prices, now, before), {}, [])


def _same(one: PruningPlan, other: PruningPlan) -> bool:
    return (one.groups, one.blocks) == (other.groups, other.blocks)


def _none_reaches(tried: Sequence[Student], *, beyond: Collection[MixName]) -> ModelError:
    """The error of a try that gives no student: a goal out of reach only where each mix that was made says so."""
    told = "; ".join(f"by {each.mix}: {each.reason}" for each in tried)
    if all(each.mix in beyond for each in tried):
        return OutOfReach(f"no student reaches the goals: {told}", next_step="ask for less, or lock fewer layers")
    return ModelError(f"no student can be made: {told}", next_step="try other `mixes`, or lock what cannot be cut")


def told(found: Students, step: Distill) -> tuple[str, ...]:
    """Return what a report says of the choice: every student with its figures, the plan of the one taken, its misses.

    step: the one that asked for it.
    """
    chosen = found.tried[found.chosen]
    notes = [_line(student, found) + (", taken" if student is chosen else "") for student in found.tried]
    if chosen.plan is not None:
        notes += [goal.told for goal in chosen.plan.goals]
        notes += [chosen.plan.left_alone] if chosen.plan.left_alone else []
    notes += _missed(chosen, step, basis=found.basis)
    return (*notes, f"not measured: {found.reason}") if found.reason else tuple(notes)


def _missed(student: Student, step: Distill, *, basis: Basis) -> list[str]:
    """What the student taken does not reach, after all tries: it is trained nevertheless, since it is the nearest."""
    notes = []
    if step.speedup is not None and student.times is not None and not student.reaches(step.speedup, max_size_mb=None):
        notes.append(f"asked {step.speedup:g}x, reaches {student.times:.3g}x ({basis})")
    if step.max_size_mb is not None and not student.reaches(None, max_size_mb=step.max_size_mb):
        notes.append(f"asked {step.max_size_mb:g} MB, reaches {student.bytes / MB:.3g} MB")
    return notes


def _line(student: Student, found: Students) -> str:
    if student.plan is None or student.reason:
        return f"student by {student.mix}: none, {student.reason}"
    size = f"{student.bytes / MB:.3g} MB, {student.kept[0]:.0%} of the multiply-accumulates"
    if student.cost is None or student.times is None:
        return f"student by {student.mix}: {size}"
    cost = f"{student.cost:.4g} {found.unit}, {student.times:.2f} times less than before ({found.basis})"
    return f"student by {student.mix}: {cost}, {size}"
