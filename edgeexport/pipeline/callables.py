"""Callables in a recipe: what decides the answer of a function that has no file to be keyed by.

The rule: a key that says too little would let a stale score stand. What cannot be seen through (a partial, an object
with a `__call__`, a closure over one) gets a key of its own in each run, so its results are never used again.
"""

from __future__ import annotations

import hashlib
import inspect
import uuid
from types import CodeType, FunctionType, ModuleType
from typing import Any

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))


def callable_key(function: Any) -> dict[str, str]:
    """Return plain data that changes with a function's source, constants, defaults, attributes and captured values.

    Functions and plain globals of its own module that it uses are followed; of other modules only names and sources.
    """
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    text = _text(function, {}) if inspect.isfunction(function) else _unseen()
    return {"live": name, "made of": hashlib.sha256(text.encode()).hexdigest()}


def code_text(code: CodeType) -> str:
    """Write out compiled code: its instructions, the names it looks up, its constants, the functions inside it."""
    return _text(code, {})


def array_text(value: Any) -> str:
    """Return type, shape and digest of the bytes of an array or a torch tensor; empty for anything else."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if kind == "numpy.ndarray" and value.dtype.kind != "O":
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    return tensor_text(value) if kind == "torch.Tensor" else ""


def tensor_text(value: Any) -> str:
    """Return type, shape and digest of the bytes of a torch tensor."""
    import torch

    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(flat.numpy().tobytes()).hexdigest()}"


def _unseen() -> str:
    return uuid.uuid4().hex


def _text(value: Any, seen: dict[int, Any]) -> str:
    """Write a value out in full. `seen` holds what was written, so that a function or a list may mention itself."""
    if isinstance(value, FunctionType | list | dict):
        if id(value) in seen:
            return f"again {list(seen).index(id(value))}"
        seen[id(value)] = value
    if isinstance(value, PLAIN):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, FunctionType):
        return _function(value, seen)
    if isinstance(value, CodeType):
        return f"{value.co_code.hex()} {value.co_names} {_text(value.co_consts, seen)}"
    return _container(value, seen) if isinstance(value, tuple | list | set | frozenset | dict) else _library(value)


def _container(value: Any, seen: dict[int, Any]) -> str:
    if isinstance(value, dict):
        value = [part for pair in value.items() for part in pair]
    elif isinstance(value, set | frozenset):
        return f"set {sorted(map(repr, value))}" if _plain(value) else _unseen()
    return f"{type(value).__name__} [{', '.join(_text(item, seen) for item in value)}]"


def _plain(values: Any) -> bool:
    return all(isinstance(value, PLAIN) for value in values)


def _function(function: FunctionType, seen: dict[int, Any]) -> str:
    parts: list[Any] = [function.__module__, function.__qualname__, source_text(function), function.__code__]
    parts += [function.__defaults__, function.__kwdefaults__, vars(function)]
    parts += [held(cell) for cell in function.__closure__ or ()]
    used = {name: function.__globals__[name] for name in names_in(function.__code__) if name in function.__globals__}
    for name, value in sorted(used.items()):
        elsewhere = isinstance(value, FunctionType) and value.__module__ != function.__module__
        parts += [name, (value.__module__, value.__qualname__, source_text(value)) if elsewhere else value]
    return "; ".join(_text(part, seen) for part in parts)


def held(cell: Any) -> Any:
    """Return what a closure captured; None for a name that was never given a value."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def names_in(code: CodeType) -> set[str]:
    """Return every name that a function may look up, those of the functions inside it included."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*(names_in(each) for each in inner))


def _library(value: Any) -> str:
    """Write out modules, classes, built-in functions and arrays; anything else cannot be seen through."""
    if isinstance(value, ModuleType):
        return f"module {value.__name__} {getattr(value, '__version__', '')}"
    if isinstance(value, type):
        return f"class {value.__module__}.{value.__qualname__} {source_text(value)}"
    if inspect.isbuiltin(value) and isinstance(value.__self__, ModuleType):
        return f"built-in {value.__self__.__name__}.{value.__name__}"
    return array_text(value) or _unseen()


def source_text(value: Any) -> str:
    """Return the text of a function or a class; empty where there is none."""
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        return ""
