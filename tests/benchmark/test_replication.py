"""A record says of its figures whether they came out again: 5 tries within 5 %, 5 minutes apart."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgeexport.benchmark import append, read_records
from edgeexport.benchmark.replication import replicated
from edgeexport.records.benchmark import BenchRecord, Replication
from edgeexport.records.measurement import Interval
from edgeexport.terminal import show_bench
from tests.benchmark.records import entry, record

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def _try(minutes: float, median: float, **changes: Any) -> BenchRecord:
    latency = msgspec.structs.replace(entry().measurement.latency, median_ms=Interval(median))
    one = record(entry(**{"latency": latency, **changes}))
    made = (START + dt.timedelta(minutes=minutes)).isoformat(timespec="seconds")
    return msgspec.structs.replace(one, created_utc=made)


def _last(tries: Sequence[BenchRecord]) -> Replication:
    return replicated(tries[-1], tries[:-1]).entries[0].replicable


def test_five_tries_within_5_percent_hold_and_four_do_not_yet() -> None:
    tries = [_try(6 * number, 1 + 0.01 * number) for number in range(5)]
    four, five = _last(tries[:4]), _last(tries)
    assert (four.state, four.tries) == ("unproven", 4)
    assert four.reason.startswith("4 of 5 tries, 5 minutes apart")
    assert (five.state, five.tries, five.reason) == ("holds", 5, "")
    assert five.spread == pytest.approx(0.04)


def test_tries_that_lie_apart_are_called_not_replicable(capsys: Any) -> None:
    tries = [_try(0, 1.0), _try(6, 1.1)]
    assert _last(tries).state == "fails"
    show_bench(replicated(tries[1], tries[:1]), (), as_json=False)
    assert "not replicable: 2 tries lie 10.0% apart" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "before",
    [
        _try(2, 1.5),
        _try(0, 1.5, threads=2),
        _try(0, 1.5, artifact="sha256:44"),
        _try(0, 1.5, latency=None, valid=False, reasons=("noise",)),
    ],
    ids=["less than 5 minutes before", "other threads", "another file", "invalid"],
)
def test_what_is_no_like_try_does_not_count(before: BenchRecord) -> None:
    assert (_last([before, _try(6, 1.0)]).tries, _last([before, _try(6, 1.0)]).state) == (1, "unproven")


def test_only_the_newest_five_count() -> None:
    tries = [_try(6 * number, median) for number, median in enumerate((2.0, 1.0, 1.0, 1.0, 1.0, 1.0))]
    assert _last(tries).state == "holds"
    assert _last(tries[:5]).state == "fails"


def test_an_invalid_try_claims_nothing() -> None:
    found = _last([_try(0, 1.0), _try(6, 1.0, latency=None, valid=False, reasons=("noise",))])
    assert (found.state, found.tries, found.spread) == ("unproven", 0, None)


def test_an_appended_record_holds_what_its_file_says(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for number in range(5):
        append(path, _try(6 * number, 1.0))
    assert [each.entries[0].replicable.state for each in read_records(path)] == ["unproven"] * 4 + ["holds"]
