"""An Android device behind adb: `adb://SERIAL`, or `adb://SERIAL@PORT` for another port of the adb server.

    ?runner=/path   a program there that starts arm64 programs (an emulator, on a device of another architecture)
    ?cache=/path    folder for our files; else /data/local/tmp/edgeexport

Android has no Python. What is pushed is the arm64 root of `edgeexport devices install emulated`: Debian's Python and
the runtimes' manylinux wheels, started through their own ld-linux-aarch64. They are not the builds that an app ships,
and every record says so in `runtime_version`.

The rule: the adb server belongs to everybody. It is asked for its version by socket before the adb client may talk to
it, since a client of another version would kill it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from edgeexport.devices.guest import root as layout
from edgeexport.devices.protocol import NO_FILES, Device
from edgeexport.devices.scripts import PHONE, STATE, UNPACK, UNPACKED
from edgeexport.devices.shell import SHORT_SECONDS, DeviceLost, ShellDevice, listed_without, no_program
from edgeexport.errors import DeviceError, MissingExtra, RequestError
from edgeexport.records.base import file_digest
from edgeexport.records.device import DeviceFacts, Reachability
from edgeexport.records.target import Target

OPTIONS = ("runner", "cache")
CACHE = "/data/local/tmp/edgeexport"
DEFAULT_PORT = "5037"
PORT_VARIABLE = "ANDROID_ADB_SERVER_PORT"
SERIAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:\[\]%-]{0,127}")
MANYLINUX = "manylinux build"
# What may be asked of programs that are emulated on the device: nothing with a clock in it.
UNTIMED = ("outputs", "memory", "describe")
UNPACK_SECONDS = 300.0
LIBRARIES = ("lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu")
# What no second try mends, as adb says it.
LASTING = {
    "unauthorized": "unlock the device and allow this computer to debug it",
    "no permissions": "give your user the right to the device's USB port (udev)",
    "insufficient permissions": "give your user the right to the device's USB port (udev)",
    "doesn't support PTY args": "Android 7 or newer is needed: older ones do not say how a command ended",
    "more than one device": "name the serial that `adb devices` shows",
    "failed to start daemon": "look at what else listens at the port of the adb server",
    "cannot bind": "look at what else listens at the port of the adb server",
}


class Adb(ShellDevice):
    """An Android device, or whatever else runs an adbd."""

    def __init__(self, name: str, serial: str, *, port: str, options: Mapping[str, str]) -> None:
        """`serial`: as `adb devices` shows it. `port`: of the adb server. `options`: of the reference."""
        super().__init__(name, cache=options.get("cache", CACHE))
        self._serial, self._port = serial, port
        self._runner = options.get("runner", "")
        self._phone: dict[str, str] | None = None
        self._root = ""

    def carrier(self, line: str) -> list[str]:
        """Return the adb command. Raises DeviceError for a server that this adb would kill."""
        spare_the_server(self._port)
        return ["adb", "-P", self._port, "-s", self._serial, "shell", "-T", line]

    def interpreter(self, runtime: str) -> list[str]:
        """Return the words that start the pushed Python through its own loader; pushes it when it is not there."""
        del runtime
        machine = self.phone()["machine"]
        if machine != "aarch64" and not self._runner:
            raise DeviceError(
                f"{self.name} is {machine}, and the Python that is pushed is aarch64's",
                next_step="name a program there that runs it: `?runner=/path/to/qemu-aarch64`",
            )
        root = self._push_root()
        libraries = ":".join(f"{root}/root/{name}" for name in LIBRARIES)
        found = [f"PYTHONHOME={root}/root/usr", f"PYTHONPATH={root}/site"]
        loader = [f"{root}/root/lib/ld-linux-aarch64.so.1", "--library-path", libraries]
        return [*found, *filter(None, [self._runner]), *loader, f"{root}/root/usr/bin/python3.11", "-s", "-P"]

    def lost(self, said: str) -> DeviceError:
        """Return a lasting error for what adb calls by name, else DeviceLost."""
        for phrase, remedy in LASTING.items():
            if phrase in said:
                return DeviceError(f"{self.name}: {said}", next_step=remedy)
        return DeviceLost(f"{self.name}: the connection was lost: {said}")

    def missing(self, runtime: str) -> MissingExtra:
        """Return the error for a runtime that the pushed root does not hold."""
        error = super().missing(runtime)
        error.next_step = "edgeexport devices install emulated --again"
        return error

    def describe(self, runtime: str = "") -> DeviceFacts:
        """Ask the device what it is; its system is Android where it has Android's properties."""
        known = super().describe(runtime)
        phone = self.phone()
        system = "android" if phone.get("sdk") else known.os
        return msgspec.structs.replace(known, os=system, product=phone.get("product", ""))

    def can_judge(self, target: Target) -> tuple[bool, str]:
        """Return whether the device is the target's kind; a program that is emulated there never speaks for it."""
        if self._runner:
            return False, f"{self.name} runs arm64 programs through {self._runner}: times there mean nothing"
        return super().can_judge(target)

    def launch(
        self,
        job: Mapping[str, Any],
        *,
        files: Mapping[str, Path] = NO_FILES,
        timeout: float,
        outputs_to: Path | None = None,
    ) -> dict[str, Any]:
        """Run one job; the answer's environment also holds Android's thermal state and battery, before and after."""
        if self._runner and job.get("mode") not in UNTIMED:
            raise DeviceError(
                f"{self.name}: a {job.get('mode')!r} job asks for times, and {self._runner} emulates: there are none",
                next_step="measure on an arm64 device, without `?runner=`",
            )
        watched = job.get("mode") == "time"
        before = self.state() if watched else {}
        answer = super().launch(job, files=files, timeout=timeout, outputs_to=outputs_to)
        if watched and isinstance(answer.get("environment"), dict):
            for when, state in (("before", before), ("after", self.state())):
                known = {key: value for key, value in state.items() if value is not None}
                answer["environment"].setdefault(when, {}).update(known)
        if self._runner and "memory" in answer:
            answer["memory"]["method"] += ", the emulator's own included"
        if answer.get("runtime_version"):
            answer["runtime_version"] = f"{answer['runtime_version']} ({MANYLINUX})"
        return answer

    def phone(self) -> dict[str, str]:
        """Return what Android says of itself, asked once: machine, sdk, release, product, serial."""
        if self._phone is None:
            self._phone = self._pairs(PHONE)
        return self._phone

    def state(self) -> dict[str, Any]:
        """Return thermal status (0 none … 6 shutdown), battery per cent and plugged, where Android says them."""
        said = self._pairs(STATE)
        state: dict[str, Any] = {}
        for key in ("thermal_status", "battery_percent"):
            state[key] = int(said[key]) if said.get(key, "").isdigit() else None
        state["plugged"] = {"true": True, "false": False}.get(said.get("plugged", ""))
        return state

    def _pairs(self, script: str) -> dict[str, str]:
        said = self.ask(script, timeout=SHORT_SECONDS).stdout.decode("utf-8", "replace")
        return {key: value.strip() for key, _, value in (line.partition("=") for line in said.splitlines())}

    def _push_root(self) -> str:
        """Return where the arm64 root is on the device: unpacked there once for each installation here."""
        if not self._root:
            here = layout.installed()
            named = file_digest(here / layout.MANIFEST).removeprefix("sha256:")[:16]
            root = f"{self.greet().cache}/root-{named}"
            if self.ask(UNPACKED, root, timeout=SHORT_SECONDS).exit_code != 0:
                with _packed(here) as archive:
                    there = self.push({"root": archive})["root"]
                done = self.ask(UNPACK, root, there, timeout=UNPACK_SECONDS)
                if done.exit_code != 0:
                    raise DeviceError(f"{self.name}: the arm64 root cannot be unpacked there: {done.stderr.strip()}")
                self._there.clear()
            self._root = root
        return self._root


