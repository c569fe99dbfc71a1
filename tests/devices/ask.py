"""`python -m tests.devices.ask REFERENCE`: run the requests on stdin on one device, print what came of each.

It is started where the device is reachable, which the test itself may not be. A request is {"verb": "describe",
"run" or "bundle", ...}; an answer is {"answer": ...}, or {"error": class, "message": ..., "exit_code": ...}. Both come
as one JSON list.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from edgeexport import devices
from edgeexport.errors import EdgeExportError
from tests.devices.bundles import run_bundle


def main() -> None:
    device = devices.get(sys.argv[1])
    json.dump([_answered(device, request) for request in json.load(sys.stdin)], sys.stdout)


def _answered(device: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request["verb"] == "describe":
            return {"answer": msgspec.to_builtins(device.describe(request.get("runtime", "")))}
        if request["verb"] == "bundle":
            return {"answer": run_bundle(device, Path(request["bundle"]), timed=request["timed"])}
        files = {name: Path(path) for name, path in request.get("files", {}).items()}
        out = Path(request["outputs_to"]) if "outputs_to" in request else None
        return {"answer": device.run(request["job"], files=files, timeout=request["timeout"], outputs_to=out)}
    except EdgeExportError as error:
        return {"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}


if __name__ == "__main__":
    main()
