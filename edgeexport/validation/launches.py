"""Launches: what the fresh processes of one measurement answered, and what makes their numbers unusable.

The rule: an unusable measurement says why, and a doubt that does not make it unusable is a warning. Each check is one
small function, and its limit stands above with a name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from edgeexport.devices.protocol import read_as
from edgeexport.errors import DeviceError
from edgeexport.validation.statistics import Drift, spread, trend

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRIFT_LIMIT, DRIFT_WARNING = 0.05, 0.02
FIXED_WORK = "the machine's time for a fixed workload"
SPREAD_LIMIT, SPREAD_WARNING = 0.10, 0.05
TREND_LIMIT, TREND_CHANGE = 0.8, 0.05
FREQUENCY_LEAST = 0.90
RESOLUTION_LIMIT = 0.01
BUSY_SHARE, CONTENDED_SHARE = 1.2, 0.9
BATTERY_LEAST = 20
# A launch whose time was up may have fewer iterations than asked for, but not fewer than these.
CAPPED_LEAST = 10
# Bits 0 to 3 of a Raspberry Pi's get_throttled: under-voltage, frequency capped, throttled, soft temperature limit.
FIRMWARE_THROTTLED_NOW = 0xF
# Android: 0 none, 1 light, 2 moderate, ... 6 shutdown; from moderate on it slows the processors down.
THERMAL_MODERATE = 2


Pieces = Annotated[tuple[Annotated[int, msgspec.Meta(gt=0)], ...], msgspec.Meta(min_length=1)]


class _Threads(msgspec.Struct, frozen=True):
    requested: int
    actual: int


class _Accelerator(msgspec.Struct, frozen=True):
    requested: str
    actual: str


class _Affinity(msgspec.Struct, frozen=True):
    requested: tuple[int, ...] | None = None
    actual: tuple[int, ...] = ()


class _Moment(msgspec.Struct, frozen=True):
    """The state of the machine; what older device programs do not tell has a default."""

    boot_id: str
    load_average: tuple[float, ...]
    frequency_khz: int | None
    governor: str = ""
    frequencies_khz: tuple[int, ...] = ()
    temperatures_c: dict[str, float] = {}
    throttle_events: int | None = None
    firmware_throttled: Annotated[str, msgspec.Meta(pattern="^((0[xX])?[0-9a-fA-F]{1,16})?$")] = ""
    swapped_in_pages: int | None = None
    battery_percent: int | None = None
    plugged: bool | None = None
    thermal_status: int | None = None


class _Environment(msgspec.Struct, frozen=True):
    before: _Moment
    after: _Moment


class _Sentinel(msgspec.Struct, frozen=True):
    before_ns: Pieces
    after_ns: Pieces


class _Timed(msgspec.Struct, frozen=True):
    """cpu_seconds: None where no clock tells them (a browser)."""

    seconds: Annotated[float, msgspec.Meta(gt=0)]
    cpu_seconds: float | None
    began_ns: int | None = None
    process_threads: int | None = None


class _Warmup(msgspec.Struct, frozen=True):
    iterations: int = 0
    seconds: float = 0.0
    iterations_ns: tuple[int, ...] = ()


class _Clock(msgspec.Struct, frozen=True):
    """batch: inferences between two readings, where one alone is too short for the clock."""

    resolution_ns: float
    batch: Annotated[int, msgspec.Meta(ge=1)] = 1


class Launch(msgspec.Struct, frozen=True, dict=True):
    """The answer of one fresh process in mode `time`. Unknown fields of newer programs are let through.

    set_aside: its round does not count. probes: after how many iterations reference work was done, and the nanoseconds
    that it took.
    """

    runtime_version: str
    model_digest: str
    bench_digest: str
    threads: _Threads
    accelerator: _Accelerator
    load_ms: float
    first_ms: float
    iterations_ns: list[int]
    timed: _Timed
    sentinel: _Sentinel
    environment: _Environment
    clock: _Clock
    affinity: _Affinity = _Affinity()
    warmup: _Warmup = _Warmup()
    set_aside: bool = False
    probes: tuple[tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(gt=0)]], ...] = ()

    @cached_property
    def times_ms(self) -> NDArray[Any]:
        """Milliseconds of every iteration."""
        import numpy as np

        return np.asarray(self.iterations_ns, float) / 1e6

    @cached_property
    def median_ms(self) -> float:
        """The launch's median."""
        import numpy as np

        return float(np.median(self.times_ms))


