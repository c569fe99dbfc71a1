"""edgeexport: a trained PyTorch or ONNX model in, small, fast, checked deployment bundles out.

The names below are the public API; each is imported when it is first used, so that `import edgeexport` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_RECORDS = "edgeexport.records"
_VERBS = "edgeexport.verbs"
_PUBLIC = {
    "Recipe": f"{_RECORDS}.recipe",
    "ModelSpec": f"{_RECORDS}.recipe",
    "InputSpec": f"{_RECORDS}.recipe",
    "DataSpec": f"{_RECORDS}.recipe",
    "Preprocess": f"{_RECORDS}.recipe",
    "Limits": f"{_RECORDS}.recipe",
    "Training": f"{_RECORDS}.training",
    "Tuning": f"{_RECORDS}.training",
    "Train": f"{_RECORDS}.recipe",
    "Distill": f"{_RECORDS}.recipe",
    "Prune": f"{_RECORDS}.recipe",
    "Quantize": f"{_RECORDS}.recipe",
    "Target": f"{_RECORDS}.target",
    "load_recipe": f"{_RECORDS}.recipe",
    "load_target": f"{_RECORDS}.target",
    "run": "edgeexport.pipeline",
    "shrink": "edgeexport.search",
    "distill": _VERBS,
    "prune": _VERBS,
    "export": _VERBS,
    "calibrate": _VERBS,
    "quantize": _VERBS,
    "qat": _VERBS,
    "convert": _VERBS,
    "compare": _VERBS,
    "measure": _VERBS,
    "inspect": "edgeexport.inspection",
    "pack": "edgeexport.bundles.pack",
    "verify": "edgeexport.bundles.verify",
    "bench": "edgeexport.benchmark",
    "tune": "edgeexport.benchmark",
    "TrainingData": "edgeexport.training",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home at first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgeexport' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return ["__version__", *sorted(_PUBLIC)]
