"""The process in which torch, litert-torch and ai-edge-quantizer run: `python -m edgeexport.runtimes.litert.worker`.

The rule: a converter may abort, hang or eat the machine, and then it does so here. The worker reads one job file and
writes its results beside it; an error of the house's own is written as JSON, anything else ends in a traceback that
the parent quotes.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from edgeexport.errors import EdgeExportError
from edgeexport.runtimes.litert.process import ERROR_FILE, JOB_FILE


def main(folder: Path) -> int:
    """Do the job in `folder`; 0 when its results stand there, 3 when `error.json` says why not."""
    settings = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
    limit = int(settings["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        _verb(settings["verb"])(folder, settings)
    except EdgeExportError as error:
        report: dict[str, Any] = {"kind": type(error).__name__, "message": str(error), "next_step": error.next_step}
        (folder / ERROR_FILE).write_text(json.dumps(report), encoding="utf-8")
        return 3
    return 0


def _verb(name: str) -> Any:
    if name == "lower":
        from edgeexport.runtimes.litert.lower import lower

        return lower
    from edgeexport.runtimes.litert.quantize import quantize

    return quantize


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
