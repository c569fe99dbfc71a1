"""User code: "module:function" references, looked up in the recipe's folder and loaded under private module names.

The rule: user modules see each other as if their folder were on `sys.path`, but neither `sys.path` nor a public name in
`sys.modules` changes, so a user's `data.py` never hides anybody else's. What user code raises becomes a RequestError
with file and line.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import difflib
import hashlib
import importlib.util
import itertools
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from edgeexport.errors import EdgeExportError, RecipeError, RequestError

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_GENERATION = itertools.count()
_namespaces: dict[Path, _Namespace] = {}


def is_reference(value: object) -> bool:
    """Say whether `value` is text of the form "module:function"."""
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


def resolve_reference(reference: str, folder: str | Path) -> Any:
    """Return the object that "module:function" names, the module being looked up in `folder`.

    Raises RecipeError when there is no such module or name, RequestError when the user's code raises.
    """
    if not is_reference(reference):
        raise RecipeError(f"{reference!r} is not a reference", next_step='write "module:function"')
    module_name, _, path = reference.partition(":")
    space = _namespace(Path(folder).resolve())
    space.require(module_name, reference)
    with UserCode(reference, folder):
        found: Any = space.load(module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            known = [item for item in vars(found) if not item.startswith("_")]
            raise RecipeError(
                f"{reference!r}: {space.find(module_name)} has no `{name}`", next_step=_nearest(name, known)
            )
        found = getattr(found, name)
    return found


def source_files(reference: str, folder: str | Path) -> list[Path]:
    """Return the .py files that "module:function" can reach inside `folder`, sorted, without importing them.

    Follows the import statements of every file found; names that are put together at run time are not seen.
    """
    root = Path(folder).resolve()
    space = _Namespace(root)
    first = reference.partition(":")[0]
    space.require(first, reference)
    found: dict[str, Path] = {}
    todo = [first]
    while todo:
        name = todo.pop()
        path = space.find(name)
        if path is None or name in found:
            continue
        found[name] = path
        todo.extend(".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1))
        with UserCode(reference, root):
            todo.extend(_imported(path, name))
    return sorted(set(found.values()))


class UserCode:
    """Context in which user code runs: an exception leaves it as a RequestError that names the user's file and line.

    edgeexport's own errors, MemoryError and interrupts pass unchanged.
    """

    def __init__(self, name: str, folder: str | Path | None = None) -> None:
        self.name = name
        self.folder = None if folder is None else Path(folder).resolve()

    def __enter__(self) -> None:
        """Start watching."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Translate `error`, if it is the user's."""
        if not isinstance(error, Exception) or isinstance(error, EdgeExportError | MemoryError):
            return
        where = _place(error, trace, folder=self.folder)
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        step = f"install the package {error.name!r}" if isinstance(error, ModuleNotFoundError) else ""
        raise RequestError(f"{self.name}: {where}{type(error).__name__}: {message}", next_step=step) from error


def _place(error: Exception, trace: TracebackType | None, *, folder: Path | None) -> str:
    """Return "file:line: " of the last frame inside `folder` (of the last frame at all when there is none)."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: "
    frames = traceback.extract_tb(trace)
    own = [frame for frame in frames if folder and Path(frame.filename).is_relative_to(folder)]
    last = (own or frames)[-1:]
    return "".join(f"{frame.filename}:{frame.lineno}: " for frame in last)


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else "known there: " + ", ".join(sorted(known)[:10])


def _imported(path: Path, module: str) -> Iterator[str]:
    """Yield the dotted names that a file may import, relative ones resolved against `module`'s place."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)


def _namespace(folder: Path) -> _Namespace:
    """Return the modules loaded from `folder`, or a new set of them when a loaded file has changed since."""
    space = _namespaces.get(folder)
    if space is None or space.changed():
        space = _namespaces[folder] = _Namespace(folder)
    return space


class _Namespace:
    """The modules of one folder, known to `sys.modules` under a private package name only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mark = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
        self.package = f"_edgeexport_user_{mark}_{next(_GENERATION)}"
        self.stamps: dict[Path, tuple[int, int]] = {}

    def find(self, dotted: str) -> Path | None:
        """Return the file of the module `dotted` in this folder; None if there is none."""
        base = self.folder.joinpath(*dotted.split("."))
        options = (base.with_name(base.name + ".py"), base / "__init__.py")
        return next((path for path in options if path.is_file()), None)

    def require(self, dotted: str, reference: str) -> None:
        """Raise RecipeError if the folder has no module `dotted`."""
        if self.find(dotted) is None:
            known = [path.stem for path in self.folder.glob("*.py")]
            raise RecipeError(
                f"{reference!r}: there is no module {dotted!r} in {self.folder}", next_step=_nearest(dotted, known)
            )

    def changed(self) -> bool:
        """Say whether a loaded file is no longer what was loaded."""
        return any(_stamp(path) != stamp for path, stamp in self.stamps.items())

    def load(self, dotted: str) -> ModuleType:
        """Return the module `dotted` ("" for the package itself), running its file the first time."""
        full = f"{self.package}.{dotted}" if dotted else self.package
        if full in sys.modules:
            return sys.modules[full]
        path = self.find(dotted) if dotted else None
        module = self._empty(full, path)
        with contextlib.ExitStack() as undo:
            undo.callback(sys.modules.pop, full, None)
            sys.modules[full] = module
            if path is not None:
                self.stamps[path] = _stamp(path)
                code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
                exec(code, module.__dict__)  # noqa: S102 - running the user's own module is what a reference asks for
            undo.pop_all()
        if dotted:
            parent, _, leaf = dotted.rpartition(".")
            setattr(self.load(parent), leaf, module)
        return module

    def _empty(self, full: str, path: Path | None) -> ModuleType:
        """Return a module whose import statements look into this folder first."""
        module = ModuleType(full)
        is_package = path is None or path.name == "__init__.py"
        module.__spec__ = ModuleSpec(full, None, origin=str(path), is_package=is_package)
        module.__package__ = full if is_package else full.rpartition(".")[0]
        if is_package:
            module.__path__ = []
        if path is not None:
            module.__file__ = str(path)
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self.__import__}
        return module

    def __import__(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002 - the names that the import statement passes
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Be `__import__` for the modules of this folder: local names first, then everything that is installed."""
        local = self._local_name(name, globals or {}, level=level)
        wanted = [f"{local}.{item}".lstrip(".") for item in fromlist or ()]
        if not level and self.find(local) is None and not any(self.find(item) for item in wanted):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        if local and self.find(local) is None and not any(self.find(item) for item in wanted):
            raise ModuleNotFoundError(f"no module {local!r} in {self.folder}", name=local)
        for depth in range(1, local.count(".") + 2 if local else 1):
            self.load(".".join(local.split(".")[:depth]))
        module = self.load(local)
        for item in wanted:
            if not hasattr(module, item.rpartition(".")[2]) and self.find(item):
                self.load(item)
        return module if fromlist else self.load(local.partition(".")[0])

    def _local_name(self, name: str, scope: Mapping[str, Any], *, level: int) -> str:
        """Return the dotted name within the folder that an import statement means."""
        if not level:
            return name
        absolute = importlib.util.resolve_name("." * level + name, str(scope.get("__package__")))
        return absolute.removeprefix(self.package).lstrip(".")


def _stamp(path: Path) -> tuple[int, int]:
    """Size and modification time; of a file that is gone, something no file has."""
    if not path.is_file():
        return (-1, -1)
    found = path.stat()
    return (found.st_size, found.st_mtime_ns)
