"""A recipe as text: the TOML that `load_recipe` reads back as the same recipe.

The rule: only what differs from the defaults is written; what lives in Python alone cannot be, and is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from edgeexport.errors import RecipeError
from edgeexport.records.base import Record
from edgeexport.records.recipe import Preprocess, Recipe

# How the name begins that stands for a live network while it is on the road: no "module:function" begins so.
LIVE = "<live>:"
BARE = re.compile(r"[A-Za-z0-9_-]+")
Table = dict[str, Any]
# What may be compared with a default; an array answers with an array.
PLAIN = (Record, Mapping, list, tuple, str, int, float, type(None))


def recipe_toml(recipe: Recipe) -> str:
    """Return a recipe as TOML, `folder` and `name` included. Raises RecipeError for live objects and their names."""
    lines = [f"{name} = {toml_value(getattr(recipe, name))}" for name in ("name", "folder")]
    if isinstance(recipe.preprocess, str):
        lines.append(f"preprocess = {toml_value(recipe.preprocess)}")
    tables = {"model": recipe.model, "data": recipe.data, "limits": recipe.limits}
    if isinstance(recipe.preprocess, Preprocess):
        tables["preprocess"] = recipe.preprocess
    for name, record in tables.items():
        if told := _said(record, name):
            lines += ["", f"[{name}]", *_lines(told)]
    for number, step in enumerate(recipe.step, 1):
        lines += ["", "[[step]]", *_lines(_said(step, f"step {number}"))]
    return "\n".join(lines) + "\n"


def _lines(table: Table) -> Iterator[str]:
    return (f"{_key(name)} = {toml_value(value)}" for name, value in table.items())


def _said(record: Any, place: str) -> Table:
    """What a record says beyond its defaults, nested records as tables."""
    config = record.__struct_config__
    found: Table = {config.tag_field: config.tag} if config.tag_field else {}
    for field in msgspec.structs.fields(record):
        value = getattr(record, field.name)
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if not (isinstance(value, PLAIN) and value == default):
            found[field.encode_name] = _plain(value, f"{place}.{field.name}")
    return found


def _plain(value: Any, place: str) -> Any:
    if isinstance(value, Record):
        return _said(value, place)
    if isinstance(value, Mapping):
        return {str(name): _plain(each, f"{place}.{name}") for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, place) for each in value]
    named = isinstance(value, str) and value.startswith(LIVE)
    if isinstance(value, bool | int | float | str) and not named:
        return value
    raise RecipeError(
        f"`{place}` is a live {'network' if named else type(value).__name__}: it cannot be written into a recipe",
        next_step='name it as "module:function"',
    )


def toml_value(value: object) -> str:
    """Return a value as a recipe or a target would spell it; what is None in a table is left out."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(str(key))} = {toml_value(each)}" for key, each in value.items() if each is not None)
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return str(value) if isinstance(value, int | float) else json.dumps(str(value), ensure_ascii=False)


def _key(name: str) -> str:
    return name if BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False)
