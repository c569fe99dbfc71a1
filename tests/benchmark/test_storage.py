"""Record files are only ever appended to, and a line that was changed or taken out is noticed."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from edgeexport.benchmark.storage import append, read_records, record_schema
from edgeexport.errors import CorruptFile, RequestError
from tests.benchmark.records import entry, record
from tests.needs import ROOT

SCHEMA = ROOT / "edgeexport" / "records" / "benchmark.schema.json"


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A file of three records."""
    path = tmp_path / "r.json"
    for peak in (1, 2, 3):
        append(path, record(entry(peak_bytes=peak)))
    return path


def test_records_are_read_as_they_were_appended(chain: Path) -> None:
    peaks = [each.entries[0].measurement.memory for each in read_records(chain)]
    assert [memory.peak_bytes for memory in peaks if memory] == [1, 2, 3]
    links = [each.prev_digest for each in read_records(chain)]
    assert links[0] == ""
    assert len(set(links)) == 3


def test_appending_leaves_the_lines_before_as_they_are(chain: Path) -> None:
    before = chain.read_bytes()
    append(chain, record())
    assert chain.read_bytes().startswith(before)


@pytest.mark.parametrize("change", ["first line gone", "middle line gone", "a figure changed", "swapped"])
def test_a_chain_that_is_not_whole_is_refused(chain: Path, change: str) -> None:
    first, second, third = chain.read_bytes().splitlines(keepends=True)
    lines = {
        "first line gone": [second, third],
        "middle line gone": [first, third],
        "a figure changed": [first.replace(b'"peak_bytes":1,', b'"peak_bytes":9,'), second, third],
        "swapped": [first, third, second],
    }[change]
    assert b"".join(lines) != chain.read_bytes()
    chain.write_bytes(b"".join(lines))
    with pytest.raises(CorruptFile):
        read_records(chain)
    with pytest.raises(CorruptFile):
        append(chain, record())


def test_a_half_written_last_line_is_named_and_the_next_step_cuts_just_that(chain: Path) -> None:
    whole = chain.read_bytes()
    append(chain, record())
    chain.write_bytes(chain.read_bytes()[: len(whole) + 99])
    for attempt in (lambda: read_records(chain), lambda: append(chain, record())):
        with pytest.raises(CorruptFile, match=r"line 4, the last, is half written: .* 99 bytes") as caught:
            attempt()
    subprocess.run(shlex.split(caught.value.next_step.split(": ")[1]), check=True)
    assert chain.read_bytes() == whole
    append(chain, record())
    assert len(read_records(chain)) == 4


def test_a_last_line_that_only_lacks_its_end_gets_it(chain: Path) -> None:
    chain.write_bytes(chain.read_bytes()[:-1])
    append(chain, record())
    assert len(read_records(chain)) == 4


def test_a_file_that_was_made_and_not_written_gets_its_first_record(tmp_path: Path) -> None:
    (tmp_path / "r.json").touch()
    append(tmp_path / "r.json", record())
    assert len(read_records(tmp_path / "r.json")) == 1


def test_benches_that_append_at_once_wait_for_each_other(chain: Path) -> None:
    with chain.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(append, chain, record()) for _ in range(4)]
            assert not wait(waiting, timeout=0.3).done
            fcntl.flock(stream, fcntl.LOCK_UN)
            assert wait(waiting, timeout=30).not_done == set()
    assert len(read_records(chain)) == 7


@pytest.mark.parametrize("text", [b"", b"{}\n", b"not json\n", b"[1]\n", b'{"prev_digest": ""}\n'])
def test_a_file_that_holds_no_record_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(text)
    with pytest.raises(CorruptFile):
        read_records(path)


def test_a_newer_schema_and_a_missing_file_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(RequestError, match="no such file"):
        read_records(path)
    path.write_bytes(b'{"schema_version": 99}\n')
    with pytest.raises(RequestError, match="schema 99"):
        read_records(path)


def test_the_published_schema_is_current() -> None:
    if os.environ.get("EDGEEXPORT_UPDATE_GOLDENS"):
        SCHEMA.write_bytes(record_schema())
    assert SCHEMA.read_bytes() == record_schema(), "run the tests with EDGEEXPORT_UPDATE_GOLDENS=1"