@dataclass(frozen=True)
class Demand:
    """What was asked of every launch: the least iterations and seconds, the most seconds, threads, and how many."""

    iterations: int
    seconds: float
    threads: int
    launches: int = 1
    cores: int = 0
    cap_seconds: float = math.inf


@dataclass(frozen=True)
class Findings:
    """Reasons that make a measurement invalid, and warnings that do not. `noisy`: another try may succeed."""

    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    noisy: bool


def read_launch(answer: Mapping[str, Any]) -> Launch:
    """Return the launch that an answer of mode `time` holds. Raises DeviceError naming what is missing or wrong."""
    launch = read_as(answer, Launch, what="a launch")
    if not launch.iterations_ns or min(launch.iterations_ns) <= 0:
        raise DeviceError(f"the answer has {len(launch.iterations_ns)} iterations, or some of no duration")
    places = [place for place, _ in launch.probes]
    if places and (places != sorted(places) or (places[0], places[-1]) != (0, len(launch.iterations_ns))):
        raise DeviceError(f"the answer has reference work after {places[:8]} of {len(launch.iterations_ns)} iterations")
    return launch


def examine(launches: Sequence[Launch], demand: Demand, *, drift: Drift, medians: Sequence[float]) -> Findings:
    """Apply every rule to the launches of one measurement. medians: of the undisturbed iterations of each."""
    noise = [*_drifted(drift), *_spread(medians), *_trended(medians)]
    facts = [complaint for rule in RULES for complaint in rule(launches, demand)]
    both = [*facts, *noise]
    return Findings(
        reasons=tuple(text for fatal, text in both if fatal),
        warnings=tuple(text for fatal, text in both if not fatal),
        noisy=not any(fatal for fatal, _ in facts) and any(fatal for fatal, _ in noise),
    )


Complaints = Iterator[tuple[bool, str]]


def _too_few(launches: Sequence[Launch], demand: Demand) -> Complaints:
    if len(launches) < demand.launches:
        yield True, f"too short: {len(launches)} launches fitted into the time allowed, {demand.launches} are needed"
    for launch in launches:
        count = len(launch.iterations_ns)
        done = f"a launch had {count} iterations in {launch.timed.seconds:.2f} s"
        if count < demand.iterations and count >= CAPPED_LEAST and launch.timed.seconds >= demand.cap_seconds:
            yield False, f"few samples: {done}, its time was up before {demand.iterations}"
            return
        if count < demand.iterations or launch.timed.seconds < demand.seconds:
            yield True, f"too few samples: {done}, {demand.iterations} and {demand.seconds:g} s are needed"
            return


def _changed(launches: Sequence[Launch], demand: Demand) -> Complaints:
    del demand
    boots = {moment.boot_id for each in launches for moment in (each.environment.before, each.environment.after)}
    for what, values in (
        ("the device was rebooted", boots),
        ("the device program changed", {each.bench_digest for each in launches}),
        ("the model file changed", {each.model_digest for each in launches}),
        ("the runtime changed", {each.runtime_version for each in launches}),
    ):
        if len(values) > 1:
            yield True, f"{what} between launches: {', '.join(sorted(values))}"


def _other_accelerator(launches: Sequence[Launch], demand: Demand) -> Complaints:
    del demand
    for requested, actual in {(each.accelerator.requested, each.accelerator.actual) for each in launches}:
        if requested != actual:
            yield True, f"ran on {actual}, {requested} was asked for"


def _other_threads(launches: Sequence[Launch], demand: Demand) -> Complaints:
    for actual in {each.threads.actual for each in launches} - {demand.threads}:
        yield True, f"ran with {actual} threads, {demand.threads} were asked for"
    told = [each.timed for each in launches]
    busy = [timed.cpu_seconds / timed.seconds for timed in told if timed.cpu_seconds is not None]
    if not busy:
        return
    if max(busy) > BUSY_SHARE * demand.threads:
        yield True, f"kept {max(busy):.1f} cores busy with {demand.threads} thread(s) asked for"
    if demand.threads == 1 and min(busy) < CONTENDED_SHARE:
        yield False, f"a launch had the processor for {min(busy):.0%} of its time only: other programs were running"


