"""The demo: the whole road on the embedded handwritten digits, with nothing relaxed for it.

The recipe and the networks are copied beside the results, so that a user can change them and run them again.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from edgeexport.devices.local import host_features
from edgeexport.pipeline import run
from edgeexport.progress import Progress, silent
from edgeexport.records.recipe import load_recipe
from edgeexport.records.run import RunRecord
from edgeexport.workspace import publish

STARTERS = ("recipe.toml", "models.py")


def demo_targets() -> list[str]:
    """Return the targets of the demo: onnxruntime and LiteRT on a machine like this one, and ORT format for phones."""
    features = host_features()
    if "asimd" in features:
        here = "raspberry-pi-5" if "asimddp" in features else "linux-arm64"
        return [here, "raspberry-pi-5-litert", "android-arm64"]
    kinds = {"avx512_vnni": "vnni", "avx_vnni": "avxvnni"}
    kind = next((name for feature, name in kinds.items() if feature in features), "avx2")
    return [f"linux-x86_64-{kind}", "linux-x86_64-litert", "android-arm64"]


def run_demo(out: Path, *, progress: Progress = silent) -> RunRecord:
    """Run the demo's recipe from a copy in `out`, and leave bundles, report and workspace there."""
    for name in STARTERS:
        publish(out / name, (importlib.resources.files(__name__) / name).read_bytes())
    recipe = load_recipe(out / "recipe.toml")
    return run(recipe, demo_targets(), out=out, workspace=out / ".edgeexport", progress=progress)
