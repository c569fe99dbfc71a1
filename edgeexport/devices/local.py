"""The machine we are on: each job in a fresh process with a clean environment, killed by its id when it hangs.

The rule: the child sees nothing of this process but its job: no inherited thread settings, no open files, and its
memory peak starts at zero.
"""

from __future__ import annotations

import functools
import importlib.resources
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeexport.devices.process import run_program
from edgeexport.devices.protocol import (
    BENCH_RUNTIMES,
    NO_FILES,
    BenchFailed,
    Device,
    pinned_environment,
    place,
    read_facts,
    speaks_for,
)
from edgeexport.errors import MissingExtra, RequestError
from edgeexport.records.device import DeviceFacts, Reachability
from edgeexport.records.target import Target, facts

# Where libraries and packages are found; everything else that could steer a runtime stays behind.
KEPT = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "SYSTEMROOT")
DESCRIBE_SECONDS = 60.0


class Local:
    """This machine."""

    def __init__(self, python: str = sys.executable) -> None:
        """`python`: the interpreter that has the runtimes; this one unless told otherwise."""
        self.name = "local"
        self._python = python

    def describe(self, runtime: str = "") -> DeviceFacts:
        """Return what this machine is, and the version of `runtime` (`ort`, `litert`) when one is named."""
        return _facts(self._python, BENCH_RUNTIMES.get(runtime, runtime))

    def run(
        self,
        job: Mapping[str, Any],
        *,
        files: Mapping[str, Path] = NO_FILES,
        timeout: float,
        outputs_to: Path | None = None,
    ) -> dict[str, Any]:
        """Run one job; see `Device.run`. Files are used where they are."""
        placed = place(job, {name: str(Path(path).absolute()) for name, path in files.items()})
        if outputs_to is not None:
            placed["outputs_to"] = str(outputs_to.absolute())
        with importlib.resources.as_file(facts("device_bench") / "bench.py") as program:
            return self._start(program, placed, timeout=timeout)

    def can_judge(self, target: Target) -> tuple[bool, str]:
        """Return whether this machine has the target's architecture, system and CPU features, and if not, why not."""
        return speaks_for(self.describe(), target)

    def _start(self, program: Path, job: Mapping[str, Any], *, timeout: float) -> dict[str, Any]:
        command = [self._python, "-P", "-s", "-X", "faulthandler", str(program)]
        environment = clean_environment(int(job.get("threads", 1)))
        try:
            return run_program(command, job, environment=environment, timeout=timeout, device=self.name)
        except BenchFailed as error:
            if error.kind != "runtime_missing":
                raise
            raise _missing(str(job.get("runtime"))) from error


def connect(reference: str) -> Device:
    """Return this machine. Raises RequestError for a reference with an address."""
    if reference != "local":
        raise RequestError(f"{reference!r}: `local` has no address")
    return Local()


def available() -> tuple[Reachability, ...]:
    """Return this machine, which is always there."""
    machine = Local().describe()
    told = f"{machine.arch}, {machine.cpu or 'CPU unnamed'}, {machine.cores} cores"
    return (Reachability("local", reachable=True, reason=told),)


def clean_environment(threads: int) -> dict[str, str]:
    """Return the environment of a measured process: paths, a fixed locale, and pinned thread pools."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {**kept, **pinned_environment(threads)}


def host_features() -> tuple[str, ...]:
    """Return this machine's CPU features, as Linux names them. Needs neither numpy nor a runtime."""
    return Local().describe().features


@functools.cache
def _facts(python: str, runtime: str) -> DeviceFacts:
    """What does not change while this process lives; asked once."""
    machine = Local(python)
    return read_facts(machine.run({"mode": "describe", "runtime": runtime}, timeout=DESCRIBE_SECONDS), machine.name)


def _missing(runtime: str) -> MissingExtra:
    extras = {bench: name for name, bench in BENCH_RUNTIMES.items()} | {"tflite_runtime": "legacy"}
    return MissingExtra(runtime.replace("_", "-"), extra=extras.get(runtime, "all"), purpose="running a model here")
