"""External tensor data, read only from regular files inside the model's own folder.

The rule: the name in the file is hostile until proven a plain relative path; every path component is opened without
following links, and what was checked is what is read (one descriptor, no second look by path).
Source of the fields: ONNX `docs/ExternalData.md`.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edgeexport.errors import CorruptFile
from edgeexport.graph.structure import MAX_BYTES, is_external, stored_bytes
from edgeexport.graph.walk import tensors

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

_KEYS = ("location", "offset", "length", "checksum")


def read_external_data(model: ModelProto, root: Path, *, origin: str, model_file: tuple[int, int]) -> None:
    """Move external data into the model, in place. `model_file` is the (device, inode) of the .onnx itself.

    Raises CorruptFile naming the tensor, the location and the reason.
    """
    waiting = [(where, tensor) for where, tensor in tensors(model) if is_external(tensor)]
    total = sum(stored_bytes(tensor) for _, tensor in waiting)
    if total > MAX_BYTES:
        raise CorruptFile(f"{origin}: external data is {total} bytes in all, the limit is {MAX_BYTES}")
    for where, tensor in waiting:
        _read_tensor(tensor, root, where=f"{origin}: {where}", model_file=model_file)


def locations(model: ModelProto) -> tuple[str, ...]:
    """Return the names of the files that a model's external data is said to lie in, sorted, unchecked."""
    waiting = (tensor for _, tensor in tensors(model) if is_external(tensor))
    return tuple(sorted({entry.value for each in waiting for entry in each.external_data if entry.key == "location"}))


def regular_stream(descriptor: int, *, where: str) -> BinaryIO:
    """Take over an open descriptor as a stream, refusing folders, FIFOs and devices."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorruptFile(f"{where}: not a regular file")
    return os.fdopen(descriptor, "rb")


def _read_tensor(tensor: TensorProto, root: Path, *, where: str, model_file: tuple[int, int]) -> None:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    if len(fields) != len(tensor.external_data) or not set(fields) <= set(_KEYS) or "location" not in fields:
        found = [entry.key for entry in tensor.external_data]
        raise CorruptFile(f"{where}: external data has the keys {found}, must be `location` and at most {_KEYS[1:]}")
    if tensor.data_type == type(tensor).STRING:
        raise CorruptFile(f"{where}: strings cannot lie in external data")
    where = f"{where}: external data at {fields['location']!r}"
    parts = _plain_parts(fields["location"], where)
    needed = stored_bytes(tensor)
    offset = _whole_number(fields.get("offset", "0"), key="offset", where=where)
    length = _whole_number(fields.get("length", str(needed)), key="length", where=where)
    if length != needed:
        raise CorruptFile(f"{where}: length {length}, but shape {list(tensor.dims)} needs {needed} bytes")
    data = _read_confined(root, parts, offset=offset, length=length, where=where, model_file=model_file)
    tensor.raw_data = data
    tensor.data_location = type(tensor).DEFAULT
    del tensor.external_data[:]


def _plain_parts(location: str, where: str) -> list[str]:
    """Split a location into path components, refusing everything but a plain relative path."""
    reason = ""
    if not location or "\0" in location:
        reason = "an empty name or one with a NUL character"
    elif "\\" in location or re.match(r"^[A-Za-z]:", location):
        reason = "a backslash or a drive letter"
    elif location.startswith("/"):
        reason = "an absolute path"
    elif any(part in ("", ".", "..") for part in location.split("/")):
        reason = "`..`, `.` or an empty part"
    if reason:
        raise CorruptFile(f"{where}: {reason} is not allowed, the data must lie in the model's own folder")
    return location.split("/")


def _whole_number(text: str, *, key: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise CorruptFile(f"{where}: {key} {text!r} is not a whole number from 0 on")
    return int(text)


def _read_confined(
    root: Path, parts: list[str], *, offset: int, length: int, where: str, model_file: tuple[int, int]
) -> bytes:
    with regular_stream(_open_below(root, parts, where=where), where=where) as stream:
        facts = os.fstat(stream.fileno())
        if facts.st_nlink > 1:
            raise CorruptFile(f"{where}: the file has {facts.st_nlink} hard links, its other names may lie elsewhere")
        if (facts.st_dev, facts.st_ino) == model_file:
            raise CorruptFile(f"{where}: that is the model file itself")
        if offset + length > facts.st_size:
            raise CorruptFile(f"{where}: bytes {offset} to {offset + length} of a file of {facts.st_size} bytes")
        stream.seek(offset)
        data = stream.read(length)
    if len(data) != length:
        raise CorruptFile(f"{where}: {length} bytes asked for, {len(data)} read")
    return data


def _open_below(root: Path, parts: list[str], *, where: str) -> int:
    """Open root/parts component by component, refusing links, and return the descriptor of the last."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        reason = "missing, a link, or not readable"
        raise CorruptFile(f"{where}: {reason} ({error.strerror})") from error
    finally:
        os.close(folder)
