"""CPUs that are not here, emulated by qemu-user: what they compute and how many instructions it takes them.

The rule: under emulation there are no times. A job that asks for them is refused, and no emulated machine ever judges a
target's latency. Memory is the emulator's and the guest's together.
"""

from __future__ import annotations

import importlib.resources
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgeexport.devices.emulated.counts import read_counts, read_each
from edgeexport.devices.guest import root as layout
from edgeexport.devices.guest.machine import command, environment
from edgeexport.devices.guest.presets import PRESETS, Preset
from edgeexport.devices.process import run_program
from edgeexport.devices.protocol import BENCH_RUNTIMES, NO_FILES, Device, place, read_facts, read_outputs
from edgeexport.errors import CorruptFile, DeviceError, MachineError, RequestError
from edgeexport.records.device import DeviceFacts, Reachability
from edgeexport.records.emulation import InstructionCounts
from edgeexport.records.target import Target, facts

MODES = ("outputs", "count", "memory", "describe")
DESCRIBE_SECONDS = 120.0
LOG = "counts"


class Emulated:
    """One emulated CPU. Each job is a process of QEMU."""

    def __init__(self, preset: Preset, *, root: Path) -> None:
        """root: an intact installation."""
        self.name = f"emulated:{preset.name}"
        self.preset = preset
        self.root = root

    def describe(self, runtime: str = "") -> DeviceFacts:
        """Return what the emulated machine is, and the version of `runtime` (`ort`, `litert`) when one is named."""
        job = {"mode": "describe", "runtime": BENCH_RUNTIMES.get(runtime, runtime)}
        found = read_facts(self.run(job, timeout=DESCRIBE_SECONDS), self.name)
        return msgspec.structs.replace(found, cpu=f"{self.preset.model}, emulated")

    def run(
        self,
        job: Mapping[str, Any],
        *,
        files: Mapping[str, Path] = NO_FILES,
        timeout: float,
        outputs_to: Path | None = None,
    ) -> dict[str, Any]:
        """Run one job; see `Device.run`. Raises DeviceError for a job whose answer would hold times."""
        answer = self._run(job, files=files, timeout=timeout, outputs_to=outputs_to)
        memory = answer.get("memory")
        if isinstance(memory, dict) and "method" in memory:
            memory["method"] = f"{memory['method']}, the emulator's own included"
        return answer

    def count(
        self, job: Mapping[str, Any], *, files: Mapping[str, Path] = NO_FILES, timeout: float, outputs_to: Path
    ) -> tuple[dict[str, Any], InstructionCounts]:
        """Run a job's inputs, in turn, and return the answer of mode `outputs` and the instructions of one inference.

        The first two inputs are warm-ups: give at least three. Raises DeviceError, or MachineError if nothing counts.
        """
        answer, log = self._logged(job, files=files, timeout=timeout, outputs_to=outputs_to)
        with log as folder:
            return answer, read_counts(Path(folder) / LOG, inferences=len(read_outputs(answer)))

    def count_each(
        self, job: Mapping[str, Any], *, files: Mapping[str, Path] = NO_FILES, timeout: float, outputs_to: Path
    ) -> list[int]:
        """Run a job's inputs, in turn, and return the instructions of each inference. Raises as `count` does."""
        answer, log = self._logged(job, files=files, timeout=timeout, outputs_to=outputs_to)
        with log as folder:
            each = read_each(Path(folder) / LOG, inferences=len(read_outputs(answer)))
        return [counts["total"] for counts in each]

    def _logged(
        self, job: Mapping[str, Any], *, files: Mapping[str, Path], timeout: float, outputs_to: Path
    ) -> tuple[dict[str, Any], tempfile.TemporaryDirectory[str]]:
        """The answer, and a folder with the plugin's log."""
        reason = counts_missing(self.preset)
        if reason:
            raise MachineError(f"{self.name}: instructions cannot be counted: {reason}", next_step=layout.INSTALL)
        counted = {**job, "mode": "count"}
        folder = tempfile.TemporaryDirectory(prefix="edgeexport-count-")
        log = Path(folder.name) / LOG
        plugin = ("-plugin", str(self.root / layout.PLUGIN), "-d", "plugin", "-D", str(log))
        try:
            return self._run(counted, files=files, timeout=timeout, outputs_to=outputs_to, plugin=plugin), folder
        except BaseException:
            folder.cleanup()
            raise

    def can_judge(self, target: Target) -> tuple[bool, str]:
        """Return that no emulated machine gives a target's latency or memory."""
        return False, f"{self.name} has no times to judge {target.name} by (emulated: no times)"

    def _run(
        self,
        job: Mapping[str, Any],
        *,
        files: Mapping[str, Path],
        timeout: float,
        outputs_to: Path | None,
        plugin: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        if job.get("mode") not in MODES:
            raise DeviceError(
                f"{self.name}: a {job.get('mode')!r} job asks for times, and under emulation there are none",
                next_step="measure on a board; emulated machines run " + ", ".join(MODES),
            )
        placed = place(job, {name: str(Path(path).absolute()) for name, path in files.items()})
        if outputs_to is not None:
            placed["outputs_to"] = str(outputs_to.absolute())
        legacy = job.get("runtime") == "tflite_runtime"
        site = "" if self.preset.arch != "aarch64" else "legacy" if legacy else "site"
        words = command(self.root, self.preset, plugin=plugin)
        surroundings = environment(self.root, site=site, threads=int(job.get("threads", 1)))
        with importlib.resources.as_file(facts("device_bench") / "bench.py") as program:
            # The guest's packages are all on PYTHONPATH: without `site`, its Python starts in half the time.
            words += ["-P", "-s", *(["-S"] if site else []), str(program)]
            return run_program(words, placed, environment=surroundings, timeout=timeout, device=self.name)


class Counting(Emulated):
    """The same machine, counting wherever it can while it runs jobs of mode `outputs`.

    runtime_version, counts: of the last job; counts None where `counts_missing` says why.
    """

    runtime_version = ""
    counts: InstructionCounts | None = None

    def run(
        self,
        job: Mapping[str, Any],
        *,
        files: Mapping[str, Path] = NO_FILES,
        timeout: float,
        outputs_to: Path | None = None,
    ) -> dict[str, Any]:
        """Run one job; see `Emulated.count`."""
        if outputs_to is None or counts_missing(self.preset):
            answer = super().run(job, files=files, timeout=timeout, outputs_to=outputs_to)
        else:
            answer, self.counts = self.count(job, files=files, timeout=timeout, outputs_to=outputs_to)
        self.runtime_version = str(answer.get("runtime_version", ""))
        return answer


def counting(preset: str) -> Counting:
    """Return an emulated machine that counts; see `connect`."""
    plain = machine(preset)
    return Counting(plain.preset, root=plain.root)


def connect(reference: str) -> Device:
    """Return `emulated:PRESET`. Raises RequestError for an unknown one, MachineError or CorruptFile without a root."""
    return machine(reference.partition(":")[2])


def machine(preset: str) -> Emulated:
    """Return an emulated machine by its preset's name; see `connect`."""
    if preset not in PRESETS:
        raise RequestError(
            f"no emulated machine {preset!r}", next_step="known: " + ", ".join(f"emulated:{name}" for name in PRESETS)
        )
    if PRESETS[preset].arch == "x86_64" != platform.machine():
        raise MachineError(f"emulated:{preset} runs this machine's own Python, which is {platform.machine()}")
    return Emulated(PRESETS[preset], root=layout.installed())


def available() -> tuple[Reachability, ...]:
    """Return every preset, and why none can be used where nothing is installed."""
    reason = layout.missing()
    if not reason:
        try:
            layout.installed()
        except CorruptFile as error:
            reason = str(error)
    found = []
    for name, preset in PRESETS.items():
        told = f"{reason}; run `{layout.INSTALL}`" if reason else f"{preset.arch}, QEMU -cpu {preset.model}; no times"
        found.append(Reachability(f"emulated:{name}", reachable=not reason, reason=told))
    return tuple(found)


def counts_missing(preset: Preset) -> str:
    """Return why instructions cannot be counted on a preset, or nothing."""
    if preset.arch != "aarch64":
        return f"the plugin reads Arm instructions, {preset.name} has others"
    return layout.manifest(layout.installed()).counts_missing
