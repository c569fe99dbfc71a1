"""Rounds: every subject takes its turn in random order, until the machine was quiet for long enough or time is up.

The rule: more rounds are run when the machine was noisy or an interval is still wide, up to a bound, and never because
a difference was or was not found. Rounds are set aside for all subjects together: those in which the reference work
found no quiet moment, and those at the front when the machine was noisy then and quiet afterwards; the raw data keeps
them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgeexport.devices.protocol import Device
from edgeexport.errors import DeviceError
from edgeexport.progress import Progress
from edgeexport.validation import statistics
from edgeexport.validation.answers import read_sentinel
from edgeexport.validation.launches import FIXED_WORK, Demand, Findings, Launch, examine, read_launch
from edgeexport.validation.quiet import ANY, disturbed, states_of
from edgeexport.validation.subjects import Plan, Turn

START_SECONDS = 60.0
COOLING_STEP_SECONDS = 10.0
# A ratio's interval is narrow enough at half this width, or at this share of the effect when that is larger.
NARROW, NARROW_SHARE = 0.02, 0.25
PRECISION_DRAWS = 500
# Another guest on the core moves the sentinel by 5 %; a clock that slows the reference work by 15 % moves it as much.
CLOCK_MOVED, MOVED_SHARE = 1.12, 0.1


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
            last = late or len(self.order) >= self._most
            calm = self._calm(last=last)
            if not calm:
                continue
            drift, findings = self._judged(calm)
            noise |= {reason for found in findings if found.noisy for reason in found.reasons}
            if last or not self._unsettled(findings):
                return drift, [self._told(found, noise) for found in findings]

    @property
    def _most(self) -> int:
        """A round is calm only if it is so for all subjects, which is rarer the more there are."""
        return self.plan.most + self.plan.launches * max(0, len(self.turns) - 2)

    def _round(self, order: Sequence[int]) -> None:
        number = len(self.order)
        more = f" (noisy: {self._most} at most)" if number >= self.plan.launches else ""
        what = f"round {number + 1} of {max(self.plan.launches, number + 1)}{more}"
        self.progress(f"measure: {what}", min(1.0, number / self.plan.launches))
        if number and self.order[0]:
            _cool_down(self.device, self.order[0][0], plan=self.plan)
        launched = [_launch(self.turns[index], self.device, plan=self.plan) for index in order]
        self.order.append([launch for launch in launched if launch is not None])

    def _judged(self, calm: Sequence[int]) -> tuple[statistics.Drift, list[Findings]]:
        """Judge all calm rounds; if they are noisy, and the last ones are not, set the others aside and judge those."""
        everything = self._findings(calm)
        if len(calm) > self.plan.launches and any(found.noisy for found in everything[1]):
            latest = self._findings(calm[-self.plan.launches :])
            if not any(found.noisy for found in latest[1]):
                return latest
        return self._findings(calm)

    def _calm(self, *, last: bool) -> list[int]:
        """The rounds in which every launch has undisturbed iterations enough, in the first state that has such rounds.

        Nothing if there are too few in any; after the `last` round all count then, and rules for noise judge them.
        Subjects confined to other processors have a state of their own: those are other machines.
        """
        rounds = list(range(len(self.order)))
        whole = [turn for turn in self.turns if not turn.failure]
        places = {turn.subject.affinity for turn in whole}
        groups = [[turn for turn in whole if turn.subject.affinity == place] for place in places]
        states = [states_of([launch for turn in group for launch in turn.launches]) for group in groups]
        for chosen in zip(*states, strict=True):
            for turn, state in ((turn, state) for group, state in zip(groups, chosen, strict=True) for turn in group):
                turn.state = state
            calm = [each for each in rounds if not any(disturbed(turn.launches[each], turn.state) for turn in whole)]
            if len(calm) >= self.plan.launches:
                return calm
        if whole and not last:
            return []
        for turn in whole:
            turn.state = ANY
        return rounds

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

    def _findings(self, counting: Sequence[int]) -> tuple[statistics.Drift, list[Findings]]:
        for turn in self.turns:
            turn.set_aside = frozenset() if turn.failure else frozenset(range(len(self.order))) - set(counting)
        drift = _drift([launch for number in counting for launch in self.order[number]])
        moved, findings = self._moved(counting), [self._found(turn, drift) for turn in self.turns]
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

    def _told(self, found: Findings, noise: set[str]) -> Findings:
        """Add how many rounds there were when there were more than planned, and why."""
        aside = max(len(turn.set_aside) for turn in self.turns)
        if len(self.order) <= self.plan.launches or not (noise or aside):
            return found
        why = min(noise, default="something else used the core")
        text = f"{len(self.order)} rounds were run, {aside} of them set aside: {why}"
        return Findings(found.reasons, (*found.warnings, text), found.noisy)


def _noisy(found: Findings, text: str) -> Findings:
    """Add a reason that another try may mend, unless one stands there that none can."""
    return Findings((*found.reasons, text), found.warnings, noisy=found.noisy or not found.reasons)


def _sentinels(launches: Sequence[Launch]) -> list[Sequence[int]]:
    return [pieces for each in launches for pieces in (each.sentinel.before_ns, each.sentinel.after_ns)]


def _wide(turn: Turn, base: Turn) -> bool:
    """Whether the interval of a ratio is wider than the claim's least effect and than a share of the effect itself."""
    ratio = statistics.paired_ratio(turn.times, base.times, seed=0, draws=PRECISION_DRAWS)
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
