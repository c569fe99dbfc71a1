"""What every record shares: frozen, unknown fields refused, one canonical JSON form.

The rule: a record is plain data. It imports neither torch, onnx nor click, and the same record always has the same
bytes, so that digests and cache keys can be taken of it.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, dataclass_transform, get_args, get_origin

import msgspec

from edgeexport.errors import CorruptFile, RecipeError

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all records. Equality is by value; to change one, `msgspec.structs.replace` makes a copy."""


def to_json(record: object) -> bytes:
    """Return the canonical JSON bytes of a record: keys sorted, two-space indent, a final newline."""
    return msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=2) + b"\n"


def from_json(text: bytes, kind: type[T], *, origin: str) -> T:
    """Read a record of type `kind`; `origin` (a path, say) is named when the text is not one."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecipeError) as error:
        raise CorruptFile(f"{origin}: not a {kind.__name__} record: {error}") from error


def digest(content: object) -> str:
    """Return `sha256:<hex>` of bytes, or of the canonical JSON of anything else that records may hold."""
    data = content if isinstance(content, bytes) else msgspec.json.encode(content, order="sorted")
    return "sha256:" + hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """Return `sha256:<hex>` of a file's bytes."""
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def from_table(table: Mapping[str, Any], kind: type[T], *, origin: str) -> T:
    """Turn a parsed TOML table into a record, refusing unknown keys with the nearest known one.

    Raises RecipeError naming `origin`, the key's place and what was expected.
    """
    _refuse_unknown(table, kind, origin=origin, place="")
    try:
        return msgspec.convert(table, type=kind, strict=True)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{origin}: {_plain(str(error))}") from error
    except RecipeError as error:
        raise RecipeError(f"{origin}: {error}", next_step=error.next_step) from error


def _plain(message: str) -> str:
    """msgspec writes `$.model.inputs[...]` and counts from 0; a reader of TOML knows `model.inputs`, and step 1."""
    counted = re.sub(r"\[(\d+)\]", lambda found: f"[{int(found[1]) + 1}]", message)
    return counted.replace("`$.", "`").replace(" - at `$`", "")


def _refuse_unknown(value: object, kind: Any, *, origin: str, place: str) -> None:
    """Walk a table beside its record type and raise at the first key that the type does not have."""
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            for inner in get_args(kind):
                _refuse_unknown(item, inner, origin=origin, place=f"{place}[{index + 1}]")
        return
    if not isinstance(value, Mapping):
        _refuse_unlisted(value, kind, origin=origin, place=place)
        return
    struct = _struct_for(value, kind)
    if struct is None:
        _refuse_untagged(value, kind, origin=origin, place=place)
        return
    config = struct.__struct_config__
    known = [field.encode_name for field in msgspec.structs.fields(struct)]
    allowed = [*known, config.tag_field] if config.tag_field else known
    for key, item in value.items():
        where = f"{place}.{key}" if place else str(key)
        if key not in allowed:
            raise RecipeError(f"{origin}: unknown key `{where}`", next_step=_did_you_mean(str(key), allowed))
        if key in known:
            field = next(f for f in msgspec.structs.fields(struct) if f.encode_name == key)
            _refuse_unknown(item, field.type, origin=origin, place=where)


def _refuse_unlisted(value: object, kind: Any, *, origin: str, place: str) -> None:
    """Raise for a text that is none of those a field lists, with the nearest one."""
    listed = [one for part in (kind, *get_args(kind)) if get_origin(part) is Literal for one in get_args(part)]
    free = any(part is str or part is Any for part in (kind, *get_args(kind)))
    if listed and isinstance(value, str) and value not in listed and not free:
        raise RecipeError(f"{origin}: `{place}` is {value!r}", next_step=_did_you_mean(value, listed))


def _refuse_untagged(value: Mapping[str, Any], kind: Any, *, origin: str, place: str) -> None:
    """Raise for a table that names none of the records it could be (`do = "prun"`), with the nearest one."""
    configs = [option.__struct_config__ for option in get_args(kind) if hasattr(option, "__struct_config__")]
    tags = {str(config.tag): config.tag_field for config in configs if config.tag_field}
    for field in sorted(set(tags.values())):
        if field in value:
            said = str(value[field])
            raise RecipeError(f"{origin}: `{place}.{field}` is {said!r}", next_step=_did_you_mean(said, list(tags)))


def _struct_for(value: Mapping[str, Any], kind: Any) -> Any:
    """The record type that `kind` (a record, or a union holding some) means for this table; None if it has none."""
    options = [kind] if isinstance(kind, type) else list(get_args(kind))
    structs = [option for option in options if isinstance(option, type) and issubclass(option, msgspec.Struct)]
    for struct in structs:
        config = struct.__struct_config__
        if config.tag_field and value.get(config.tag_field) == config.tag:
            return struct
    return structs[0] if len(structs) == 1 else None


def _did_you_mean(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean `{close[0]}`?" if close else "known here: " + ", ".join(f"`{name}`" for name in known)
