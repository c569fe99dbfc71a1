"""The house numbers of the design, as rules over syntax trees. Each rule yields complaints `path:line: what`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_FUNCTION, MEDIAN_FUNCTION, MAX_FILE = 60, 12, 400
MAX_PARAMETERS, MAX_POSITIONAL, MAX_NESTING = 6, 2, 3

# Each parameter of the whole road is a choice of its own that a user may want to make; a bag would only hide them.
FRONT_DOORS = {
    "edgeexport/pipeline/__init__.py:run",
    "edgeexport/quantization/calibrate.py:calibrate",
    "edgeexport/search/__init__.py:shrink",
}

# The device program is pushed to boards as one file that imports nothing of ours: it cannot be split.
ONE_FILE = {"device_bench/bench.py"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Block = ast.If | ast.For | ast.AsyncFor | ast.While | ast.With | ast.AsyncWith | ast.Try | ast.TryStar | ast.Match


@dataclass(frozen=True)
class Source:
    """One parsed file; `path` is as it shall be printed, e.g. "edgeexport/cli.py"."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)


def read(root: Path, *folders: str) -> list[Source]:
    """All Python files below the folders, in order."""
    files = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    return [Source(str(path.relative_to(root)), path.read_text(encoding="utf-8")) for path in files]


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method, nested ones too."""
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def length(function: Function) -> int:
    """Lines from `def` to the last one, without the docstring: prose that explains must not cost code."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is None:
        return lines
    return lines - ((first.end_lineno or first.lineno) - first.lineno + 1)


def long_functions(source: Source) -> Iterator[str]:
    for function in functions(source.tree):
        if length(function) > MAX_FUNCTION:
            where = f"{source.path}:{function.lineno}: {function.name}"
            yield f"{where} has {length(function)} lines (most: {MAX_FUNCTION})"


def long_files(source: Source) -> Iterator[str]:
    count = len(source.text.splitlines())
    if count > MAX_FILE and source.path not in ONE_FILE:
        yield f"{source.path}:1: {count} lines (most: {MAX_FILE})"


def _methods(tree: ast.AST) -> set[Function]:
    """Functions that take `self` or `cls` first."""
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    members = (item for node in classes for item in node.body if isinstance(item, Function))
    return {item for item in members if "staticmethod" not in {ast.unparse(mark) for mark in item.decorator_list}}


def _dunder(name: str) -> bool:
    """Special methods have the parameters that Python gives them."""
    return name.startswith("__") and name.endswith("__") and name != "__init__"


def many_parameters(source: Source) -> Iterator[str]:
    tree = source.tree
    methods = _methods(tree)
    for function in functions(tree):
        if _dunder(function.name):
            continue
        bound = int(function in methods)
        positional = len(function.args.posonlyargs) + len(function.args.args) - bound
        total = positional + len(function.args.kwonlyargs)
        where = f"{source.path}:{function.lineno}: {function.name}"
        if positional > MAX_POSITIONAL:
            yield f"{where} takes {positional} positional parameters (most: {MAX_POSITIONAL}, then keyword-only)"
        if total > MAX_PARAMETERS and f"{source.path}:{function.name}" not in FRONT_DOORS:
            yield f"{where} takes {total} parameters (most: {MAX_PARAMETERS})"


def _children(node: ast.AST) -> Iterator[tuple[ast.AST, bool]]:
    """Child nodes; True for those that an `elif` holds, which is no deeper than its `if`."""
    for name, value in ast.iter_fields(node):
        items = value if isinstance(value, list) else [value]
        chained = isinstance(node, ast.If) and name == "orelse" and len(items) == 1 and isinstance(items[0], ast.If)
        yield from ((item, chained) for item in items if isinstance(item, ast.AST))


def _depth(node: ast.AST, *, chained: bool = False) -> int:
    if isinstance(node, Function | ast.ClassDef | ast.Lambda):
        return 0
    below = max((_depth(child, chained=link) for child, link in _children(node)), default=0)
    return below + int(isinstance(node, Block) and not chained)


def deep_nesting(source: Source) -> Iterator[str]:
    for function in functions(source.tree):
        depth = max(_depth(statement) for statement in function.body)
        if depth > MAX_NESTING:
            yield f"{source.path}:{function.lineno}: {function.name} nests {depth} deep (most: {MAX_NESTING})"


def missing_annotations(source: Source) -> Iterator[str]:
    tree = source.tree
    methods = _methods(tree)
    for function in functions(tree):
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args][int(function in methods) :] + arguments.kwonlyargs
        named += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
        bare = [argument.arg for argument in named if argument.annotation is None]
        bare += ["return"] if function.returns is None else []
        if bare:
            yield f"{source.path}:{function.lineno}: {function.name} does not annotate {', '.join(bare)}"


def missing_docstrings(source: Source) -> Iterator[str]:
    tree = source.tree
    if ast.get_docstring(tree) is None:
        yield f"{source.path}:1: the module says not what it is"
    for place in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_")]:
        for item in place.body:
            named = isinstance(item, Function | ast.ClassDef) and not item.name.startswith("_")
            if named and ast.get_docstring(item) is None:
                yield f"{source.path}:{item.lineno}: {item.name} has no docstring"


def _cleans_up(handler: ast.ExceptHandler) -> bool:
    """Whether the handler ends by raising again what it caught."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def broad_excepts(source: Source) -> Iterator[str]:
    """`except Exception` stands at the one error boundary only (or raises again); a bare `except` nowhere."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = "" if node.type is None else ast.unparse(node.type)
        broad = bool({"Exception", "BaseException"} & set(caught.strip("()").split(", ")))
        if node.type is None:
            yield f"{source.path}:{node.lineno}: bare except"
        elif broad and source.path != "edgeexport/cli.py" and not _cleans_up(node):
            yield f"{source.path}:{node.lineno}: except {caught}"
        elif len(node.body) == 1 and isinstance(node.body[0], ast.Pass):
            yield f"{source.path}:{node.lineno}: except {caught}: pass"


def prints(source: Source) -> Iterator[str]:
    if source.path.startswith("device_bench/"):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{source.path}:{node.lineno}: print"


def vague_names(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Manager", "Handler", "Utils", "Helper", "Base")):
            yield f"{source.path}:{node.lineno}: the name {node.name} says nothing"


RULES = (
    long_functions,
    long_files,
    many_parameters,
    deep_nesting,
    missing_annotations,
    missing_docstrings,
    broad_excepts,
    prints,
    vague_names,
)