def connect(reference: str) -> Device:
    """Return the device behind `adb://SERIAL[@PORT][?option=value&…]`. Connects at first use. Raises RequestError."""
    address, _, query = reference.removeprefix("adb://").partition("?")
    serial, _, port = address.rstrip("/").partition("@")
    port = port or os.environ.get(PORT_VARIABLE) or DEFAULT_PORT
    usable = port.isascii() and port.isdigit() and int(port) in range(1, 65536)
    if not reference.startswith("adb://") or not SERIAL.fullmatch(serial) or not usable:
        raise RequestError(
            f"{reference!r} is no adb device", next_step="write adb://SERIAL, as `adb devices` shows the serial"
        )
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key in options:
        if key not in OPTIONS:
            raise RequestError(f"{reference!r}: unknown option {key!r}", next_step="known: " + ", ".join(OPTIONS))
    return Adb(f"adb://{address.rstrip('/')}", serial, port=port, options=options)


def available() -> tuple[Reachability, ...]:
    """Return what a running adb server knows; none is started for the question."""
    port = os.environ.get(PORT_VARIABLE) or DEFAULT_PORT
    if shutil.which("adb") is None:
        return (listed_without("adb://SERIAL", "adb"),)
    listed = ask_server(port, "host:devices-l")
    if listed is None:
        reason = f"no adb server runs at port {port}: adb start-server"
        return (Reachability("adb://SERIAL", reachable=False, reason=reason),)
    rows = [line.split(maxsplit=2) for line in listed.splitlines() if len(line.split()) > 1]
    if not rows:
        return (Reachability("adb://SERIAL", reachable=False, reason="the adb server knows no device"),)
    return tuple(
        Reachability(f"adb://{serial}", reachable=state == "device", reason=" ".join([state, *more]))
        for serial, state, *more in rows
    )


