"""What the verbs `bench` and `report` do: open, measure, append, judge; read and draw.

The rule: the record is kept before anything is judged, so that a failed gate leaves its figures behind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeexport.benchmark.gating import TOO_FEW, share_of
from edgeexport.benchmark.gating import gate as judged
from edgeexport.benchmark.replication import replicated
from edgeexport.benchmark.run import bench
from edgeexport.benchmark.storage import append, raw_folder, raw_launches, read_records
from edgeexport.benchmark.subjects import opened
from edgeexport.errors import CheckFailed, DeviceError, RequestError
from edgeexport.progress import Progress
from edgeexport.records.benchmark import BenchRecord, Entry, Gated
from edgeexport.workspace import publish


@dataclass(frozen=True)
class Benched:
    """A record, and what the gate said of it."""

    record: BenchRecord
    gated: tuple[Gated, ...]

    def raise_faults(self) -> None:
        """Raise CheckFailed for a regression, DeviceError for a measurement that is invalid or cannot be judged."""
        failed = [f"{each.label}: {each.what} {each.reason}" for each in self.gated if each.state == "fails"]
        if failed:
            raise CheckFailed("regression: " + "; ".join(failed))
        found = [each for each in self.record.entries if not each.measurement.valid]
        unproven = [each for each in self.gated if each.state == "unproven"]
        told = [f"{each.measurement.label}: {'; '.join(each.measurement.reasons)}" for each in found]
        told += [f"{each.label}: {each.what}: {each.reason}" for each in unproven]
        if told:
            steps = dict.fromkeys([*map(_next_step, found), *map(_next_step, unproven)])
            raise DeviceError("not measured: " + " | ".join(told), next_step="; ".join(steps))


def _next_step(fault: Entry | Gated) -> str:
    """What to do about one measurement that is invalid, or one figure that cannot be judged."""
    if fault.device.startswith("emulated:"):
        return "instructions are counted on emulated:armv8.0, armv8.2 and armv8.6-i8mm, for files that run there"
    if isinstance(fault, Gated) and fault.reason == TOO_FEW:
        return "measure both in more launches: --mode quick or official"
    return "stop other programs, or give it more time: --mode official"


def bench_files(
    models: Sequence[Path],
    *,
    gate: str | None,
    against: Path | None,
    out: Path | None,
    progress: Progress,
    **choices: Any,
) -> Benched:
    """Measure files, append the record to `out`, and judge it against the last record of `against`."""
    if (gate is None) != (against is None):
        raise RequestError("a gate needs both --gate and --against", next_step="--gate 5% --against RECORD.json")
    stored = read_records(against)[-1] if against is not None else None
    allowed = share_of(gate) if gate is not None else 0.0
    opening = {name: choices.pop(name) for name in ("threads", "samples", "accelerator")}
    opening["affinity"] = processors(choices.pop("affinity"))
    with tempfile.TemporaryDirectory(prefix="edgeexport-raw-") as spare, opened(models, **opening) as subjects:
        keep = raw_folder(out) if out is not None else Path(spare)
        record = bench(subjects, keep=keep, progress=progress, **choices)
    record = append(out, record) if out is not None else replicated(record, ())
    return Benched(record, judged(record, stored, allowed=allowed) if stored is not None else ())


def processors(text: str) -> tuple[int, ...]:
    """Return the processors that `0,1` or `2-3` names, none for an empty text. Raises RequestError."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        if not (low.isdigit() and (high or low).isdigit()):
            raise RequestError(f"{text!r} is no list of processors", next_step="write it as 0,1 or 2-3")
        found += range(int(low), int(high or low) + 1)
    return tuple(found)


def draw(records: Sequence[Path], out: Path) -> None:
    """Write one page of all records in the files, with the raw launches that lie beside them."""
    from edgeexport.report.bench_page import Drawn, bench_html

    found = [(path, record) for path in records for record in read_records(path)]
    drawn = [
        Drawn(record, entry, raw_launches(path, entry), path.name) for path, record in found for entry in record.entries
    ]
    publish(out, bench_html(drawn).encode())
