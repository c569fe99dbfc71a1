"""How benchmarks start commands: fresh processes, wall-clock seconds, progress on stderr."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def seconds(command: Sequence[str], *, cwd: Path, allowed: tuple[int, ...] = (0,)) -> tuple[float, str]:
    """Run a command; return how long it took and its stdout. Any other exit code ends the benchmark."""
    began = time.monotonic()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    took = time.monotonic() - began
    if done.returncode not in allowed:
        sys.exit(f"{' '.join(command)} exited {done.returncode}:\n{done.stderr[-2000:]}")
    return took, done.stdout


def interleaved(commands: dict[str, Sequence[str]], *, cwd: Path, rounds: int) -> dict[str, float]:
    """Run all commands `rounds` times in turn; return the median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds):
        sys.stderr.write(f"round {number + 1} of {rounds}\n")
        for name, command in commands.items():
            times[name].append(seconds(command, cwd=cwd)[0])
    return {name: statistics.median(values) for name, values in times.items()}