def spare_the_server(port: str) -> None:
    """Raise DeviceError if a server runs at this port that is of another version than the adb on the PATH."""
    said = ask_server(port, "host:version")
    if said is None:
        return
    server, client = int(said, 16) if re.fullmatch(r"[0-9a-fA-F]{4}", said) else said, _client_version()
    if server != client:
        raise DeviceError(
            f"the adb server at port {port} is of version {server}, the adb on the PATH of {client}: it would kill "
            "the server, which others may be using",
            next_step=f"use the other adb, or another port: adb://SERIAL@PORT, or {PORT_VARIABLE}",
        )


def ask_server(port: str, question: str) -> str | None:
    """Return what the adb server on this machine answers, None when none runs. Raises DeviceError for nonsense."""
    try:
        with socket.create_connection(("127.0.0.1", int(port)), timeout=5) as connection:
            connection.sendall(f"{len(question):04x}{question}".encode())
            head = _receive(connection, 8)
            size = int(head[4:], 16) if re.fullmatch(rb"OKAY[0-9a-fA-F]{4}", head) else -1
            if size >= 0:
                return _receive(connection, size).decode("utf-8", "replace")
    except ConnectionRefusedError:
        return None
    except OSError as error:
        raise DeviceError(f"port {port} of this machine does not answer as an adb server: {error}") from error
    raise DeviceError(f"port {port} of this machine is no adb server's: it answered {head!r}")


def _receive(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size and (piece := connection.recv(size - len(content))):
        content += piece
    return content


def _client_version() -> int:
    """The protocol version of the adb on the PATH: 41 of `Android Debug Bridge version 1.0.41`."""
    try:
        said = subprocess.run(["adb", "version"], capture_output=True, text=True, timeout=SHORT_SECONDS, check=False)
    except OSError as error:
        raise no_program("adb", error) from error
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"`adb version` did not answer within {SHORT_SECONDS:g} s") from error
    found = re.search(r"version 1\.0\.(\d+)", said.stdout)
    if found is None:
        raise DeviceError(f"`adb version` does not say a version: {said.stdout[:100]!r}")
    return int(found[1])


@contextlib.contextmanager
def _packed(here: Path) -> Iterator[Path]:
    """A tar of the arm64 root and its packages."""
    with tempfile.TemporaryDirectory(prefix="edgeexport-root-") as folder:
        path = Path(folder) / "root.tar"
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
            for name in ("root", "site"):
                archive.add(here / name, arcname=name, filter=_plain)
        yield path


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same file whoever installed it, and owned by whoever unpacks it."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry
