"""edgeexport: a trained PyTorch or ONNX model in, small, fast, checked deployment bundles out.

The names below are the public API; each is imported when it is first used, so that `import edgeexport` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Recipe": "edgeexport.records.recipe",
    "Target": "edgeexport.records.target",
    "load_recipe": "edgeexport.records.recipe",
    "load_target": "edgeexport.records.target",
    "run": "edgeexport.pipeline",
    "pack": "edgeexport.bundles.pack",
    "verify": "edgeexport.bundles.verify",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home at first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgeexport' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return ["__version__", *sorted(_PUBLIC)]
