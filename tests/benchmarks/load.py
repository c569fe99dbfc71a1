"""Other programs: processes that spin, of our own, started and stopped."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

# Where Linux groups processes by session (autogroup), niceness counts within a session only, and the group has its own.
FAVOUR = """
import contextlib as _contextlib
with _contextlib.suppress(OSError):
    open("/proc/self/autogroup", "w").write("-20")
"""


def favoured() -> int:
    """Let this process and its children go before other programs, where the system allows it; return the niceness.

    A child that leads a session of its own has to run FAVOUR itself.
    """
    with contextlib.suppress(OSError):
        os.setsid()
    exec(FAVOUR, {})
    with contextlib.suppress(PermissionError):
        return os.nice(-15)
    return os.nice(0)


@contextmanager
def spinning(count: int, *, favour: bool = False) -> Iterator[None]:
    """Keep `count` processes spinning; `favour`: as favoured as what they shall disturb."""
    endless = [sys.executable, "-c", f"{FAVOUR if favour else ''}\nwhile True: pass"]
    started = [subprocess.Popen(endless, start_new_session=favour) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


@contextmanager
def changing_load(seed: int, *, most: int) -> Iterator[None]:
    """Start and stop up to `most` spinning processes at random, for 0.3 to 4 seconds each time."""
    done, rng = threading.Event(), np.random.default_rng(seed)

    def change() -> None:
        while not done.is_set():
            with spinning(int(rng.integers(0, most + 1))):
                done.wait(float(rng.uniform(0.3, 4.0)))

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
