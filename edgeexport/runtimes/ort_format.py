"""Making `.ort` files repeat byte for byte.

onnxruntime writes the model itself in a fixed order, but the table of kernel types before it in the order of a hash map
that differs from run to run. The rule: only that table is written anew, sorted; the model's bytes stay as they are.
The format: `onnxruntime/core/flatbuffers/schema/ort.fbs`, version 6, and the FlatBuffers internals documentation.
"""

from __future__ import annotations

import importlib
import struct
from dataclasses import dataclass
from typing import Any

from edgeexport.errors import ModelError

_IDENTIFIER = b"ORTM"
# Slots of the table InferenceSession; slot 2 is deprecated.
_ORT_VERSION, _MODEL, _KERNEL_TYPES = 0, 1, 3
# The largest alignment of anything in the file.
_ALIGNMENT = 16

KernelTypes = list[tuple[bytes, list[tuple[bytes, list[tuple[int, int]]]]]]


def canonical(data: bytes) -> bytes:
    """Return the same ORT-format model with its kernel types sorted. Raises ModelError for an unknown layout."""
    reader = _Reader(data)
    root = reader.follow(0)
    model, kinds = reader.field(root, _MODEL), reader.field(root, _KERNEL_TYPES)
    version = reader.field(root, _ORT_VERSION)
    if data[4:8] != _IDENTIFIER or model is None or kinds is None or version is None:
        raise ModelError("onnxruntime wrote an ORT-format file of unknown layout")
    start = reader.lowest(reader.follow(model))
    if reader.follow(kinds) > start or reader.follow(version) < start:
        raise ModelError("onnxruntime wrote an ORT-format file with its parts in an unknown order")
    types = sorted(reader.kernel_types(reader.follow(kinds)))
    from_end = len(data) - reader.follow(model), len(data) - reader.follow(version)
    return _rebuilt(data[start:], types, model=from_end[0], version=from_end[1])


@dataclass(frozen=True)
class _Reader:
    """Just enough of FlatBuffers to read: tables, vectors of tables, strings."""

    data: bytes

    def number(self, code: str, at: int) -> int:
        return int(struct.unpack_from(code, self.data, at)[0])

    def follow(self, at: int) -> int:
        return at + self.number("<I", at)

    def vtable(self, table: int) -> int:
        return table - self.number("<i", table)

    def field(self, table: int, slot: int) -> int | None:
        """Where a field lies; None if it has its default."""
        vtable = self.vtable(table)
        entry = 4 + 2 * slot
        offset = self.number("<H", vtable + entry) if entry < self.number("<H", vtable) else 0
        return table + offset if offset else None

    def lowest(self, table: int) -> int:
        """The first byte of a table: its vtable's, if that lies before it."""
        return min(table, self.vtable(table))

    def tables(self, table: int, slot: int) -> list[int]:
        at = self.field(table, slot)
        if at is None:
            return []
        vector = self.follow(at)
        return [self.follow(vector + 4 + 4 * index) for index in range(self.number("<I", vector))]

    def text(self, table: int, slot: int) -> bytes:
        at = self.field(table, slot)
        if at is None:
            return b""
        string = self.follow(at)
        return self.data[string + 4 : string + 4 + self.number("<I", string)]

    def kernel_types(self, resolver: int) -> KernelTypes:
        """Operator → type name → (input or output, index) of its arguments."""
        return [
            (self.text(entry, 0), [(self.text(kind, 0), self.arguments(kind)) for kind in self.tables(entry, 1)])
            for entry in self.tables(resolver, 0)
        ]

    def arguments(self, kind: int) -> list[tuple[int, int]]:
        pairs = [(self.field(entry, 0), self.field(entry, 1)) for entry in self.tables(kind, 1)]
        return [
            (self.number("<b", side) if side else 0, self.number("<I", index) if index else 0) for side, index in pairs
        ]


def _rebuilt(tail: bytes, kinds: KernelTypes, *, model: int, version: int) -> bytes:
    """Put a new head before `tail`; FlatBuffers are built from the end, so that goes in first.

    model, version: where the table Model and the version string begin, counted from the end of the file.
    """
    builder: Any = importlib.import_module("flatbuffers").Builder(2 * len(tail) + 65536)
    builder.Bytes[len(builder.Bytes) - len(tail) :] = tail
    builder.head = len(builder.Bytes) - len(tail)
    builder.minalign = _ALIGNMENT
    entries = []
    for operator, types in kinds:
        named = []
        for name, arguments in types:
            pairs = [_table(builder, ("int8", side), ("uint32", index)) for side, index in arguments]
            named.append(_table(builder, ("offset", builder.CreateString(name)), ("offset", _vector(builder, pairs))))
        parts = ("offset", builder.CreateString(operator)), ("offset", _vector(builder, named))
        entries.append(_table(builder, *parts))
    resolver = _table(builder, ("offset", _vector(builder, entries)))
    none = ("offset", 0)
    root = _table(builder, ("offset", version), ("offset", model), none, ("offset", resolver))
    builder.Finish(root, file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _table(builder: Any, *fields: tuple[str, int]) -> int:
    """Write a table, its fields in slot order."""
    builder.StartObject(len(fields))
    add = {
        "offset": builder.PrependUOffsetTRelativeSlot,
        "int8": builder.PrependInt8Slot,
        "uint32": builder.PrependUint32Slot,
    }
    for slot, (kind, value) in enumerate(fields):
        add[kind](slot, value, 0)
    return int(builder.EndObject())


def _vector(builder: Any, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())
