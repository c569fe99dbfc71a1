"""Workspace: stage results keyed by everything that can change them, published by rename only.

The rule: a folder under `stages/` is either whole or absent. A stage writes into a private folder, everything in it is
flushed to disk, then the folder is renamed into place. A killed run leaves only private folders, which the next owner
removes. One process owns a workspace at a time (an advisory lock; a stale one vanishes with its process); under
`torchrun` that is process 0, which makes and publishes, while the others wait and read, or take part in a training.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import importlib.metadata
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, Self, TypeVar

from edgeexport import ranks
from edgeexport.errors import Busy, CorruptFile, MachineError, NoSpace
from edgeexport.records.base import digest, file_digest, from_json, to_json
from edgeexport.records.target import facts

R = TypeVar("R")

RECORD = "record.json"
INDEX = "stage.json"
KEY_DIGITS = 20
LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # the private names of `publish`


@dataclass(frozen=True)
class Stage(Generic[R]):
    """What a stage left behind: its record, the folder of its files, its key, and whether it was made just now."""

    record: R
    folder: Path
    key: str
    fresh: bool


class Workspace:
    """A folder of stage results. Use as a context manager: entering takes the lock, leaving gives it back."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.fresh_stages: list[str] = []
        self._lock: IO[str] | None = None
        self._digests: dict[str, list[Any]] = {}
        self._digests_changed = False

    def __enter__(self) -> Self:
        with _disk_errors(self.path):
            for name in ("stages", "tmp"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            if ranks.first():
                self._lock = _take_lock(self.path / "lock")
                for leftover in (self.path / "tmp").iterdir():
                    shutil.rmtree(leftover, ignore_errors=True)
            ranks.agreed(None)
        self._digests = _read_json(self.path / "digests.json")
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._digests_changed and ranks.first():
                publish(self.path / "digests.json", json.dumps(self._digests, sort_keys=True).encode())
        finally:
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def digest(self, path: Path) -> str:
        """Return the sha256 of a file, remembered by its path, size, modification time and inode."""
        state = path.stat()
        known = self._digests.get(str(path))
        stamp = [state.st_size, state.st_mtime_ns, state.st_ino]
        if known is not None and known[:3] == stamp:
            return str(known[3])
        fresh = file_digest(path)
        self._digests[str(path)] = [*stamp, fresh]
        self._digests_changed = True
        return fresh

    def stage(
        self,
        name: str,
        *,
        key: Mapping[str, Any],
        make: Callable[[Path], R],
        kind: type[R],
        together: bool = False,
        stale: Callable[[R], bool] | None = None,
    ) -> Stage[R]:
        """Return the stored result of this key, or make it: `make(folder)` writes files there and returns the record.

        The key is completed with edgeexport's own source digest. A stored stage whose files no longer have the
        digests they were published with is made again. together: under `torchrun` all processes run `make`, as a
        training needs; what process 0 made of it is kept, and read by the others. stale: asked in process 0 whether a
        stored result must not be used again.
        """
        full = ranks.agreed(_full(name, key))
        folder = self.path / "stages" / _folder(name, full)
        with _disk_errors(self.path):
            record = self._stored(folder, kind) if ranks.first() and folder.exists() else None
            if record is not None and stale is not None and stale(record):
                record = None
            if ranks.agreed(record is not None):
                if ranks.first():  # a kill may have come between publishing the stage and this
                    shutil.rmtree(self.unfinished(name, key=key), ignore_errors=True)
                return Stage(self._followed(record, folder, kind=kind), folder, full, fresh=False)
            self.fresh_stages.append(name)
            if together and not ranks.first():
                self._taken_part(folder, make)
            with contextlib.nullcontext() if together else ranks.told():
                record = self._make_first(folder, make, together=together) if ranks.first() else None
            if record is not None:
                shutil.rmtree(self.unfinished(name, key=key), ignore_errors=True)
            ranks.agreed(None)
            return Stage(self._followed(record, folder, kind=kind), folder, full, fresh=True)

    def _followed(self, record: R | None, folder: Path, *, kind: type[R]) -> R:
        """Return a stage's record; a process that did not make it reads what process 0 has published."""
        record = record if record is not None else self._stored(folder, kind)
        if record is None:
            raise MachineError(
                f"{folder} is not there for process {ranks.index()}, or damaged",
                next_step="give all processes of torchrun the same --workspace, on a file system that they share",
            )
        return record

    def unfinished(self, name: str, *, key: Mapping[str, Any]) -> Path:
        """Return a folder for what a stage keeps of its work so far; it outlives a kill, and belongs to this key.

        It is removed when the stage of this very name and key is published, or found published already.
        """
        return self.path / "unfinished" / _folder(name, _full(name, key))

    def begun(self, name: str, *, key: Mapping[str, Any]) -> bool:
        """Whether a stage of this name and key has a result, or has kept something of its work so far."""
        folder = _folder(name, _full(name, key))
        return any((self.path / part / folder).exists() for part in ("stages", "unfinished"))

    def forget(self, stage: Stage[Any]) -> None:
        """Remove a stored result that must not be used again, such as an invalid measurement."""
        shutil.rmtree(stage.folder, ignore_errors=True)

    def _stored(self, folder: Path, kind: type[R]) -> R | None:
        """Read a published stage; None when any of its files is missing or changed."""
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            intact = all(self.digest(folder / name) == value for name, value in index.items())
            return from_json((folder / RECORD).read_bytes(), kind, origin=str(folder / RECORD)) if intact else None
        except (OSError, ValueError, AttributeError, CorruptFile):
            return None

    def _taken_part(self, folder: Path, make: Callable[[Path], Any]) -> None:
        """Do what process 0 does for a stage, and keep nothing of it."""
        private = self.path / "tmp" / f"{folder.name}-{uuid.uuid4().hex[:8]}"
        private.mkdir(parents=True)
        try:
            make(private)
        finally:
            shutil.rmtree(private, ignore_errors=True)

    def _make_first(self, folder: Path, make: Callable[[Path], R], *, together: bool) -> R:
        """Make a stage as process 0 does: a training with the others, all else as the only one."""
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.nullcontext() if together else ranks.alone():
            return self._make(folder, make)

    def _make(self, folder: Path, make: Callable[[Path], R]) -> R:
        private = self.path / "tmp" / f"{folder.name}-{uuid.uuid4().hex[:8]}"
        private.mkdir(parents=True)
        try:
            record = make(private)
            (private / RECORD).write_bytes(to_json(record))
            files = sorted(path for path in private.rglob("*") if path.is_file())
            index = {path.relative_to(private).as_posix(): file_digest(path) for path in files}
            (private / INDEX).write_text(json.dumps(index, sort_keys=True), encoding="utf-8")
            _flush_tree(private)
            private.rename(folder)
            _flush(folder.parent)
        finally:
            shutil.rmtree(private, ignore_errors=True)
        return record


def _full(name: str, key: Mapping[str, Any]) -> str:
    return digest({"stage": name, "key": key, "tool": tool_digest()})


def _folder(name: str, full: str) -> str:
    return f"{name}-{full.removeprefix('sha256:')[:KEY_DIGITS]}"


def publish(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the new one: private temporary file, fsync, rename.

    Missing folders are made. Raises NoSpace when the disk is full, MachineError when the place cannot be used.
    """
    with _disk_errors(path.parent, size=len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        private = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with private.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            private.replace(path)
            _flush(path.parent)
        finally:
            private.unlink(missing_ok=True)


def usable(folder: Path) -> None:
    """Make `folder` and prove that a file can be written and renamed in it; the file does not stay.

    What a killed `publish` left there is removed. Raises NoSpace or MachineError with the path and the reason.
    """
    with _disk_errors(folder):
        for leftover in folder.glob(".*.tmp") if folder.is_dir() else ():
            if LEFTOVER.fullmatch(leftover.name):
                leftover.unlink(missing_ok=True)
    probe = folder / f".{uuid.uuid4().hex}.probe"
    publish(probe, b"probe")
    with _disk_errors(folder):
        probe.unlink()


@functools.cache
def tool_digest() -> str:
    """Return the digest of edgeexport's own sources, so that a changed tool never answers from an old cache."""
    package = Path(__file__).parent
    sources = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    content = {name: file_digest(path) for name, path in sources.items() if "__pycache__" not in name}
    content["device_bench/bench.py"] = digest((facts("device_bench") / "bench.py").read_bytes())
    return digest(content)


@functools.cache
def version_of(package: str) -> str:
    """Return the installed version of a distribution without importing it; "absent" when there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def versions(*packages: str) -> dict[str, str]:
    """Return distribution -> installed version, for cache keys and records."""
    return {package: version_of(package) for package in packages}


@contextmanager
def _disk_errors(place: Path, *, size: int | None = None) -> Iterator[None]:
    """Turn what the system says of a place into NoSpace (with what is free there) or MachineError (with the reason).

    A pipe that nobody reads is no matter of the place, and what has no number is a library's own error: both pass.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            existing = next(folder for folder in (place, *place.parents) if folder.exists())
            free = shutil.disk_usage(existing).free / 1e6
            asked = "" if size is None else f" for {size} bytes"
            raise NoSpace(
                f"no space left{asked} in {place} ({free:.1f} MB free)",
                next_step="free some, or choose another --workspace or --out",
            ) from error
        # Making a folder where a file lies says only that something "exists".
        reason = "there is a file of that name" if isinstance(error, FileExistsError) else error.strerror
        raise MachineError(
            f"{error.filename or place} cannot be used: {reason}",
            next_step="choose a folder that can be written as --out and --workspace",
        ) from error


def _take_lock(path: Path) -> IO[str]:
    """Lock the workspace for this process, or raise Busy with the owner's pid and since when."""
    stream = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.seek(0)
        owner = stream.read().strip() or "an unknown process"
        stream.close()
        raise Busy(
            f"{path.parent} is in use by {owner}", next_step="wait for it, or choose another --workspace"
        ) from None
    stream.seek(0)
    stream.truncate()
    stream.write(f"pid {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    stream.flush()
    return stream


def _read_json(path: Path) -> dict[str, list[Any]]:
    """Read the digest memory; a missing or damaged one is simply forgotten, since it can be made again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if path.is_file() or path.is_dir():
            _flush(path)
