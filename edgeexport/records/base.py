"""What every record shares: frozen, unknown fields refused, one canonical JSON form.

The rule: a record is plain data. It imports neither torch, onnx nor click, and the same record always has the same
bytes, so that digests and cache keys can be taken of it.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping
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

    Raises RecipeError naming `origin`, and of every mistake the key's place and what was expected.
    """
    mistakes = list(_mistakes(table, kind, place=""))
    if len(mistakes) > 1:
        told = [f"{text}; {step}" if step else text for text, step in mistakes]
        raise RecipeError(f"{origin}: {len(told)} mistakes" + "".join(f"\n  {line}" for line in told))
    if mistakes:
        text, step = mistakes[0]
        raise RecipeError(f"{origin}: {text}", next_step=step)
    return msgspec.convert(table, type=kind, strict=True)


def listed(given: Any) -> list[Any]:
    """Return a list of what a caller gave: a lone text, path or record is a list of one, never its letters."""
    return [given] if isinstance(given, str | Path | Record) else list(given)


Mistake = tuple[str, str]


def _mistakes(value: object, kind: Any, *, place: str) -> Iterator[Mistake]:
    """Walk a value beside its type; yield (what is wrong, the next step) of each part, else of the whole."""
    found = list(_inner(value, kind, place=place))
    yield from found
    if found:
        return
    try:
        msgspec.convert(value, type=kind, strict=True)
    except msgspec.ValidationError as error:
        yield _located(str(error), place), ""
    except RecipeError as error:
        yield str(error), error.next_step


def _inner(value: object, kind: Any, *, place: str) -> Iterator[Mistake]:
    """Yield the mistakes of a value that can be told by name, and those of what is in it."""
    if isinstance(value, list | tuple):
        alike = get_args(kind)[0] if get_args(kind)[1:] == (Ellipsis,) else None
        for index, item in enumerate(value if alike is not None else ()):
            yield from _mistakes(item, alike, place=f"{place}[{index + 1}]")
    elif not isinstance(value, Mapping):
        yield from _unlisted(value, kind, place=place)
    elif (struct := _struct_for(value, kind)) is not None:
        yield from _of_fields(value, struct, place=place)
    else:
        yield from _untagged(value, kind, place=place)


def _of_fields(value: Mapping[str, Any], struct: Any, *, place: str) -> Iterator[Mistake]:
    config, fields = struct.__struct_config__, msgspec.structs.fields(struct)
    types = {field.encode_name: field.type for field in fields}
    allowed = [*types, config.tag_field] if config.tag_field else list(types)
    for key, item in value.items():
        where = f"{place}.{key}" if place else str(key)
        if key not in allowed:
            yield f"unknown key `{where}`", _did_you_mean(str(key), allowed)
        elif key in types:
            yield from _mistakes(item, types[key], place=where)


def _located(message: str, place: str) -> str:
    """msgspec writes `$.inputs[...]` and counts from 0; a reader of TOML knows `model.inputs`, and step 1."""
    counted = re.sub(r"\[(\d+)\]", lambda found: f"[{int(found[1]) + 1}]", message).replace(" | null`", "`")
    if place:
        return counted.replace("`$", f"`{place}", 1) if " - at `$" in counted else f"{counted} - at `{place}`"
    return counted.replace("`$.", "`").replace(" - at `$`", "")


def _unlisted(value: object, kind: Any, *, place: str) -> Iterator[Mistake]:
    """A text that is none of those a field lists, with the nearest one."""
    known = [one for part in (kind, *get_args(kind)) if get_origin(part) is Literal for one in get_args(part)]
    free = any(part is str or part is Any for part in (kind, *get_args(kind)))
    if known and isinstance(value, str) and value not in known and not free:
        yield f"`{place}` is {value!r}", _did_you_mean(value, known)


def _untagged(value: Mapping[str, Any], kind: Any, *, place: str) -> Iterator[Mistake]:
    """A table that names none of the records it could be (`do = "prun"`), with the nearest one."""
    tags = _tags(kind)
    for field in sorted(set(tags.values())):
        if field in value:
            said = str(value[field])
            yield f"`{place}.{field}` is {said!r}", _did_you_mean(said, list(tags))


def _tags(kind: Any) -> dict[str, str]:
    """Tag -> the key that holds it, of the records that a union could be."""
    configs = [option.__struct_config__ for option in get_args(kind) if hasattr(option, "__struct_config__")]
    return {str(config.tag): config.tag_field for config in configs if config.tag_field}


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
