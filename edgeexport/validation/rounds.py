"""Rounds: every subject takes its turn in random order, until the machine was quiet for long enough or time is up.

The rule: more rounds are run when the machine was noisy or an interval is still wide, up to a bound, and never because
a difference was or was not found. A subject is compared with the first one in the rounds in which the reference work
found quiet moments for both; other rounds are set aside, and those at the front for all subjects when the machine was
noisy then and quiet afterwards; the raw data keeps them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgeexport.devices.protocol import Device
from edgeexport.errors import DeviceError
from edgeexport.progress import Progress
from edgeexport.validation import statistics
from edgeexport.validation.answers import read_sentinel
from edgeexport.validation.launches import FIXED_WORK, Demand, Findings, Launch, examine, read_launch
from edgeexport.validation.quiet import ANY, State, disturbed, states_of
from edgeexport.validation.subjects import Plan, Turn

START_SECONDS = 60.0
COOLING_STEP_SECONDS = 10.0
# A ratio's interval is narrow enough at half this width, or at this share of the effect when that is larger.
NARROW, NARROW_SHARE = 0.02, 0.25
PRECISION_DRAWS = 500
# Another guest on the core moves the sentinel by 5 %; a clock that slows the reference work by 15 % moves it as much.
CLOCK_MOVED, MOVED_SHARE = 1.12, 0.1


@dataclass(frozen=True)
class Counting:
    """Which rounds count, and in which state of its core: of each subject by its place; a failed one has none."""

    rounds: Mapping[int, tuple[int, ...]]
    states: Mapping[int, State]

    @property
    def fewest(self) -> float:
        """The rounds of the subject that has the fewest; without limit where all have failed."""
        return min(map(len, self.rounds.values()), default=math.inf)

    @property
    def used(self) -> list[int]:
        """The rounds that count for any subject."""
        return sorted({number for rounds in self.rounds.values() for number in rounds})

    def latest(self, count: int) -> Counting:
        """Return the rounds since the last `count` of the subject that has the fewest there began."""
        start = min((rounds[-count:][0] for rounds in self.rounds.values() if rounds), default=0)
        since = {index: tuple(each for each in rounds if each >= start) for index, rounds in self.rounds.items()}
        return Counting(since, self.states)


@dataclass
class Rounds:
    """The rounds of one measurement on one device."""

    turns: list[Turn]
    device: Device
    plan: Plan
    progress: Progress
    cores: int = 0
    order: list[list[Launch]] = field(default_factory=list)

    def run(self, seed: int) -> tuple[statistics.Drift, list[Findings]]:
        """Run as many rounds as it takes; return the sentinel's drift over those that count, and what was found."""
        import numpy as np

        rng, began, noise = np.random.default_rng(seed), time.monotonic(), set[str]()
        while True:
            late = time.monotonic() - began > self.plan.set_seconds * len(self.turns)
            if not (late and self.order):
                self._round([int(index) for index in rng.permutation(len(self.turns))])
            if len(self.order) < self.plan.launches and not late and any(not turn.failure for turn in self.turns):
                continue
            last = late or len(self.order) >= self.plan.most
            for counting in self._choices(last=last):
                drift, findings = self._judged(counting)
                noise |= {reason for found in findings if found.noisy for reason in found.reasons}
                if not self._unsettled(findings):
                    return drift, self._told(findings, noise)
            if last:
                return drift, self._told(findings, noise)

    def _round(self, order: Sequence[int]) -> None:
        number = len(self.order)
        more = f" (noisy: {self.plan.most} at most)" if number >= self.plan.launches else ""
        what = f"round {number + 1} of {max(self.plan.launches, number + 1)}{more}"
        self.progress(f"measure: {what}", min(1.0, number / self.plan.launches))
        if number and self.order[0]:
            _cool_down(self.device, self.order[0][0], plan=self.plan)
        launched = [_launch(self.turns[index], self.device, plan=self.plan) for index in order]
        self.order.append([launch for launch in launched if launch is not None])

    def _judged(self, counting: Counting) -> tuple[statistics.Drift, list[Findings]]:
        """Judge the rounds that count; if they are noisy, and the last ones are not, judge those alone."""
        if any(found.noisy for found in self._findings(counting)[1]):
            latest = self._findings(counting.latest(self.plan.launches))
            if not any(found.noisy for found in latest[1]):
                return latest
        return self._findings(counting)

    def _choices(self, *, last: bool) -> list[Counting]:
        """Return what may count: the rounds with undisturbed iterations enough, in a state that has them for everybody.

        That is the fastest common state; after the `last` round also the most common one, if it has more rounds.
        Nothing if there are too few in any; after the last round all count then, and rules for noise judge them.
        Subjects confined to other processors have states of their own: those are other machines.
        """
        whole = [turn for turn in self.turns if not turn.failure]
        places = {turn.subject.affinity for turn in whole}
        groups = [[turn for turn in whole if turn.subject.affinity == place] for place in places]
        known = zip(
            *(states_of([launch for turn in group for launch in turn.launches]) for group in groups), strict=True
        )
        every = [self._calm(dict(zip(places, states, strict=True))) for states in known]
        enough = [each for each in every if each.fewest >= self.plan.launches]
        if last and len(enough) > 1:
            return enough if enough[1].fewest > enough[0].fewest else enough[:1]
        if enough or (whole and not last):
            return enough[:1]
        return [self._calm(dict.fromkeys(places, ANY))]

    def _calm(self, states: Mapping[tuple[int, ...], State]) -> Counting:
        """Return for each subject the rounds in which neither its own launch nor the first subject's is disturbed."""
        own = {
            index: {
                number
                for number, launch in enumerate(turn.launches)
                if not disturbed(launch, states[turn.subject.affinity])
            }
            for index, turn in enumerate(self.turns)
            if not turn.failure
        }
        base = own.get(0, set(range(len(self.order))))
        rounds = {index: tuple(sorted(calm & base)) for index, calm in own.items()}
        return Counting(rounds, {index: states[self.turns[index].subject.affinity] for index in own})

    def _moved(self, counting: Sequence[int]) -> str:
        """Say so if the clock, not another program, makes rounds that are set aside differ.

        Slower rounds at the front are let go: a machine may come to rest. Faster ones there were before it throttled.
        """
        import numpy as np

        rounds = [[quiet_ns(each) for each in _sentinels(launches)] for launches in self.order]
        known = [ns for number in counting for ns in rounds[number]]
        if not known:
            return ""
        usual = float(np.median(known))
        slower = [taken for taken in rounds[min(counting) :] if taken and min(taken) > CLOCK_MOVED * usual]
        faster = [taken for taken in rounds if taken and max(taken) < usual / CLOCK_MOVED]
        moved = len(slower) + len(faster)
        if moved < max(2, MOVED_SHARE * len(rounds)):
            return ""
        return f"throttled: in {moved} of {len(rounds)} rounds {FIXED_WORK} was another one by more than 12%"

    def _findings(self, counting: Counting) -> tuple[statistics.Drift, list[Findings]]:
        for index, turn in enumerate(self.turns):
            every = range(len(turn.launches))
            turn.set_aside = frozenset(every) - frozenset(counting.rounds.get(index, every))
            turn.state = counting.states.get(index, turn.state)
        used = counting.used
        drift = _drift([launch for number in used for launch in self.order[number]])
        moved, findings = self._moved(used), [self._found(turn, drift) for turn in self.turns]
        return drift, [_noisy(found, moved) for found in findings] if moved else findings

    def _found(self, turn: Turn, drift: statistics.Drift) -> Findings:
        if turn.failure:
            return Findings((turn.failure,), (), noisy=False)
        threads, plan = turn.subject.threads, self.plan
        demand = Demand(plan.timed_iterations, plan.timed_seconds, threads, plan.launches, self.cores, plan.cap_seconds)
        found = examine(turn.since, demand, drift=drift, medians=turn.medians)
        unchecked = () if turn.subject.goldens else ("outputs were not checked on the device: no goldens were given",)
        return Findings(found.reasons, (*found.warnings, *unchecked), found.noisy)

    def _unsettled(self, findings: list[Findings]) -> bool:
        """Whether more rounds may help: something is noisy, or a ratio to the first subject is not known closely."""
        if any(found.noisy for found in findings):
            return True
        good = [turn for turn, found in zip(self.turns, findings, strict=True) if not found.reasons]
        return good[:1] == self.turns[:1] and any(_wide(turn, self.turns[0]) for turn in good[1:])

    def _told(self, findings: Sequence[Findings], noise: set[str]) -> list[Findings]:
        """Add how many rounds there were when there were more than planned, and why."""
        why = min(noise, default="something else used the core")
        told = []
        for turn, found in zip(self.turns, findings, strict=True):
            aside = len(turn.set_aside)
            text = f"{len(self.order)} rounds were run, {aside} of them set aside: {why}"
            more = len(self.order) > self.plan.launches and bool(noise or aside)
            told.append(Findings(found.reasons, (*found.warnings, text), found.noisy) if more else found)
        return told


