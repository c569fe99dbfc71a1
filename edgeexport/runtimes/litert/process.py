"""Runs the worker: a process of its own with a time and a memory limit, and every way it can end turned into an error.

The rule: what a converter prints never reaches the user's terminal; the tail of its stderr enters the message.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgeexport import errors
from edgeexport.errors import ConverterFailed, EdgeExportError, MachineError, ModelError, UnsupportedOperator

ERROR_FILE = "error.json"
JOB_FILE = "job.json"
SECONDS = 1800.0
MEMORY_SHARE = 0.8
_TAIL_LINES = 3
_MEMORY = re.compile(r"MemoryError|bad_alloc|(?:can't|cannot) allocate memory|memory allocation", re.IGNORECASE)
# What litert-torch and its MLIR passes say of an operator that they do not have.
_UNSUPPORTED = (
    re.compile(r"[Ll]owering not found: ([\w.:]+)"),
    re.compile(r"No lowering (?:found|registered) for \W*([\w.:]+)"),
    re.compile(r"failed to legalize operation '([\w.]+)'"),
    re.compile(r"op is neither a custom op nor a flex op.*?'([\w.]+)'"),
)


def run_worker(
    folder: Path,
    verb: str,
    *,
    settings: dict[str, Any],
    seconds: float = SECONDS,
    memory_bytes: int | None = None,
    module: str = "edgeexport.runtimes.litert.worker",
) -> None:
    """Run one verb of the worker on `folder`, which holds the verb's input files and receives its results.

    Raises what the worker raised; UnsupportedOperator naming the operator; ConverterFailed for a time-out, for memory,
    and for a death by signal (with its name); ModelError with the end of stderr for anything else.
    """
    memory_bytes = memory_bytes or int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    job = {"verb": verb, "memory_bytes": memory_bytes, **settings}
    (folder / JOB_FILE).write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-m", module, str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds, env=_environment(), check=False
        )
    except subprocess.TimeoutExpired as error:
        message = f"LiteRT conversion ({verb}) did not finish in {seconds:.0f} s and was stopped"
        raise ConverterFailed(message, next_step="use a smaller model or a faster machine") from error
    if done.returncode:
        raise _failure(folder, verb, code=done.returncode, stderr=done.stderr, memory_bytes=memory_bytes)


def _failure(folder: Path, verb: str, *, code: int, stderr: str, memory_bytes: int) -> EdgeExportError:
    """The error that tells how the worker ended."""
    report = folder / ERROR_FILE
    if report.exists():
        return _reported(json.loads(report.read_text(encoding="utf-8")))
    tail = " | ".join(line.strip() for line in stderr.strip().splitlines()[-_TAIL_LINES:]) or "it said nothing"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = "the machine may be out of memory" if name == "SIGKILL" else "leave out the layer it names, or report it"
        return ConverterFailed(f"the LiteRT converter ({verb}) died of {name}: {tail}", next_step=hint)
    if _MEMORY.search(stderr):
        return ConverterFailed(f"the LiteRT converter ({verb}) needs more than {memory_bytes / 1e9:.1f} GB: {tail}")
    for pattern in _UNSUPPORTED:
        match = pattern.search(stderr)
        if match:
            name = match.group(1)
            return UnsupportedOperator(
                f"LiteRT has no lowering of {name!r}", next_step="replace that layer, or use an ort target"
            )
    return ModelError(f"the LiteRT converter ({verb}) failed: {tail}")


def _reported(report: dict[str, str]) -> EdgeExportError:
    kind = getattr(errors, report["kind"], EdgeExportError)
    if kind is errors.MissingExtra:
        return MachineError(report["message"], next_step=report["next_step"])
    error: EdgeExportError = kind(report["message"], next_step=report["next_step"])
    return error


def _environment() -> dict[str, str]:
    """The worker sees this very package, few threads, and a fixed hash seed (sets reach file bytes otherwise)."""
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    return {**os.environ, **quiet, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}
