"""tune: the threads, arena, optimization level and processors with which a bundle is fastest on a device.

The rule: one setting at a time beside those in force, and a change is kept only if it is claimed "faster" (interval and
least effect). The model file stays as it is; what changes is how it is opened, in a new bundle that passes `verify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from edgeexport import devices
from edgeexport.benchmark.subjects import opened
from edgeexport.bundles.pack import reopened
from edgeexport.devices.protocol import Device
from edgeexport.errors import DeviceError, RequestError
from edgeexport.progress import Progress, details, silent
from edgeexport.records.benchmark import Trial, Tuning
from edgeexport.records.device import DeviceFacts
from edgeexport.records.measurement import Measurement, Mode
from edgeexport.validation.measure import Subject, measure

AFFINITIES = "session.intra_op_thread_affinities"
LEVELS = ("basic", "extended", "layout", "all")


@dataclass(frozen=True)
class Choice:
    """One value of one setting: the subject as it would be opened with it."""

    setting: str
    value: str
    subject: Subject


def tune(
    bundle: Path | str, *, on: str = "local", out: Path | str, mode: Mode = "brief", progress: Progress = silent
) -> Tuning:
    """Try settings on a device and, if any is faster than the bundle's own, write the bundle `out` with the best.

    Raises DeviceError when the bundle itself has no valid measurement there, RequestError when `bundle` is no bundle.
    """
    path, out, device = Path(bundle), Path(out), devices.get(on)
    if path.suffix != ".bundle":
        raise RequestError(f"{path}: settings are written into a bundle", next_step="give a .bundle file")
    facts = device.describe()
    with opened([path]) as subjects:
        best, trials, measured = _search(subjects[0], device, facts=facts, mode=mode, progress=progress)
    changed = any(trial.kept for trial in trials)
    tuning = Tuning(
        str(path), on, tuple(trials), best.threads, dict(best.options), changed, str(out) if changed else ""
    )
    if changed:
        # What is kept in the bundle names no folders: equal inputs give equal bytes wherever they lie.
        kept = msgspec.structs.replace(tuning, bundle=path.name, out=out.name)
        reopened(path, out, threads=best.threads, options=best.options, measurement=measured, record=kept)
    return tuning


def _search(
    subject: Subject, device: Device, *, facts: DeviceFacts, mode: Mode, progress: Progress
) -> tuple[Subject, list[Trial], Measurement | None]:
    """Improve one setting after the other; return the best subject, what was tried, and the best's measurement."""
    best, trials, kept = subject, list[Trial](), None
    for setting in _settings(subject, facts):
        choices = list(_choices(setting, best, facts=facts))
        if not choices:
            continue
        progress(f"tune {setting}: {', '.join(choice.value for choice in choices)}", None)
        named = [replace(choice.subject, label=choice.value) for choice in choices]
        measured, compared = measure([best, *named], device=device, mode=mode, progress=details(progress))
        if not measured[0].valid:
            why = "; ".join(measured[0].reasons)
            advice = "try again when the machine is quieter, or measure for longer: --mode quick or official"
            raise DeviceError(f"no valid measurement of the bundle itself: {why}", next_step=advice)
        found = list(_tried(choices, measured[1:], compared=iter(compared)))
        faster = [index for index, trial in enumerate(found) if trial.claim == "faster"]
        if faster:
            index = min(faster, key=lambda each: _ratio(found[each]))
            best, kept = replace(choices[index].subject, label=subject.label), measured[index + 1]
            found[index] = msgspec.structs.replace(found[index], kept=True)
        trials += found
    return best, trials, kept


def _tried(choices: Sequence[Choice], measured: Sequence[Measurement], *, compared: Iterator[Any]) -> Iterator[Trial]:
    """A trial for each choice: its ratio to the settings in force, or why there is none."""
    for choice, measurement in zip(choices, measured, strict=True):
        if not measurement.valid:
            yield Trial(choice.setting, choice.value, None, None, False, "; ".join(measurement.reasons))
        else:
            comparison = next(compared)
            yield Trial(choice.setting, choice.value, comparison.ratio, comparison.claim, False)


def _ratio(trial: Trial) -> float:
    return trial.ratio.value if trial.ratio is not None else float("inf")


def _settings(subject: Subject, facts: DeviceFacts) -> tuple[str, ...]:
    """What can be set. Processors are worth choosing only where they are not alike."""
    if subject.runtime != "ort":
        return ("threads",)
    uneven = ("processors",) if len(set(facts.capacities)) > 1 else ()
    return ("threads", *uneven, "optimization level", "arena")


def _choices(setting: str, subject: Subject, *, facts: DeviceFacts) -> Iterator[Choice]:
    """The values of a setting other than the one in force."""
    options = dict(subject.options)
    if setting == "threads":
        counts = {1, 2, 4, 8, facts.cores} - {subject.threads}
        for count in sorted(each for each in counts if each <= facts.cores):
            yield Choice(setting, str(count), replace(subject, threads=count, options=_unpinned(options)))
    elif setting == "arena":
        wanted = not options.get("enable_cpu_mem_arena", True)
        value = "on" if wanted else "off"
        yield Choice(setting, value, replace(subject, options={**options, "enable_cpu_mem_arena": wanted}))
    elif setting == "optimization level" and subject.path.suffix == ".onnx":
        for level in LEVELS:
            if level != options.get("graph_optimization_level", "all"):
                yield Choice(setting, level, replace(subject, options={**options, "graph_optimization_level": level}))
    elif setting == "processors" and subject.threads > 1:
        strongest = sorted(range(len(facts.capacities)), key=lambda core: -facts.capacities[core])[: subject.threads]
        # One entry for each thread of the pool; the caller's own thread is not the pool's. Numbers begin with 1.
        places = ";".join(str(core + 1) for core in sorted(strongest[1:]))
        entries = {**options.get("config_entries", {}), AFFINITIES: places}
        yield Choice(setting, places, replace(subject, options={**options, "config_entries": entries}))


def _unpinned(options: dict[str, Any]) -> dict[str, Any]:
    """Options without the places of threads, which hold for one number of threads only."""
    if "config_entries" not in options:
        return options
    entries = {key: value for key, value in options["config_entries"].items() if key != AFFINITIES}
    return {**options, "config_entries": entries}