def _noisy(found: Findings, text: str) -> Findings:
    """Add a reason that another try may mend, unless one stands there that none can."""
    return Findings((*found.reasons, text), found.warnings, noisy=found.noisy or not found.reasons)


def _sentinels(launches: Sequence[Launch]) -> list[Sequence[int]]:
    return [pieces for each in launches for pieces in (each.sentinel.before_ns, each.sentinel.after_ns)]


def _wide(turn: Turn, base: Turn) -> bool:
    """Whether the interval of a ratio is wider than the claim's least effect and than a share of the effect itself."""
    ratio = statistics.paired_ratio(*turn.beside(base), seed=0, draws=PRECISION_DRAWS)
    if ratio.low is None or ratio.high is None:
        return False
    half = math.log(ratio.high / ratio.low) / 2
    return half > max(NARROW, NARROW_SHARE * abs(math.log(ratio.value)))


def _launch(turn: Turn, device: Device, *, plan: Plan) -> Launch | None:
    if turn.failure:
        return None
    timeout = START_SECONDS + 3 * plan.cap_seconds + plan.warmup_seconds
    try:
        launch = read_launch(device.run({**turn.job, "mode": "time"}, files=turn.files, timeout=timeout))
    except DeviceError as error:
        turn.failure = f"a launch failed: {error}"
        return None
    turn.launches.append(launch)
    return launch


