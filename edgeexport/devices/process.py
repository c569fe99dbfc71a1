"""Start the device program as a child of this process, and end it with all that it started when it hangs.

The rule: the child gets its job on stdin and nothing else from here, and its answer is believed only as
`protocol.read_answer` says.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from edgeexport.devices.protocol import NoAnswer, read_answer


def run_program(
    command: Sequence[str], job: Mapping[str, Any], *, environment: Mapping[str, str], timeout: float, device: str
) -> dict[str, Any]:
    """Run one placed job and return its answer. Raises DeviceError, BenchFailed for what the program says is wrong.

    Raises NoAnswer when there is none within `timeout` seconds.
    """
    mode = str(job.get("mode"))
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(json.dumps(job), timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise NoAnswer(f"{device}: no answer to a {mode!r} job within {timeout:g} s; it was killed") from error
    finally:
        _end(process)
    return read_answer(stdout, stderr, exit_code=process.returncode, mode=mode, device=device)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a process that still runs, with the children it started: it leads a session of its own."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
