"""Runtimes: ONNX → what runs. One module per runtime behind the small protocol of `runtimes.protocol`.

The rule: a runtime never imports another, and none is loaded before it is asked for.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from edgeexport.errors import RequestError
from edgeexport.runtimes.protocol import Runtime

# Each module holds its runtime under the name RUNTIME.
RUNTIMES = {
    "ort": "edgeexport.runtimes.ort",
    "litert": "edgeexport.runtimes.litert",
}


# What opens a file of this kind.
SUFFIXES = {".onnx": "ort", ".ort": "ort", ".tflite": "litert"}


def for_file(path: Path | str) -> str:
    """Return the name of the runtime that opens a model file, by its suffix. Raises RequestError."""
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise RequestError(f"{path}: no runtime opens a {suffix or 'nameless'} file", next_step=f"known: {known}")
    return SUFFIXES[suffix]


def names() -> tuple[str, ...]:
    """Return the names of all runtimes."""
    return tuple(RUNTIMES)


def get(name: str) -> Runtime:
    """Return the runtime that targets call `name`. Raises RequestError naming the known ones."""
    if name not in RUNTIMES:
        raise RequestError(f"no runtime {name!r}", next_step="known: " + ", ".join(RUNTIMES))
    runtime: Runtime = importlib.import_module(RUNTIMES[name]).RUNTIME
    return runtime