def _cool_down(device: Device, first: Launch, *, plan: Plan) -> None:
    """Wait until the sentinel is about as fast as it was at the start, but no longer than the plan says.

    A sentinel that fails ends the waiting: the launches that follow find out themselves whether the device is there.
    """
    cold = min(first.sentinel.before_ns) * (1 + plan.cooled)
    for _ in range(int(plan.cooldown_seconds / COOLING_STEP_SECONDS)):
        try:
            now = read_sentinel(device.run({"mode": "sentinel"}, timeout=START_SECONDS))
        except DeviceError:
            return
        if min(now) <= cold:
            return
        time.sleep(COOLING_STEP_SECONDS)


def _drift(order: Sequence[Launch]) -> statistics.Drift:
    """The sentinel's drift over launches in the order of time: the machine is one, whatever ran on it."""
    if not order:
        return statistics.Drift(0.0, shown=False)
    before = [quiet_ns(launch.sentinel.before_ns) for launch in order]
    return statistics.sentinel_drift(before, [quiet_ns(launch.sentinel.after_ns) for launch in order])


def quiet_ns(times: Sequence[int]) -> float:
    """The lower quartile: an interruption by another program lengthens some pieces, throttling lengthens all."""
    import numpy as np

    return float(np.quantile(times, 0.25))
