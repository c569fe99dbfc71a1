"""Start the device program as a child of this process, and end it with all that it started when it hangs.

The rule: the child gets its job on stdin and nothing else from here, and its answer is believed only as
`protocol.read_answer` says. What it says has a bound: a runaway is ended before it fills this machine's memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from edgeexport.devices.protocol import NoAnswer, read_answer
from edgeexport.errors import DeviceError

# The most bytes that an answer, or what is said beside it, may have.
ANSWER_LIMIT = 64 << 20
PIECE = 1 << 16


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
        start_new_session=True,
    )
    try:
        threading.Thread(target=_give, args=(process.stdin, json.dumps(job).encode()), daemon=True).start()
        said = gather(process, timeout=timeout, limit=ANSWER_LIMIT, who=device)
    except subprocess.TimeoutExpired as error:
        raise NoAnswer(f"{device}: no answer to a {mode!r} job within {timeout:g} s; it was killed") from error
    finally:
        end(process)
    stdout, stderr = (content.decode("utf-8", "replace") for content in said)
    return read_answer(stdout, stderr, exit_code=process.returncode, mode=mode, device=device)


def gather(process: subprocess.Popen[bytes], *, timeout: float, limit: int, who: str) -> tuple[bytes, bytes]:
    """Return stdout and stderr of a process that leads a session, once it has ended.

    limit: bytes of each; a process that says more is killed at once. Raises DeviceError then, and TimeoutExpired when
    it has not ended after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    said = (bytearray(), bytearray())
    readers = [
        threading.Thread(target=_read, args=(process, stream), kwargs={"content": content, "limit": limit}, daemon=True)
        for stream, content in zip((process.stdout, process.stderr), said, strict=True)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(max(0.0, deadline - time.monotonic()))
    if max(map(len, said)) > limit:
        raise DeviceError(f"{who}: more than {limit / (1 << 20):g} MiB of output; the program was ended")
    if any(reader.is_alive() for reader in readers):
        raise subprocess.TimeoutExpired(process.args, timeout)
    process.wait(max(0.0, deadline - time.monotonic()))
    return bytes(said[0]), bytes(said[1])


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that still runs, with the children it started: it leads a session of its own."""
    if process.poll() is None:
        _kill(process)
        process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _read(process: subprocess.Popen[bytes], stream: IO[bytes], *, content: bytearray, limit: int) -> None:
    """Read a stream to its end, or until it has more than the limit; then its process has to go."""
    with stream:
        while len(content) <= limit:
            piece = os.read(stream.fileno(), PIECE)
            if not piece:
                return
            content += piece
        _kill(process)


def _give(stream: IO[bytes], content: bytes) -> None:
    """Write the job and close; a program that went away is found out elsewhere."""
    with contextlib.suppress(OSError, ValueError), stream:
        stream.write(content)
