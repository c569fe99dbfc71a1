"""Records in files: one JSON line for each bench, appended, each line naming the digest of the one before.

The rule: a file is only ever appended to, and read only if its chain is whole. Raw launches lie beside it, in the
folder `FILE.raw`, named by their digest.
"""

from __future__ import annotations

import fcntl
import inspect
import os
import shlex
from pathlib import Path

import msgspec

from edgeexport.benchmark.replication import replicated
from edgeexport.errors import CorruptFile, RequestError
from edgeexport.records.base import digest, file_digest, from_json
from edgeexport.records.benchmark import SCHEMA_VERSION, BenchRecord, Entry
from edgeexport.validation.launches import Launch


def raw_folder(path: Path) -> Path:
    """Return the folder of a record file's raw launches."""
    return path.with_name(path.name + ".raw")


def append(path: Path, record: BenchRecord) -> BenchRecord:
    """Write a record as the next line of a file, new or old; return it with the digest of the line before, and with
    what the records before it say of whether its figures came out again.

    The file is locked meanwhile: another bench that appends to it waits. Raises CorruptFile when it is not a whole
    chain of records.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        lines = _lines(path) if path.stat().st_size else []
        before = [from_json(line, BenchRecord, origin=str(path)) for line in lines]
        chained = msgspec.structs.replace(replicated(record, before), prev_digest=digest(lines[-1]) if lines else "")
        unended = bool(lines) and not path.read_bytes().endswith(b"\n")
        stream.write(b"\n" * unended + msgspec.json.encode(chained, order="sorted") + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    return chained


def read_records(path: Path) -> list[BenchRecord]:
    """Return the records of a file, oldest first, at least one. Raises RequestError, CorruptFile."""
    if not path.is_file():
        raise RequestError(f"{path}: no such file", next_step="make it: edgeexport bench MODEL --out RECORD.json")
    return [from_json(line, BenchRecord, origin=str(path)) for line in _lines(path)]


def raw_launches(path: Path, entry: Entry) -> list[Launch]:
    """Return the launches of an entry of a record file; none when the raw file is not there or not the one meant."""
    raw = raw_folder(path) / f"{entry.raw.removeprefix('sha256:')}.json"
    if not entry.raw or not raw.is_file() or file_digest(raw) != entry.raw:
        return []
    return msgspec.json.decode(raw.read_bytes(), type=list[Launch])


def record_schema() -> bytes:
    """Return the JSON schema of a record, as published in `records/benchmark.schema.json`."""
    schema = msgspec.json.schema(BenchRecord)
    for definition in schema["$defs"].values():
        # Python 3.13 strips the indentation of docstrings, older ones do not.
        definition["description"] = inspect.cleandoc(definition.get("description", ""))
    return msgspec.json.format(msgspec.json.encode(schema, order="sorted"), indent=2) + b"\n"


def _lines(path: Path) -> list[bytes]:
    """The lines of a file, after its chain was followed."""
    content = path.read_bytes()
    lines = content.splitlines()
    _check_end(path, content)
    before = ""
    for number, line in enumerate(lines, 1):
        plain = from_json(line, dict, origin=f"{path}, line {number}")
        version = plain.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise RequestError(
                f"{path}: line {number} has schema {version}, this edgeexport reads up to {SCHEMA_VERSION}",
                next_step="pip install --upgrade edgeexport",
            )
        if plain.get("prev_digest") != before:
            found = plain.get("prev_digest")
            raise CorruptFile(f"{path}: line {number} follows {found!r}, the line before it is {before!r}")
        before = digest(line)
    if not lines:
        raise CorruptFile(f"{path}: holds no record")
    return lines


def _check_end(path: Path, content: bytes) -> None:
    """Raise CorruptFile for a last line that was cut off while it was written: the disk was full, or the power went."""
    *before, last = content.split(b"\n")
    try:
        msgspec.json.decode(last or b"{}")
    except msgspec.DecodeError as error:
        cut = f"truncate -s {len(content) - len(last)} {shlex.quote(str(path))}"
        raise CorruptFile(
            f"{path}: line {len(before) + 1}, the last, is half written: it breaks off after {len(last)} bytes",
            next_step=f"cut it off, and the records before it are read again: {cut}",
        ) from error
