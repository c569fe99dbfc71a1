"""A program that says more than any answer has is ended at once, long before its time is up."""

from __future__ import annotations

import sys
import time

import pytest

from edgeexport.devices import process
from edgeexport.devices.process import run_program
from edgeexport.devices.shell import execute
from edgeexport.errors import DeviceError

RUNAWAY = "import sys\nwhile True: sys.{stream}.write('x' * 65536)"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_runaway_program_is_ended_when_it_has_said_too_much(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ANSWER_LIMIT", 1 << 20)
    command = [sys.executable, "-c", RUNAWAY.format(stream=stream)]
    start = time.monotonic()
    with pytest.raises(DeviceError, match="here: more than 1 MiB of output"):
        run_program(command, {"mode": "time"}, environment={}, timeout=20, device="here")
    with pytest.raises(DeviceError, match="more than 2 MiB of output"):
        execute(command, timeout=20, limit=2 << 20)
    assert time.monotonic() - start < 20


def test_what_fits_arrives_whole_with_a_large_job_and_its_exit_code() -> None:
    echo = "import sys; text = sys.stdin.read(); print(len(text)); sys.stderr.write('y' * 300000); sys.exit(3)"
    with pytest.raises(DeviceError, match="exit code 3"):
        run_program([sys.executable, "-c", echo], {"mode": "x" * 500_000}, environment={}, timeout=20, device="here")
    done = execute([sys.executable, "-c", "print('z' * 300000)"], timeout=20)
    assert (done.exit_code, len(done.stdout)) == (0, 300_001)
