"""Stands in for `ssh` and `adb` on the PATH: runs the line on a pretended device (a folder here), with faults.

It is started as `python -IS shim.py FOLDER STEP LINE` for a step that FOLDER/plan.json lets go wrong: how, and how many
times. What runs "on the device" has a session of its own and outlives us, as it would there.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

BOOT = rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


def device(folder: Path, line: str, *, stdin: object = None) -> subprocess.Popen[bytes]:
    """Start the line on the pretended device."""
    environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "HOME": str(folder / "home")}
    return subprocess.Popen(
        ["sh", "-c", line],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


def say(text: str, *, code: int) -> None:
    """End as ssh or adb do that have something to complain about."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
    os._exit(code)


def pass_on(content: bytes, errors: bytes, *, code: int) -> None:
    """End as the command on the device did."""
    sys.stdout.buffer.write(content)
    sys.stdout.flush()
    sys.stderr.buffer.write(errors)
    sys.stderr.flush()
    os._exit(code)


def garbled(content: bytes, how: str) -> bytes:
    """Return what arrives here of what a device wrote."""
    changes = {
        "cut": lambda: content[: len(content) // 2],
        "flip": lambda: content.replace(b"NUMPY", b"NUMPI"),
        "crlf": lambda: content.replace(b"\n", b"\r\n"),
        "noise": lambda: b"Welcome!\nYou have mail.\n" + content + b"logout\n",
        "inside": lambda: content.replace(b"\n{", b'\nwarning: a library talks\n{"protocol": 1}\n{'),
        "reboot": lambda: re.sub(BOOT, b"00000000-0000-4000-8000-000000000000", content),
        "program": lambda: content.replace(b'"bench_digest": "sha256:', b'"bench_digest": "sha256:0'),
        "protocol": lambda: content.replace(b'"protocol": 1', b'"protocol": 2'),
        "stale": lambda: content.replace(b'"mode": "describe"', b'"mode": "time"'),
        "path": lambda: content.replace(b"0.0.npy", b"../../x"),
        "silent": lambda: b"",
        "text": lambda: b"error: device is busy\n",
    }
    return changes[how]()


def main() -> None:
    folder, step, line = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    plan = json.loads((folder / "plan.json").read_text())
    before = (folder / "steps.txt").read_text().split().count(step) - 1
    wrong = before < plan.get("times", 1 << 30)
    how = plan["how"] if wrong else ""
    if how == "says":
        say(plan["text"], code=plan.get("code", 255))
    if how == "hangs":
        time.sleep(600)
    if how in {"cut-push", "flip-push"}:
        sent = sys.stdin.buffer.read()
        sent = sent[: len(sent) // 2] if how == "cut-push" else sent[:700] + b"#" + sent[701:]
        process = device(folder, line, stdin=subprocess.PIPE)
        pass_on(*process.communicate(sent), code=process.returncode)
    process = device(folder, line)
    if how == "drops":  # the connection breaks under a running program
        while not list((folder / "home").rglob("job.json")):
            time.sleep(0.02)
        time.sleep(0.1)
        sys.stdin.close()
        os.close(0)
        say("client_loop: send disconnect: Broken pipe", code=255)
    content, errors = process.communicate()
    pass_on(garbled(content, how) if how else content, errors, code=process.returncode)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
