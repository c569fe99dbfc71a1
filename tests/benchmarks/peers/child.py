"""Run a script as it is, in whatever environment: `child.py RESULT SCRIPT ARGUMENTS`; standard library only.

RESULT gets the seconds it took, imports included, and the process's own peak of memory (VmHWM).
"""

import json
import runpy
import sys
import time

result, script = sys.argv[1:3]
sys.argv = sys.argv[2:]
began = time.monotonic()
runpy.run_path(script, run_name="__main__")
took = time.monotonic() - began
with open("/proc/self/status", encoding="utf-8") as status:  # noqa: PTH123
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
with open(result, "w", encoding="utf-8") as out:  # noqa: PTH123
    json.dump({"seconds": took, "peak_mb": peak / 1024}, out)
