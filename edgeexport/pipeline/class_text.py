"""The text of a network's classes: what decides how it trains, where the graph that it is exported as does not show it.

The rule: what is seen is code and plain values. Whatever else a class uses (a config object, what another module holds)
counts by its type alone, so that a network is known again in another process.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from edgeexport.pipeline.callables import PLAIN, array_text, code_text, held, names_in, source_text

if TYPE_CHECKING:
    from torch import nn


def class_text(module: nn.Module) -> str:
    """Return text that changes with the code of a network's classes and with what its parts hold besides weights.

    Seen of every class outside torch that a part is of, bases included: its own text, its plain attributes, the code of
    its methods with defaults and captured values, and what these name: functions and classes of their own module,
    numbers, tables and arrays there, and functions of other modules, which are not followed. Seen of every part: plain
    attributes, arrays, functions. Not seen: what is reached through a module or an object (`helpers.noise`,
    `self.config.rate`), strings beside a class, which may be another in each process, and hooks.
    """
    from torch import nn

    text, common = _Text(), vars(nn.Module()).keys()
    for name, part in module.named_modules():
        text.parts.append(f"part {name}")
        text.kind(type(part))
        for key, value in sorted(vars(part).items()):
            if key not in common:
                text.member(key, value)
    return "\n".join(text.parts)


@dataclass
class _Text:
    """Text in the making. seen: what was written, by identity: it is written once, and may mention itself."""

    parts: list[str] = field(default_factory=list)
    seen: dict[int, tuple[int, Any]] = field(default_factory=dict)

    def kind(self, kind: type) -> None:
        """Write a class and its bases."""
        for each in kind.__mro__:
            if each is object or _of_torch(each) or self._again(each):
                continue
            self.parts += [each.__qualname__, source_text(each)]
            for name, value in vars(each).items():
                if _function(value) or not name.startswith("__"):
                    self.member(name, value)

    def member(self, name: str, value: Any) -> None:
        """Write a named value."""
        self.parts.append(name)
        self._value(value)

    def _value(self, value: Any) -> None:
        """Write a plain value, a container, an array or a function; anything else by its type."""
        function = _function(value)
        if function is not None:
            self._called(function)
        elif isinstance(value, PLAIN):
            self.parts.append(f"{type(value).__name__} {value!r}")
        elif isinstance(value, set | frozenset):
            self.parts.append(f"set {sorted(repr(each) if isinstance(each, PLAIN) else _name(each) for each in value)}")
        elif isinstance(value, tuple | list | dict):
            self._container(value)
        else:
            self.parts.append(array_text(value) or _name(value))

    def _container(self, value: Any) -> None:
        if isinstance(value, list | dict) and self._again(value):
            return
        self.parts.append(f"{type(value).__name__} of {len(value)}")
        for each in value.items() if isinstance(value, dict) else value:
            self._value(each)

    def _called(self, function: FunctionType) -> None:
        """Write a function and what it uses: its defaults, what it captured, what it names."""
        if _of_torch(function):
            self.parts.append(f"{function.__module__}.{function.__qualname__}")
        elif not self._again(function):
            self.parts += [function.__qualname__, code_text(function.__code__)]
            self._value((function.__defaults__, function.__kwdefaults__, vars(function)))
            self._value(tuple(held(cell) for cell in function.__closure__ or ()))
            space = function.__globals__
            for name in sorted(names_in(function.__code__) & space.keys()):
                self._named(name, space[name], home=function.__module__)

    def _named(self, name: str, value: Any, *, home: str) -> None:
        """Write what a function finds in its module. home: that module."""
        if isinstance(value, FunctionType) and value.__module__ != home:
            self.parts.append(f"{name} {_name(value) if _of_torch(value) else code_text(value.__code__)}")
        elif isinstance(value, type) and value.__module__ == home:
            self.kind(value)
        elif not isinstance(value, str | bytes | type):
            self.member(name, value)

    def _again(self, value: Any) -> bool:
        """Write the number of a class, a function or a container, and say whether it was written before."""
        known = id(value) in self.seen
        number, _ = self.seen.setdefault(id(value), (len(self.seen), value))
        self.parts.append(f"number {number}")
        return known


def _function(value: Any) -> FunctionType | None:
    """Return the function that a member of a class, or an attribute, stands for; None where it is none."""
    if isinstance(value, staticmethod | classmethod | MethodType):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    elif isinstance(value, functools.cached_property):
        value = value.func
    return value if isinstance(value, FunctionType) else None


def _of_torch(value: Any) -> bool:
    return str(value.__module__).partition(".")[0] == "torch"


def _name(value: Any) -> str:
    kind = value if isinstance(value, type) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
