"""Replication: did the figure come out again? Within 5 % in 5 tries, 5 minutes apart, as MLPerf Mobile asks for.

The rule: tries are like measurements of one file in one record file. A record never claims what later tries will show.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import msgspec

from edgeexport.records.benchmark import BenchRecord, Entry, Replication

TRIES, APART = 5, dt.timedelta(minutes=5)
WITHIN = 0.05


def replicated(record: BenchRecord, earlier: Sequence[BenchRecord]) -> BenchRecord:
    """Return a record that says of each entry whether its median latency is that of the tries before it.

    earlier: the records before it in its file, oldest first.
    """
    entries = tuple(
        msgspec.structs.replace(entry, replicable=_replication(_tries(entry, record, earlier=earlier)))
        for entry in record.entries
    )
    return msgspec.structs.replace(record, entries=entries)


def _tries(entry: Entry, record: BenchRecord, *, earlier: Sequence[BenchRecord]) -> list[float]:
    """Median milliseconds of the newest tries, from this one back, each 5 minutes or more before the next."""
    medians, last = _median(entry), dt.datetime.fromisoformat(record.created_utc)
    for older in reversed(earlier):
        made = dt.datetime.fromisoformat(older.created_utc)
        same = [each for each in older.entries if _alike(each, entry)]
        if last - made < APART or not medians or not same or not _median(same[0]):
            continue
        medians += _median(same[0])
        last = made
    return medians[:TRIES]


def _alike(old: Entry, new: Entry) -> bool:
    """Whether both measured the same file, opened alike, under the same conditions."""
    before, now = old.measurement, new.measurement
    return (old.device, before.artifact, before.label, before.conditions) == (
        new.device,
        now.artifact,
        now.label,
        now.conditions,
    )


def _median(entry: Entry) -> list[float]:
    latency = entry.measurement.latency
    return [] if latency is None else [latency.median_ms.value]


def _replication(medians: Sequence[float]) -> Replication:
    wanted = f"{TRIES} tries, {APART.seconds // 60} minutes apart, appended to one record"
    if not medians:
        return Replication("unproven", 0, None, f"no latency was measured; it takes {wanted}")
    spread = max(medians) / min(medians) - 1
    tries = len(medians)
    if spread > WITHIN:
        return Replication("fails", tries, spread, f"not replicable: {tries} tries lie {spread:.1%} apart")
    reason = "" if tries == TRIES else f"{tries} of {wanted}"
    return Replication("unproven" if reason else "holds", tries, spread, reason)
