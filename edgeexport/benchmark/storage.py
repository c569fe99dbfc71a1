"""Records in files: one JSON line for each bench, appended, each line naming the digest of the one before.

The rule: a file is only ever appended to, and read only if its chain is whole. Raw launches lie beside it, in the
folder `FILE.raw`, named by their digest.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import msgspec

from edgeexport.errors import CorruptFile, RequestError
from edgeexport.records.base import digest, file_digest, from_json
from edgeexport.records.benchmark import SCHEMA_VERSION, BenchRecord, Entry
from edgeexport.validation.launches import Launch


def raw_folder(path: Path) -> Path:
    """Return the folder of a record file's raw launches."""
    return path.with_name(path.name + ".raw")


def append(path: Path, record: BenchRecord) -> BenchRecord:
    """Write a record as the next line of a file, new or old; return it with the digest of the line before.

    Raises CorruptFile when the file is not a whole chain of records.
    """
    lines = _lines(path) if path.exists() else []
    chained = msgspec.structs.replace(record, prev_digest=digest(lines[-1]) if lines else "")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        stream.write(msgspec.json.encode(chained, order="sorted") + b"\n")
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
    lines = path.read_bytes().splitlines()
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
