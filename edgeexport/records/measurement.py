"""Measurement: how fast and how big, under which conditions. Immutable; an invalid one carries reasons, no number."""

from __future__ import annotations

from typing import Literal

from edgeexport.records.base import Record

# smoke: does it run at all. brief: what `run` does, half a second for each launch. quick and official: `bench`.
Mode = Literal["smoke", "brief", "quick", "official"]
Claim = Literal["faster", "slower", "no difference shown", "too few launches to say"]


class Conditions(Record):
    """What must be equal for two measurements to be comparable.

    affinity: processors that the process was confined to; empty: not confined. accelerator: execution provider or
    "cpu", as asked for and had. arena: onnxruntime's memory arena; None for other runtimes.
    """

    device: str
    arch: str
    features: tuple[str, ...]
    cpu: str
    cores: int
    runtime: str
    runtime_version: str
    threads: int
    mode: Mode
    bench_digest: str
    affinity: tuple[int, ...] = ()
    accelerator: str = ""
    arena: bool | None = None
    governor: str = ""
    inputs: str = ""


class Interval(Record):
    """A point estimate with a 95 % interval; low and high are None where too few launches allow none."""

    value: float
    low: float | None = None
    high: float | None = None


class Latency(Record):
    """Milliseconds of one inference. `launch_medians_ms` one for each fresh process, in order.

    load: opening the file. first: the first inference. warm: median of the warm-up. sustained: median of the last
    quarter of each launch. outliers: beyond Tukey's 1.5 IQR in their launch, `severe_outliers` beyond 3; none is
    dropped. spread: how far launches lie apart, as a share of their median. clock_batch: inferences between two
    readings of the clock, the most in any launch; above 1 where the clock is coarse (a browser's): an iteration is then
    their mean. undisturbed: the share of iterations that were timed in the state of the core that counts,
    by reference work between them; it is the one without other users of the core, if such moments were common. Median,
    launch medians, spread and sustained are of these, all else of all.
    """

    median_ms: Interval
    launch_medians_ms: tuple[float, ...]
    iterations: int
    load_ms: float
    first_ms: float
    p90_ms: float | None = None
    p99_ms: float | None = None
    outliers: int = 0
    warm_ms: float | None = None
    sustained_ms: float | None = None
    severe_outliers: int = 0
    mean_ms: float | None = None
    spread: float | None = None
    clock_batch: int = 1
    undisturbed: float = 1.0


class Memory(Record):
    """Peak resident bytes of a launch of its own: the child's VmHWM; `before_load_bytes` is the interpreter's share.

    peak_bytes is the largest of all launches, least_peak_bytes the smallest. pss, private_dirty, swap: the shares at
    the end of the launch with the largest peak, where the system tells them (Linux smaps_rollup).
    """

    peak_bytes: int
    before_load_bytes: int
    method: str = "VmHWM"
    after_load_bytes: int | None = None
    least_peak_bytes: int | None = None
    pss_bytes: int | None = None
    private_dirty_bytes: int | None = None
    swap_bytes: int | None = None


class Moment(Record):
    """What changes while a machine runs, as far as it tells: kHz by processor, degrees Celsius by sensor.

    thermal_status: Android's, 0 none to 6 shutdown; None elsewhere, and where no sensor stands behind it.
    """

    governor: str = ""
    frequencies_khz: tuple[int, ...] = ()
    temperatures_c: dict[str, float] = {}
    load_average: tuple[float, ...] = ()
    battery_percent: int | None = None
    plugged: bool | None = None
    thermal_status: int | None = None


class Measurement(Record):
    """One artifact on one device. `valid` is False with `reasons` when the numbers must not be used.

    sentinel_ms: what the fixed workload beside it took (lower quartile), which tells one day's machine from another's.
    before, after: the machine's state at the first and after the last launch. set_aside: launches of rounds that were
    disturbed, kept in the raw data only.
    """

    artifact: str
    label: str
    conditions: Conditions
    valid: bool
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    latency: Latency | None = None
    memory: Memory | None = None
    sentinel_drift: float | None = None
    sentinel_ms: float | None = None
    before: Moment | None = None
    after: Moment | None = None
    set_aside: int = 0


class Comparison(Record):
    """Candidate / baseline latency from interleaved launches: below 1 is faster."""

    baseline: str
    candidate: str
    ratio: Interval
    claim: Claim
