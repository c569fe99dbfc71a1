"""The container: a zip with exactly one way to write it.

The rule: the bytes of a bundle follow from its names and contents alone. Entries are stored, not compressed (zlib
versions differ), dated 1980-01-01, of mode 0644, without extra fields or comments. The reader therefore never trusts a
header: it knows from name, size and content what each must be, byte for byte, and refuses the rest.
Source: PKWARE APPNOTE 6.3.10, 4.3.7 (local header), 4.3.12 (central directory), 4.3.16 (end record).
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import BinaryIO

from edgeexport.errors import CorruptFile, RequestError
from edgeexport.records.manifest import Difference

LOCAL = struct.Struct("<IHHHHHIIIHH")
CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
END = struct.Struct("<IHHHHIIH")
VERSION = 20
MADE_BY_UNIX = 3 << 8 | VERSION
DATE_1980 = 1 << 5 | 1
MODE = 0o100644 << 16
LARGEST = 2**32 - 2**20
MOST_ENTRIES = 10_000
LONGEST_NAME = 200
BLOCK = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")


class Mismatch(CorruptFile):
    """A place at which a bundle is not what it must be."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(f"{difference.what}: expected {difference.expected}, found {difference.actual}")
        self.difference = difference


def name_problem(names: Iterable[str]) -> str:
    """Return why these cannot be the names in a bundle, or nothing.

    Names are ASCII, relative, with plain components; none twice (also on a disk that ignores case), none a folder of
    another.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
            return f"{name!r} is not a plain relative name of letters, digits, `.`, `_`, `+`, `-` and `/`"
        if name.lower() in seen:
            return f"{name!r} and {seen[name.lower()]!r} are one name where case is ignored"
        seen[name.lower()] = name
    if len(seen) > MOST_ENTRIES:
        return f"{len(seen)} files, at most {MOST_ENTRIES} are allowed"
    for low, name in seen.items():
        parts = low.split("/")
        clash = next((seen[folder] for end in range(1, len(parts)) if (folder := "/".join(parts[:end])) in seen), None)
        if clash is not None:
            return f"{clash!r} is a file and the folder of {name!r}"
    return ""


def write(entries: Mapping[str, bytes]) -> bytes:
    """Return the bytes of a bundle with these entries, in this order. Raises RequestError when they are too large."""
    problem = name_problem(entries)
    if problem:
        raise RequestError(f"cannot pack: {problem}")
    if sum(len(data) + 2 * len(name) + 100 for name, data in entries.items()) > LARGEST:
        raise RequestError(f"cannot pack: more than {LARGEST} bytes")
    body, central = bytearray(), bytearray()
    for name, data in entries.items():
        checksum = zlib.crc32(data)
        central += _central(name, size=len(data), checksum=checksum, offset=len(body))
        body += _local(name, size=len(data), checksum=checksum)
        body += data
    return bytes(body + central + _end(len(entries), central_size=len(central), central_offset=len(body)))


class Reader:
    """Reads a bundle front to back, once, from one stream; what has been read has been checked.

    Every method raises Mismatch at the first byte that is not what it must be.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._offset = 0
        self._central = bytearray()
        self._names: list[str] = []

    def entry(self, name: str, *, size: int | None = None, most: int = LARGEST, into: BinaryIO | None = None) -> str:
        """Read the next entry, which must be `name` (of `size` bytes, if given), into `into`; return its digest."""
        start = self._offset
        header = self._read(LOCAL.size, f"header of {name}")
        found_size, stored_checksum = self._header_size(header, name)
        if size is not None and found_size != size:
            raise Mismatch(Difference(name, f"{size} bytes", f"{found_size} bytes"))
        if found_size > most:
            raise Mismatch(Difference(name, f"at most {most} bytes", f"{found_size} bytes"))
        found_name = self._read(len(name), f"name of {name}")
        if found_name != name.encode():
            found = found_name.decode("ascii", "backslashreplace")
            raise Mismatch(Difference(name, f"the entry {name!r}", f"the entry {found!r}"))
        digest, checksum = self._content(found_size, name, into=into)
        if header != _local(name, size=found_size, checksum=checksum)[: LOCAL.size]:
            what = "contents with their checksum" if checksum != stored_checksum else "the fixed header"
            raise Mismatch(Difference(name, what, "a damaged or different one"))
        self._central += _central(name, size=found_size, checksum=checksum, offset=start)
        self._names.append(name)
        return digest

    def finish(self) -> None:
        """Check the directory at the end, and that nothing follows it."""
        start = self._offset
        found = self._stream.read(len(self._central) + END.size + 1)
        expected = bytes(self._central) + _end(len(self._names), central_size=len(self._central), central_offset=start)
        if found == expected:
            return
        if found.startswith(expected):
            raise Mismatch(Difference("end of the bundle", "nothing after the directory", "more bytes"))
        if found.startswith(b"PK\x03\x04"):
            raise Mismatch(
                Difference("directory", f"{len(self._names)} entries as the manifest lists", "another entry")
            )
        pairs = enumerate(zip(found, expected, strict=False))
        place = start + next((at for at, (left, right) in pairs if left != right), len(found))
        raise Mismatch(Difference("directory", "what the entries say", f"a difference at byte {place}"))

    def _header_size(self, header: bytes, name: str) -> tuple[int, int]:
        """Check the fields of a local header that do not depend on content; return (size, checksum) as it has them."""
        magic, _, flags, method, _, _, checksum, packed, size, name_length, extra = LOCAL.unpack(header)
        if magic != 0x04034B50:
            raise Mismatch(Difference(name, "a zip entry", "something else, or the end of the entries"))
        if (flags, method, extra) != (0, 0, 0):
            raise Mismatch(
                Difference(name, "a stored entry without flags and extra fields", f"{flags=} {method=} {extra=}")
            )
        if packed != size:
            raise Mismatch(Difference(name, f"{size} stored bytes", f"{packed} stored bytes"))
        if name_length != len(name):
            raise Mismatch(Difference(name, f"the entry {name!r}", f"an entry with a name of {name_length} bytes"))
        return size, checksum

    def _content(self, size: int, name: str, *, into: BinaryIO | None) -> tuple[str, int]:
        hashed, checksum, left = hashlib.sha256(), 0, size
        while left:
            block = self._read(min(left, BLOCK), name)
            hashed.update(block)
            checksum = zlib.crc32(block, checksum)
            left -= len(block)
            if into is not None:
                into.write(block)
        return f"sha256:{hashed.hexdigest()}", checksum

    def _read(self, count: int, what: str) -> bytes:
        block = self._stream.read(count)
        self._offset += len(block)
        if len(block) != count:
            raise Mismatch(Difference(what, f"{count} more bytes", f"the end of the file after {len(block)}"))
        return block


def _local(name: str, *, size: int, checksum: int) -> bytes:
    fields = (0x04034B50, VERSION, 0, 0, 0, DATE_1980, checksum, size, size, len(name), 0)
    return LOCAL.pack(*fields) + name.encode("ascii")


def _central(name: str, *, size: int, checksum: int, offset: int) -> bytes:
    sizes = (checksum, size, size, len(name), 0, 0, 0, 0, MODE, offset)
    return CENTRAL.pack(0x02014B50, MADE_BY_UNIX, VERSION, 0, 0, 0, DATE_1980, *sizes) + name.encode("ascii")


def _end(count: int, *, central_size: int, central_offset: int) -> bytes:
    return END.pack(0x06054B50, 0, 0, count, count, central_size, central_offset, 0)
