"""Labelled pictures in a folder or a zip: `<anything>/<class>/<file>`, decoded one at a time.

The rule: a zip is read where it is. Nothing is extracted, sizes are bounded before anything is inflated, and each read
opens the file anew, so threads and forked workers may share one source. EXIF rotation is not applied.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from edgeexport.errors import DataError, MissingExtra, Unlabelled

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 100_000_000
_LOCAL_HEADER = 30
_ENCRYPTED = 0x1


class Store(Protocol):
    """Files by name: a folder, or a zip."""

    path: Path

    def names(self) -> list[str]:
        """Return the names of all files, with forward slashes, relative to the store."""

    def read(self, name: str) -> bytes:
        """Return one file's content. Raises DataError naming it."""


class FolderStore:
    """Files below a folder. Hidden files and folders are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Return the paths of all files below the folder."""
        found = (path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())
        return [path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)]

    def read(self, name: str) -> bytes:
        """Return one file's content."""
        try:
            if (self.path / name).stat().st_size > MAX_FILE_BYTES:
                raise DataError(f"{self.path / name}: larger than {MAX_FILE_BYTES} bytes")
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.path / name}: not readable: {error.strerror}") from error


class ZipStore:
    """Files in a zip, found through its central directory once and then read by position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except (OSError, zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not readable as a zip: {error}") from error
        self.members: Mapping[str, zipfile.ZipInfo] = {
            member.filename: member for member in members if not member.is_dir()
        }

    def names(self) -> list[str]:
        """Return the names of all members but folders and the metadata that macOS adds."""
        return [name for name in self.members if not name.startswith("__MACOSX/")]

    def read(self, name: str) -> bytes:
        """Return one member's content, its size and CRC checked."""
        member = self.members[name]
        where = f"{self.path}: {name}"
        if member.flag_bits & _ENCRYPTED:
            raise DataError(f"{where}: is encrypted")
        if max(member.file_size, member.compress_size) > MAX_FILE_BYTES:
            raise DataError(f"{where}: {member.file_size} bytes, at most {MAX_FILE_BYTES} are read")
        try:
            content = _inflate(self._packed(member), member)
        except (OSError, zlib.error) as error:
            raise DataError(f"{where}: damaged: {error}") from error
        if len(content) != member.file_size or zlib.crc32(content) != member.CRC:
            raise DataError(f"{where}: damaged: size or CRC differs from the zip's directory")
        return content

    def _packed(self, member: zipfile.ZipInfo) -> bytes:
        with self.path.open("rb", buffering=0) as stream:
            stream.seek(member.header_offset)
            header = stream.read(_LOCAL_HEADER)
            if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\3\4"):
                raise zlib.error("no local header")
            names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            stream.seek(names, io.SEEK_CUR)
            return stream.read(member.compress_size)


def _inflate(packed: bytes, member: zipfile.ZipInfo) -> bytes:
    if member.compress_type == zipfile.ZIP_STORED:
        return packed
    if member.compress_type != zipfile.ZIP_DEFLATED:
        raise zlib.error(f"compression method {member.compress_type} is not read here (stored and deflate are)")
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, member.file_size + 1)


class Pictures:
    """Samples from a store: uint8 (height, width, 3) in RGB order, and the index of the class; sorted by name.

    classes: names in index order. Without labels (`labelled=False`) a picture that has no class folder is taken too,
    and targets of unknown classes are None.
    """

    def __init__(self, store: Store, *, classes: Sequence[str] = (), labelled: bool = True) -> None:
        names = [name for name in store.names() if PurePosixPath(name).suffix.lower() in SUFFIXES]
        self.store = store
        self.members = sorted(names)
        if not self.members:
            raise DataError(f"{store.path}: holds no pictures", next_step="expected: <class>/<file>.jpg or .png ...")
        folders = {name: PurePosixPath(name).parent.name for name in self.members}
        if labelled:
            self._check_labels(folders, classes)
        self.classes = tuple(classes) or tuple(sorted(set(folders.values()) - {""}))
        index = {name: position for position, name in enumerate(self.classes)}
        self.targets = [index.get(folders[name]) for name in self.members]

    def _check_labels(self, folders: Mapping[str, str], classes: Sequence[str]) -> None:
        for name, folder in folders.items():
            if not folder:
                raise Unlabelled(
                    f"{self.store.path}: {name} has no label", next_step="put each picture in a folder of its class"
                )
            if classes and folder not in classes:
                raise DataError(f"{self.store.path}: {name}: class {folder!r} is not among the {len(classes)} classes")

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self.members)

    def __getitem__(self, index: int) -> tuple[np.ndarray[Any, Any], int | None]:
        """Return picture `index`, decoded, and its class."""
        name = self.members[index]
        return decode(self.store.read(name), name=f"{self.store.path}: {name}"), self.targets[index]

    def name(self, index: int) -> str:
        """Return the picture's own name for messages."""
        return f"{self.store.path}: {self.members[index]}"


def decode(content: bytes, *, name: str) -> np.ndarray[Any, Any]:
    """Return an encoded picture as uint8 (height, width, 3), RGB. Raises DataError naming the picture."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("pillow", extra="export", purpose="reading pictures") from None
    import numpy as np

    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"{name}: {picture.width}x{picture.height} pixels, at most {MAX_PIXELS} are read")
            if picture.mode[0] in "IF":
                raise DataError(f"{name}: has more than 8 bits a channel", next_step="use an .npz or a function")
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: not readable as a picture: {error}", next_step="repair or remove it") from error
