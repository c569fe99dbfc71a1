"""Counting: what one inference costs in instructions on an emulated CPU, which has no times.

The rule: one thread, and outputs that are the goldens where there are any; else there is no count. It is never called a
latency, and no time or memory stands beside it.
"""

from __future__ import annotations

import msgspec

from edgeexport.devices.emulated import Emulated
from edgeexport.devices.protocol import NoAnswer
from edgeexport.records.benchmark import Energy, Entry
from edgeexport.records.device import DeviceFacts
from edgeexport.records.emulation import EmulatedRun
from edgeexport.records.measurement import Conditions, Measurement, Mode
from edgeexport.validation.emulation import run_emulated
from edgeexport.validation.measure import Subject

NO_TIMES = "not measured: emulated CPUs have no times"


def counted(subject: Subject, device: Emulated, *, mode: Mode) -> Entry:
    """Return the entry of a file on an emulated CPU; one without a count is invalid and says why.

    Raises MachineError or CorruptFile when the emulated CPUs are not there or not intact.
    """
    facts = device.describe()
    try:
        run = run_emulated(subject, device.preset)
        reason = run.reason or run.counts_missing
    except NoAnswer as error:
        run, reason = None, str(error)
    measurement = Measurement(
        subject.digest,
        subject.label,
        _conditions(subject, facts, run=run, mode=mode),
        valid=not reason,
        reasons=(reason,) if reason else (),
        warnings=() if subject.goldens else ("outputs were not checked: no goldens were given",),
    )
    entry = Entry(device.name, subject.path.stat().st_size, measurement, Energy(reason=NO_TIMES), nodes_reason=NO_TIMES)
    return msgspec.structs.replace(entry, counts=None if reason or run is None else run.counts)


def _conditions(subject: Subject, facts: DeviceFacts, *, run: EmulatedRun | None, mode: Mode) -> Conditions:
    """The conditions of a count; how many cores the machine under the emulator has is none of them."""
    return Conditions(
        device=facts.device,
        arch=facts.arch,
        features=facts.features,
        cpu=facts.cpu,
        cores=1,
        runtime=subject.runtime,
        runtime_version=run.runtime_version if run else "",
        threads=1,
        mode=mode,
        bench_digest=facts.bench_digest,
        accelerator=subject.accelerator,
        inputs=subject.inputs_are,
    )
