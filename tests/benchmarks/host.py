"""Which target this machine can judge."""

from __future__ import annotations

import sys

from edgeexport import devices
from edgeexport.records.target import load_target, target_names


def host_target() -> str:
    """Return the onnxruntime target whose latency this machine may say; ends the benchmark where there is none."""
    local = devices.get("local")
    found = [
        target for target in map(load_target, target_names()) if (target.runtime, target.format) == ("ort", "onnx")
    ]
    fitting = [target.name for target in found if local.can_judge(target)[0]]
    return fitting[0] if fitting else sys.exit("no target of edgeexport is like this machine")
