"""Reading a bundle: from one descriptor, front to back, so that what was checked is what is used.

The rule: names come from the manifest only, and a file is written out only as it passes its digest check.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import msgspec

from edgeexport.bundles.container import LOCAL, Mismatch, Reader, name_problem
from edgeexport.errors import CorruptFile, NoSpace, RequestError
from edgeexport.records.base import from_json
from edgeexport.records.manifest import FORMAT_VERSION, Difference, Manifest

MANIFEST = "manifest.json"
LARGEST_MANIFEST = 16 * 2**20
LARGEST_KEPT = 64 * 2**20


@dataclass(frozen=True)
class Contents:
    """A bundle as read: its manifest, the small files asked for, and every file whose digest is not the manifest's."""

    manifest: Manifest
    kept: dict[str, bytes]
    differences: tuple[Difference, ...]


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; a folder, pipe or device is refused without waiting for it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise RequestError(f"{path}: cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RequestError(f"{path}: not a file")
    with os.fdopen(descriptor, "rb") as stream:
        yield stream


def demand_bundle(stream: BinaryIO, *, origin: str) -> None:
    """Raise CorruptFile for a file that begins like no bundle; one that is merely damaged there is let through.

    A bundle's first entry is its manifest, whose name stands 30 bytes from the start.
    """
    head = stream.read(LOCAL.size + len(MANIFEST))
    stream.seek(0)
    name = head[LOCAL.size :]
    alike = sum(found == wanted for found, wanted in zip(name, MANIFEST.encode(), strict=False))
    cut = len(head) < LOCAL.size + len(MANIFEST) and head[:4] == b"PK\x03\x04"
    if not cut and alike < len(MANIFEST) // 2:
        raise CorruptFile(
            f"{origin}: this is no bundle: it does not begin with an entry {MANIFEST!r}",
            next_step="give a .bundle that `edgeexport run` packed; `edgeexport inspect` reads .onnx files",
        )


def read_bundle(
    stream: BinaryIO, *, origin: str, keep: Callable[[str], bool], folder: Path | None = None, only: str | None = None
) -> Contents:
    """Read a whole bundle.

    keep: which files to return as bytes. folder: where to write files to, all of them, or `only` the one of that role
    ("model"). Raises Mismatch where the structure is not a bundle's, RequestError for a newer format.
    """
    reader = Reader(stream)
    text = BytesIO()
    reader.entry(MANIFEST, most=LARGEST_MANIFEST, into=text)
    manifest = decode_manifest(text.getvalue(), origin=origin)
    kept: dict[str, bytes] = {}
    differences: list[Difference] = []
    for name, expected in sorted(manifest.files.items()):
        written = folder is not None and (only is None or name == manifest.model)
        with _sink(name, folder if written else None, kept=keep(name)) as sink:
            digest = reader.entry(name, size=expected.bytes, into=sink)
            if isinstance(sink, BytesIO):
                kept[name] = sink.getvalue()
        if digest != expected.digest:
            differences.append(Difference(name, expected.digest, digest))
    reader.finish()
    if folder is not None and only is None:
        (folder / MANIFEST).write_bytes(text.getvalue())
    return Contents(manifest, kept, tuple(differences))


def decode_manifest(text: bytes, *, origin: str) -> Manifest:
    """Read a manifest strictly. Raises RequestError for a newer format, Mismatch for anything else that is wrong."""
    try:
        plain = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Mismatch(Difference(MANIFEST, "JSON", str(error))) from error
    version = plain.get("format_version") if isinstance(plain, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise RequestError(
            f"{origin}: written in bundle format {version}, this edgeexport reads up to {FORMAT_VERSION}",
            next_step="pip install --upgrade edgeexport",
        )
    if msgspec.json.format(msgspec.json.encode(plain, order="sorted"), indent=2) + b"\n" != text:
        raise Mismatch(Difference(MANIFEST, "canonical JSON (sorted keys, each once, two-space indent)", "other JSON"))
    try:
        manifest = from_json(text, Manifest, origin=MANIFEST)
    except RequestError as error:
        raise Mismatch(Difference(MANIFEST, "a manifest", str(error))) from error
    if manifest.format_version < 1:
        raise Mismatch(Difference("format_version", "1 or more", str(manifest.format_version)))
    problem = name_problem([MANIFEST, *manifest.files])
    if problem:
        raise Mismatch(Difference(MANIFEST, "plain file names", problem))
    return manifest


def unpack(path: Path, folder: Path) -> Manifest:
    """Check a bundle and write its files into the new folder `folder`: all of them, or none and CorruptFile."""
    if folder.exists():
        raise RequestError(f"{folder}: already exists", next_step="unpack into a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with open_regular(path) as stream:
            contents = read_bundle(stream, origin=str(path), keep=lambda _: False, folder=private)
        if contents.differences:
            names = ", ".join(difference.what for difference in contents.differences)
            raise CorruptFile(f"{path}: not what was packed: {names}", next_step=f"edgeexport verify {path}")
        private.rename(folder)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return contents.manifest


@contextmanager
def _sink(name: str, folder: Path | None, *, kept: bool) -> Iterator[BinaryIO | None]:
    if kept:
        yield BytesIO()
    elif folder is not None:
        target = folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as stream:
                yield stream
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NoSpace(
                f"no space left to unpack {name} into {folder}", next_step="free some, or set TMPDIR"
            ) from error
    else:
        yield None
