"""A Chromium of this machine without a window, on a fresh private profile for each job, ended by its process id.

The rule: the page's address, which holds the pairing token, never stands on a command line that others can read.
"""

from __future__ import annotations

import contextlib
import html
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgeexport.errors import MachineError

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# Memory is measured at once instead of after the next collection, which may take minutes.
FLAGS = (
    "--headless=new", "--no-first-run", "--no-default-browser-check", "--disable-extensions", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--mute-audio",
    "--password-store=basic", "--disable-breakpad", "--disable-background-timer-throttling",
    "--enable-blink-features=ForceEagerMeasureMemory",
)  # fmt: skip


def found() -> str:
    """Return the path of a Chromium, or nothing."""
    return next((path for path in map(shutil.which, PROGRAMS) if path), "")


def flags() -> tuple[str, ...]:
    """Return how it is started. Its sandbox does not work for root, and is left on for everybody else."""
    return (*FLAGS, "--no-sandbox") if os.geteuid() == 0 else FLAGS


@contextlib.contextmanager
def showing(url: str, program: str) -> Iterator[subprocess.Popen[bytes]]:
    """Show a page while the context lasts. Raises MachineError when the program cannot be started."""
    with tempfile.TemporaryDirectory(prefix="edgeexport-browser-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        start = folder / "start.html"
        start.write_text(
            f'<!doctype html><meta http-equiv="refresh" content="0;url={html.escape(url)}">', encoding="utf-8"
        )
        home = {"HOME": name, "XDG_CONFIG_HOME": name, "XDG_CACHE_HOME": name, "TMPDIR": name}
        # It dies with us, also when we are killed.
        bound = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        words = [*bound, program, *flags(), f"--user-data-dir={folder / 'profile'}", start.as_uri()]
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **home},
                start_new_session=True,
            )
        except OSError as error:
            raise MachineError(f"{program} cannot be started: {error}") from error
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