def _slowed(launches: Sequence[Launch], demand: Demand) -> Complaints:
    del demand
    start = launches[0].environment.before.frequency_khz
    seen = [launch.environment.after.frequency_khz for launch in launches]
    known = [value for value in seen if value is not None]
    if start and known and min(known) < FREQUENCY_LEAST * start:
        yield True, f"throttled: the processor fell from {start / 1e6:.2f} to {min(known) / 1e6:.2f} GHz"


def _heated(launches: Sequence[Launch], demand: Demand) -> Complaints:
    """What the system itself says of throttling: its counters of such events, a Raspberry Pi's firmware, Android."""
    del demand
    for launch in launches:
        before, after = launch.environment.before, launch.environment.after
        if (after.throttle_events or 0) > (before.throttle_events or 0):
            yield True, "throttled: the processor counted thermal throttling during a launch"
            return
        if int(after.firmware_throttled or "0", 16) & FIRMWARE_THROTTLED_NOW:
            yield True, f"throttled: the firmware says {after.firmware_throttled} (under-voltage, capped or hot)"
            return
        if max(before.thermal_status or 0, after.thermal_status or 0) >= THERMAL_MODERATE:
            yield True, f"throttled: Android's thermal status was {before.thermal_status}, then {after.thermal_status}"
            return


def _unpinned(launches: Sequence[Launch], demand: Demand) -> Complaints:
    del demand
    for affinity in {launch.affinity for launch in launches}:
        if affinity.requested is not None and set(affinity.requested) != set(affinity.actual):
            yield True, f"ran on processors {list(affinity.actual)}, {list(affinity.requested)} were asked for"


def _supplied(launches: Sequence[Launch], demand: Demand) -> Complaints:
    """Battery, charger, governor, swap and load: doubts, since their effect is not known."""
    moments = [moment for each in launches for moment in (each.environment.before, each.environment.after)]
    for what, values in (
        ("the charger was plugged or unplugged", {each.plugged for each in moments}),
        ("the governor changed", {each.governor for each in moments}),
    ):
        if len(values) > 1:
            yield False, f"{what} between launches: {', '.join(sorted(map(str, values)))}"
    charge = min((each.battery_percent for each in moments if each.battery_percent is not None), default=100)
    if charge < BATTERY_LEAST:
        yield False, f"the battery is at {charge} %"
    for launch in launches:
        before, after = launch.environment.before, launch.environment.after
        if (after.swapped_in_pages or 0) > (before.swapped_in_pages or 0):
            yield False, "memory was swapped in during a launch"
            break
    load = max((each.load_average[0] for each in moments if each.load_average), default=0.0)
    if demand.cores and load > demand.cores:
        yield False, f"the load average was {load:.1f} on {demand.cores} cores: other programs were running"


def _coarse_clock(launches: Sequence[Launch], demand: Demand) -> Complaints:
    del demand
    tick = max(launch.clock.resolution_ns for launch in launches)
    median = min(launch.median_ms for launch in launches) * 1e6
    if tick > RESOLUTION_LIMIT * median:
        yield True, f"the clock ticks every {tick:g} ns, more than 1 % of the median of {median:g} ns"


RULES: tuple[Callable[[Sequence[Launch], Demand], Complaints], ...] = (
    _too_few,
    _changed,
    _other_accelerator,
    _other_threads,
    _unpinned,
    _slowed,
    _heated,
    _supplied,
    _coarse_clock,
)


def _drifted(drift: Drift) -> Complaints:
    if drift.shown and drift.share > DRIFT_LIMIT:
        yield True, f"throttled or disturbed: {FIXED_WORK} drifted by {drift.share:.1%} (limit {DRIFT_LIMIT:.0%})"
    elif drift.share > DRIFT_WARNING:
        kind = "drifted" if drift.shown else "moved, within its noise,"
        yield False, f"{FIXED_WORK} {kind} by {drift.share:.1%}"


def _spread(medians: Sequence[float]) -> Complaints:
    share = spread(medians)
    if share > SPREAD_WARNING:
        yield share > SPREAD_LIMIT, f"launches lie {share:.1%} apart (limit {SPREAD_LIMIT:.0%})"


def _trended(medians: Sequence[float]) -> Complaints:
    change = max(medians) / min(medians) - 1
    # Two standard errors of a rank correlation: the order of a few launches looks like a trend soon enough.
    limit = max(TREND_LIMIT, 2 / math.sqrt(max(1, len(medians) - 1)))
    if abs(trend(medians)) > limit and change > TREND_CHANGE:
        yield True, f"launch after launch went one way: by {change:.1%} in all"
