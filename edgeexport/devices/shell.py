"""A machine behind a shell: what ssh and adb share. They differ in the command that carries a line of shell there.

The rule: a launch is whole or it is nothing. What it needs is pushed by digest and checked there, what it gives is
pulled and checked here, and between two marks the device says how it ended; a launch without the second mark is lost,
and is repeated from its beginning. The program leads a session of its own, which dies with its time or with us.

Words reach the device through `quote` only, and file names from here never do: files are called by their digests.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import json
import os
import re
import secrets
import shlex
import subprocess
import tarfile
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgeexport.devices import process
from edgeexport.devices.protocol import (
    BENCH_RUNTIMES,
    NO_FILES,
    BenchFailed,
    pinned_environment,
    place,
    read_answer,
    read_facts,
    read_outputs,
    speaks_for,
)
from edgeexport.devices.scripts import CHECK, DROP, FRAME, HELLO, LATE, NO_CACHE, NO_WRITE, PULL, PUSH, SUPERVISE
from edgeexport.errors import DeviceError, MachineError, MissingExtra, RequestError
from edgeexport.records.base import file_digest
from edgeexport.records.device import DeviceFacts, Reachability
from edgeexport.records.target import Target, facts

DESCRIBE_SECONDS = 120.0
SHORT_SECONDS = 30.0
PUSH_SECONDS = 900.0
# The most bytes of outputs that are fetched at once; other answers have process.ANSWER_LIMIT.
OUTPUTS_LIMIT = 1 << 30
# How much longer than the program we wait for the device to say that it killed it.
GRACE_SECONDS = 20.0
# Seconds before a lost launch is repeated; as many repetitions as there are pauses.
PAUSES = (1.0, 4.0)


# Debian's and Ubuntu's names for what brings the programs that reach devices.
PACKAGES = {"adb": "adb", "ssh": "openssh-client"}


class DeviceLost(DeviceError):
    """The connection broke, or a push arrived damaged: what a second try may mend."""


@dataclass(frozen=True)
class Done:
    """What a command on the device said and how it ended."""

    exit_code: int
    stdout: bytes
    stderr: str


@dataclass(frozen=True)
class Greeting:
    """Where the device keeps our files, which boot this is, and what it calls itself (`name=value` lines)."""

    cache: str
    boot_id: str
    said: Mapping[str, str]


def quote(*words: str) -> str:
    """Return one line of POSIX shell that means exactly these words. The only way to a device's shell.

    Raises RequestError for a word with a NUL, which no command line can hold.
    """
    for word in words:
        if "\0" in word:
            raise RequestError(f"a NUL in {word!r}: no command line can hold it")
    return " ".join(shlex.quote(word) for word in words)


def no_program(program: str, error: OSError | None = None) -> MachineError:
    """Return the error for a program that this machine has not, or (`error` says why) cannot start."""
    if error is not None and not isinstance(error, FileNotFoundError):
        return MachineError(f"{program} cannot be started on this machine: {error}")
    return MachineError(f"there is no {program} on the PATH", next_step=f"sudo apt install {PACKAGES[program]}")


def listed_without(device: str, program: str) -> Reachability:
    """Return the row of a kind of device that nothing here can reach for want of a program."""
    lack = no_program(program)
    return Reachability(device, reachable=False, reason=f"{lack}: {lack.next_step}")


class ShellDevice(ABC):
    """A device that runs lines of shell. Subclasses know how a line gets there, and what runs the device program."""

    def __init__(self, name: str, *, cache: str = "") -> None:
        """`name`: what the user calls it. `cache`: folder on the device; its user's cache unless told otherwise."""
        self.name = name
        self._cache = cache
        self._greeting: Greeting | None = None
        self._facts: dict[str, DeviceFacts] = {}
        self._there: set[str] = set()

    @abstractmethod
    def carrier(self, line: str) -> list[str]:
        """Return the local command that runs a line of shell on the device, with its stdin and stdout. May raise."""

    @abstractmethod
    def interpreter(self, runtime: str) -> list[str]:
        """Return the words that start Python on the device, with `runtime` (as the program calls it, or empty)."""

    @abstractmethod
    def lost(self, said: str) -> DeviceError:
        """Return the error for a connection that broke: DeviceLost where another try may mend it."""

    def describe(self, runtime: str = "") -> DeviceFacts:
        """Ask the machine what it is, once; see `Device.describe`."""
        if runtime not in self._facts:
            job = {"mode": "describe", "runtime": BENCH_RUNTIMES.get(runtime, runtime)}
            self._facts[runtime] = read_facts(self.run(job, timeout=DESCRIBE_SECONDS), self.name)
        return self._facts[runtime]

    def can_judge(self, target: Target) -> tuple[bool, str]:
        """Return whether the machine has the target's architecture, system and CPU features, and if not, why not."""
        return speaks_for(self.describe(), target)

    def run(
        self,
        job: Mapping[str, Any],
        *,
        files: Mapping[str, Path] = NO_FILES,
        timeout: float,
        outputs_to: Path | None = None,
    ) -> dict[str, Any]:
        """Run one job; see `Device.run`. A launch that is lost is repeated from its beginning, at most twice."""
        for pause in PAUSES:
            try:
                return self.launch(job, files=files, timeout=timeout, outputs_to=outputs_to)
            except DeviceLost:
                self._there.clear()
                time.sleep(pause)
        try:
            return self.launch(job, files=files, timeout=timeout, outputs_to=outputs_to)
        except DeviceLost as error:
            raise DeviceError(f"{error}\n  (tried {len(PAUSES) + 1} times)", next_step=error.next_step) from error

    def launch(
        self, job: Mapping[str, Any], *, files: Mapping[str, Path], timeout: float, outputs_to: Path | None
    ) -> dict[str, Any]:
        """Run one job once. Raises DeviceLost when the connection broke; nothing is left half done then."""
        greeting = self.greet()
        runtime = str(job.get("runtime") or "")
        start = self.interpreter(runtime)
        with importlib.resources.as_file(facts("device_bench") / "bench.py") as program:
            placed = self.push({**files, "": program})
        folder = f"{greeting.cache}/jobs/{secrets.token_hex(8)}"
        there = place(job, placed)
        if outputs_to is not None:
            there["outputs_to"] = f"{folder}/out"
        pinned = [f"{name}={value}" for name, value in pinned_environment(int(job.get("threads", 1))).items()]
        words = [folder, f"{timeout:g}", "" if outputs_to is None else "keep", *pinned, *start, placed[""]]
        try:
            done = self.ask(SUPERVISE, *words, line=json.dumps(there), timeout=timeout + GRACE_SECONDS)
            answer = self._read(done, job=job, timeout=timeout, bench=placed[""])
            if outputs_to is not None:
                self._pull(folder, answer, outputs_to=outputs_to)
        finally:
            if outputs_to is not None:
                with contextlib.suppress(DeviceError):
                    self.ask(DROP, folder, timeout=SHORT_SECONDS)
        return answer

    def greet(self) -> Greeting:
        """Return what the device said at first contact: the boot that all launches of this object belong to."""
        if self._greeting is None:
            done = self.ask(HELLO, self._cache, timeout=SHORT_SECONDS)
            if done.exit_code != 0:
                raise DeviceError(
                    f"{self.name}: no folder for our files there: {_last(done.stderr)}",
                    next_step="name a folder that can be written: `?cache=/path/on/the/device`",
                )
            pairs = [line.partition("=") for line in _text(done.stdout).splitlines()]
            said = {key: value.strip() for key, _, value in pairs}
            if not said.get("cache", "").startswith("/"):
                raise DeviceLost(f"{self.name}: it did not say where its cache is, but {_text(done.stdout)[:200]!r}")
            self._greeting = Greeting(said["cache"], said.get("boot_id", ""), said)
        return self._greeting

    def push(self, files: Mapping[str, Path]) -> dict[str, str]:
        """Put files into the device's cache unless their bytes are there already; return where each of them is.

        What was found there once is not looked at again until a connection is lost.
        """
        called = {name: _called(Path(path)) for name, path in files.items()}
        cache, names = self.greet().cache, sorted(set(called.values()) - self._there)
        if names:
            self._there |= set(_text(self.ask(CHECK, cache, *names, timeout=PUSH_SECONDS).stdout).split()) & set(names)
        missing = {called[name]: Path(path) for name, path in files.items() if called[name] not in self._there}
        if missing:
            with tempfile.TemporaryFile(prefix="edgeexport-push-") as stream:
                _archive(missing, stream)
                words = (cache, f"{cache}/jobs/{secrets.token_hex(8)}", *sorted(missing))
                done = self.ask(PUSH, *words, source=stream, timeout=PUSH_SECONDS)
            self._check_push(done)
            self._there |= set(missing)
        return {name: f"{cache}/files/{each}" for name, each in called.items()}

    def ask(
        self,
        script: str,
        *words: str,
        timeout: float,
        line: str | None = None,
        source: IO[bytes] | None = None,
    ) -> Done:
        """Run a script with words on the device; stdin is one held line, a file, or nothing.

        Raises DeviceLost or DeviceError (see `lost`) unless the device said how it ended.
        """
        mark = f"edgeexport-{secrets.token_hex(8)}"
        command = self.carrier(quote("sh", "-c", FRAME, "sh", mark, script, *words))
        try:
            limit = OUTPUTS_LIMIT if script is PULL else process.ANSWER_LIMIT
            done = execute(command, timeout=timeout, line=line, source=source, limit=limit)
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"{self.name}: no answer within {timeout:g} s; the connection was ended") from error
        except OSError as error:
            raise no_program(command[0], error) from error
        pattern = rf"{mark} begin\r?\n(.*)\r?\n{mark} end (\d+)\r?\n".encode()
        found = re.search(pattern, done.stdout, re.DOTALL)
        if found is None:
            said = " / ".join(filter(None, (_last(done.stderr), _last(_text(done.stdout)))))
            raise self.lost(f"exit code {done.exit_code}: {said or 'nothing was said'}")
        return Done(int(found[2]), found[1], done.stderr)

    def _check_push(self, done: Done) -> None:
        if done.exit_code == 0:
            return
        if "o space left" in done.stderr:
            raise DeviceError(
                f"{self.name}: no space left on the device: {_last(done.stderr)}",
                next_step="free some, or name another folder: `?cache=/path/on/the/device`",
            )
        if done.exit_code in {NO_CACHE, NO_WRITE}:
            raise DeviceError(f"{self.name}: files cannot be written there: {_last(done.stderr)}")
        raise DeviceLost(f"{self.name}: a push arrived damaged: {_last(done.stderr) or 'other bytes than were sent'}")

    def _read(self, done: Done, *, job: Mapping[str, Any], timeout: float, bench: str) -> dict[str, Any]:
        """Return the program's answer, from this boot and this program."""
        mode = str(job.get("mode"))
        boot, _, stdout = _text(done.stdout).partition("\n")
        if done.exit_code == LATE:
            raise DeviceError(f"{self.name}: no answer to a {mode!r} job within {timeout:g} s; it was killed")
        if done.exit_code == NO_CACHE:
            raise DeviceError(f"{self.name}: the job could not be started there: {_last(done.stderr)}")
        if self._greeting is not None and boot.strip() != self._greeting.boot_id:
            raise DeviceError(
                f"{self.name}: it was rebooted, or another machine answers: boot {boot.strip()!r}, "
                f"was {self._greeting.boot_id!r}",
                next_step="measure again from the start",
            )
        try:
            answer = read_answer(stdout, done.stderr, exit_code=done.exit_code, mode=mode, device=self.name)
        except BenchFailed as error:
            if error.kind != "runtime_missing":
                raise
            raise self.missing(str(job.get("runtime"))) from error
        digest = bench.rpartition("/")[2].partition(".")[0]
        if answer.get("bench_digest") != f"sha256:{digest}":
            raise DeviceError(f"{self.name}: another program answered: {answer.get('bench_digest')}, sent {digest}")
        return answer

    def missing(self, runtime: str) -> MissingExtra:
        """Return the error for a runtime that no Python of the device has."""
        package = runtime.replace("_", "-")
        error = MissingExtra(package, extra="all", purpose=f"running a model on {self.name}")
        error.args = (f"{self.name}: no Python there has numpy and {package!r}",)
        error.next_step = f"on the device: python3 -m pip install numpy {package}"
        return error

    def _pull(self, folder: str, answer: Mapping[str, Any], *, outputs_to: Path) -> None:
        """Fetch the outputs that an answer lists; they appear in `outputs_to` when all of them are right."""
        listed = [entry for sample in read_outputs(answer) for entry in sample.values()]
        expected = {entry.file: entry.digest for entry in listed}
        done = self.ask(PULL, f"{folder}/out", *expected, timeout=PUSH_SECONDS)
        if done.exit_code != 0:
            raise DeviceError(f"{self.name}: outputs are missing there: {_last(done.stderr)}")
        contents = dict(zip(expected, _parts(done.stdout), strict=False))
        for name, digest in expected.items():
            actual = "sha256:" + hashlib.sha256(contents.get(name, b"")).hexdigest()
            if actual != digest:
                raise DeviceLost(f"{self.name}: the output {name} arrived damaged: expected {digest}, is {actual}")
        outputs_to.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (outputs_to / name).write_bytes(content)


