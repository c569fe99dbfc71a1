"""What every device is to the rest of the house: say what you are, and run one job of the device program.

The rule: an answer is one JSON object that says which job it answers, from a program that exited with 0. Anything
else (a hang, noise, an error, an exit code, a lost connection) is a DeviceError, never a result.

A job refers to files as `file:NAME`; `files` maps each NAME to a local path. Whether that path is used where it is or
pushed first is the device's affair.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import msgspec

from edgeexport.errors import DeviceError
from edgeexport.records.device import DeviceFacts
from edgeexport.records.target import Target

PROTOCOL = 1
OUTPUT_NAME = re.compile(r"\d{1,6}\.\d{1,4}\.npy")
NO_FILES: Mapping[str, Path] = MappingProxyType({})
# What device programs call the runtimes that targets name.
BENCH_RUNTIMES = {"ort": "onnxruntime", "litert": "ai_edge_litert"}
# CPU features have one name in /proc/cpuinfo and another in compilers and data sheets.
ALIASES = {
    "avx512vnni": "avx512_vnni",
    "avxvnni": "avx_vnni",
    "dotprod": "asimddp",
    "fp16": "asimdhp",
    "neon": "asimd",
}

Kind = TypeVar("Kind")


class OutputFile(msgspec.Struct, frozen=True):
    """An output that a device wrote: the name of a file in the folder for outputs, and its digest."""

    file: str
    digest: str


class Device(Protocol):
    """A way to reach one machine. `edgeexport.devices.get` finds it.

    Its module has `connect(reference) -> Device`, and `available() -> tuple[Reachability, ...]`: quickly, the devices
    it knows of and for each whether it answers now; where none is known, one row that says how to name one. Neither
    raises for a device or program that is not there.
    """

    @property
    def name(self) -> str:
        """What a user calls it: `local`, `ssh://pi@192.0.2.7`."""
        ...

    def describe(self, runtime: str = "") -> DeviceFacts:
        """Ask the machine what it is, and with `runtime` (`ort`, `litert`) which version it has. Raises DeviceError."""
        ...

    def run(
        self,
        job: Mapping[str, Any],
        *,
        files: Mapping[str, Path] = NO_FILES,
        timeout: float,
        outputs_to: Path | None = None,
    ) -> dict[str, Any]:
        """Run one job in a fresh process and return the program's answer.

        timeout: seconds, after which the process is killed. outputs_to: folder that receives the .npy files of mode
        `outputs`. Raises DeviceError with the end of the program's stderr, MissingExtra when the runtime is not there.
        """
        ...

    def can_judge(self, target: Target) -> tuple[bool, str]:
        """Return whether latency and memory measured here speak for `target`, and if not, why not."""
        ...


def pinned_environment(threads: int) -> dict[str, str]:
    """Return the settings that every measured process gets: pinned thread pools, a fixed locale, no hash seed."""
    pools = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**pools, "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


def place(job: Any, paths: Mapping[str, str]) -> Any:
    """Return a copy of `job` in which every `file:NAME` is the path of NAME on the device. Raises DeviceError."""
    if isinstance(job, Mapping):
        return {key: place(value, paths) for key, value in job.items()}
    if isinstance(job, list | tuple):
        return [place(value, paths) for value in job]
    if not isinstance(job, str) or not job.startswith("file:"):
        return job
    name = job.removeprefix("file:")
    if name not in paths:
        raise DeviceError(f"the job names the file {name!r}, which was not given; given: {sorted(paths)}")
    return paths[name]


def read_answer(stdout: str, stderr: str, *, exit_code: int, mode: str, device: str) -> dict[str, Any]:
    """Return the answer that a device program wrote. Raises DeviceError for anything but one good line and exit 0."""
    answer = _only_object(stdout)
    if answer is not None and isinstance(answer.get("error"), dict):
        error = answer["error"]
        raise BenchFailed(f"{device}: {error.get('message')}{_tail(stderr)}", kind=str(error.get("kind")))
    if exit_code != 0:
        raise DeviceError(f"{device}: the program ended with {_ending(exit_code)}{_tail(stderr)}")
    if answer is None:
        raise DeviceError(f"{device}: expected one JSON line, got {stdout[:200]!r}{_tail(stderr)}")
    if answer.get("protocol") != PROTOCOL or answer.get("mode") != mode:
        found = f"protocol {answer.get('protocol')}, mode {answer.get('mode')!r}"
        raise DeviceError(f"{device}: expected protocol {PROTOCOL}, mode {mode!r}; the answer has {found}")
    return answer


class NoAnswer(DeviceError):
    """The device program was killed when its time was over: nothing is known of what it would have answered."""


class BenchFailed(DeviceError):
    """The device program itself said what is wrong. `kind` is one of its error kinds (see device_bench/bench.py)."""

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


def read_facts(answer: Mapping[str, Any], device: str) -> DeviceFacts:
    """Return the record that an answer of mode `describe` holds. Raises DeviceError."""
    fields = {key: value for key, value in answer.items() if key in DeviceFacts.__struct_fields__}
    try:
        return msgspec.convert({**fields, "device": device}, type=DeviceFacts)
    except msgspec.ValidationError as error:
        raise DeviceError(f"{device}: the answer does not describe a machine: {error}") from error


def read_as(told: object, kind: type[Kind], *, what: str) -> Kind:
    """Return a part of an answer as a struct. Raises DeviceError naming what is missing or wrong."""
    try:
        return msgspec.convert(told, type=kind)
    except msgspec.ValidationError as error:
        raise DeviceError(f"the answer is not {what}: {error}") from error


def read_outputs(answer: Mapping[str, Any]) -> list[dict[str, OutputFile]]:
    """Return the files that an answer of mode `outputs` lists for each sample. Raises DeviceError.

    Their names are such as device programs give, so none leads out of the folder.
    """
    listed = read_as(answer.get("outputs"), list[dict[str, OutputFile]], what="a list of outputs")
    for name in (entry.file for sample in listed for entry in sample.values()):
        if not OUTPUT_NAME.fullmatch(name):
            raise DeviceError(f"the answer lists outputs, but {name!r} is no name of an output")
    return listed


def speaks_for(facts: DeviceFacts, target: Target) -> tuple[bool, str]:
    """Return whether a machine has the architecture, system and CPU features of a target, and if not, what it lacks."""
    if facts.arch != target.arch:
        return False, f"{facts.device} is {facts.arch}, the target is {target.arch}"
    if facts.os != target.os:
        return False, f"{facts.device} runs {facts.os}, the target {target.os}"
    missing, more = feature_gap(facts.features, target)
    if missing:
        return False, f"{facts.device} ({facts.cpu}) lacks {', '.join(missing)}"
    if more:
        return False, f"{facts.device} ({facts.cpu}) has {', '.join(more)}, so its kernels are not the target's"
    return True, ""


def feature_gap(features: Iterable[str], target: Target) -> tuple[list[str], list[str]]:
    """Return what a CPU lacks of a target's features, and what it has that the target lacks; under any of its names."""
    here = {ALIASES.get(name, name) for name in features}
    missing = [name for name in target.features if ALIASES.get(name, name) not in here]
    return missing, [name for name in target.lacks if ALIASES.get(name, name) in here]


def _only_object(stdout: str) -> dict[str, Any] | None:
    """The JSON object that stdout is, if it is exactly one line."""
    lines = stdout.strip().splitlines()
    if len(lines) != 1:
        return None
    try:
        answer = json.loads(lines[0])
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _ending(exit_code: int) -> str:
    return f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"


def _tail(stderr: str) -> str:
    lines = stderr.strip().splitlines()[-8:]
    return "\n  stderr: " + "\n          ".join(lines) if lines else ""