def execute(
    command: Sequence[str],
    *,
    timeout: float,
    line: str | None = None,
    source: IO[bytes] | None = None,
    limit: int = process.ANSWER_LIMIT,
) -> Done:
    """Run a local command in a session of its own, which is gone afterwards. `line` is written and stdin held open.

    Raises TimeoutExpired, DeviceError for more than `limit` bytes, and OSError where the command cannot be started.
    """
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if line is not None else source or subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
        start_new_session=True,
    )
    held, child.stdin = child.stdin, None
    try:
        if held is not None and line is not None:
            threading.Thread(target=_feed, args=(held, line), daemon=True).start()
        stdout, stderr = process.gather(child, timeout=timeout, limit=limit, who=command[0])
    finally:
        process.end(child)
        if held is not None:
            with contextlib.suppress(OSError):
                held.close()
    return Done(child.returncode, stdout, stderr.decode("utf-8", "replace"))


def _feed(stream: IO[bytes], line: str) -> None:
    """Write the line; a reader that went away is found out elsewhere."""
    with contextlib.suppress(OSError, ValueError):
        stream.write(line.encode() + b"\n")
        stream.flush()


def _called(path: Path) -> str:
    """What a file is called on the device: its digest, and a suffix by which runtimes know formats."""
    suffix = path.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,12}", path.suffix) else ""
    return file_digest(path).removeprefix("sha256:") + suffix


def _archive(files: Mapping[str, Path], stream: IO[bytes]) -> None:
    """Write a plain tar with just names and bytes, and go back to its start."""
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, path in sorted(files.items()):
            with path.open("rb") as content:
                entry = tarfile.TarInfo(name)
                entry.size = os.fstat(content.fileno()).st_size
                entry.mode = 0o600
                archive.addfile(entry, content)
    stream.seek(0)


def _parts(stream: bytes) -> list[bytes]:
    """Split what PULL wrote: the size of a file on a line, its bytes, and so on."""
    parts = []
    while stream:
        size, _, rest = stream.partition(b"\n")
        count = int(size) if size.strip().isdigit() else 0
        parts.append(rest[:count])
        stream = rest[count:]
    return parts


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace").replace("\r\n", "\n")


def _last(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
