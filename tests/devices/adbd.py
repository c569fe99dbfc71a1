"""A real adbd and a real adb server in a private network namespace: what an Android device looks like from here.

adbd gives a shell to whoever connects, and binds every address and a vsock port besides. So it runs where there is no
network but a loopback of its own, behind a shim (loopback.c) that keeps it there, and is checked before it is used.

The rule: all of it ends with the test, by id. Whoever talks to it goes through `inside`. The device has no Python on
its PATH, a `getprop` and a `dumpsys` of a phone, and a program that starts arm64 programs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.devices.fetch_servers import adbd, folder, libraries
from tests.devices.loopback import only_loopback
from tests.needs import ROOT

PORT, SERIAL = "5038", "127.0.0.1:5555"
SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40
SHIM = Path(__file__).with_name("loopback.c")
TOOLS = (
    "sh", "cat", "echo", "env", "find", "head", "id", "kill", "mkdir", "mv", "rm", "sed", "setsid", "sha256sum",
    "sleep", "tar", "touch", "uname", "wc",
)  # fmt: skip
GETPROP = """
case $1 in
    ro.build.version.sdk) echo 34 ;;
    ro.build.version.release) echo 14 ;;
    ro.product.model) echo "Test Phone" ;;
    ro.serialno) echo TEST0001 ;;
esac
"""
DUMPSYS = """
case $1 in
    thermalservice) printf 'IsStatusOverride: false\\nThermal Status: 1\\nCached temperatures:\\n' ;;
    battery) printf 'Current Battery Service state:\\n  AC powered: false\\n  USB powered: true\\n  level: 87\\n' ;;
esac
"""


@dataclass(frozen=True)
class Phone:
    """A running device. `holder` is the process whose network it is on; `folder` is the device's own storage."""

    folder: Path
    holder: int

    @property
    def reference(self) -> str:
        return f"adb://{SERIAL}@{PORT}?cache={self.folder}/tmp/edgeexport&runner={self.folder}/bin/arm64"

    def inside(self, *command: str, given: str = "", timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Run a command of this machine on the device's network."""
        environment = {**os.environ, "PATH": f"{self.folder}/here:{os.environ['PATH']}"}
        return subprocess.run(
            [*_enter(self.holder), *command],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=environment,
            cwd=ROOT,
        )

    def left(self) -> list[str]:
        """Folders of jobs that are still there."""
        return [path.name for path in (self.folder / "tmp/edgeexport/jobs").iterdir()]


def available() -> bool:
    """Whether adbd, a compiler for the shim and private networks are here."""
    private = subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0
    return adbd(folder()).exists() and bool(shutil.which("cc")) and bool(shutil.which("nsenter")) and private


def cortex_a53() -> str:
    """Return shell that runs the arm64 program in "$@" on an emulated Cortex-A53."""
    from edgeexport.devices.guest.machine import command, environment
    from edgeexport.devices.guest.presets import PRESETS
    from edgeexport.devices.guest.root import installed

    root = installed()
    words = command(root, PRESETS["armv8.0"])[:-1]
    libraries_of_qemu = environment(root, site="", threads=1)["LD_LIBRARY_PATH"]
    return f'export LD_LIBRARY_PATH={libraries_of_qemu}\nexec {" ".join(words)} "$@"'


@contextlib.contextmanager
def running(where: Path, arm64: str) -> Iterator[Phone]:
    """Start network, adbd and adb server; end them. `arm64`: shell that runs the arm64 program in "$@"."""
    _furnish(where, arm64)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(where / "loopback.so"), str(SHIM), "-ldl"], check=True)
    command = ["unshare", "-rn", sys.executable, "-m", "tests.devices.adbd"]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    started = [holder]
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        started.append(_start(holder.pid, where, command=_device_command(where)))
        _await_loopback(started[-1])
        started.append(_start(holder.pid, where, command=_server_command(where)))
        phone = Phone(where, holder.pid)
        _connect(phone)
        only_loopback(started[-1].pid)
        yield phone
    finally:
        for process in reversed(started):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()


def _furnish(where: Path, arm64: str) -> None:
    """Make the device's programs, and this machine's `adb`."""
    for name in ("bin", "tmp", "here", "home"):
        (where / name).mkdir(parents=True)
    for name in TOOLS:
        (where / "bin" / name).symlink_to(str(shutil.which(name)))
    # An unpacked adb wants its own libraries; the environment of its caller is nobody's business.
    adb = f'LD_LIBRARY_PATH={libraries(folder())} exec {folder()}/usr/bin/adb "$@"'
    home = f"HOME={where}/home\nexport HOME\n"
    for path, script in (
        (where / "bin/getprop", GETPROP),
        (where / "bin/dumpsys", DUMPSYS),
        (where / "bin/arm64", arm64),
        (where / "here/adb", home + adb),
    ):
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


def _device_command(where: Path) -> list[str]:
    bare = {"PATH": str(where / "bin"), "HOME": str(where / "home"), "LD_PRELOAD": str(where / "loopback.so")}
    settings = [f"{name}={value}" for name, value in {**bare, "LD_LIBRARY_PATH": libraries(folder())}.items()]
    return ["/usr/bin/env", "-i", *settings, str(adbd(folder()))]


def _server_command(where: Path) -> list[str]:
    # No search for emulators on neighbouring ports: the device has one name.
    quiet = ["/usr/bin/env", "ADB_LOCAL_TRANSPORT_MAX_PORT=5553", "ADB_MDNS_AUTO_CONNECT=0"]
    return [*quiet, str(where / "here/adb"), "-P", PORT, "server", "nodaemon"]


def _enter(holder: int) -> list[str]:
    return ["nsenter", "-t", str(holder), "-U", "-n", "--preserve-credentials", "--"]


def _start(holder: int, where: Path, *, command: list[str]) -> subprocess.Popen[bytes]:
    with (where / "log").open("ab") as log:
        return subprocess.Popen([*_enter(holder), *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _await_loopback(process: subprocess.Popen[bytes]) -> None:
    for attempt in range(200):
        try:
            only_loopback(process.pid)
            return
        except (AssertionError, FileNotFoundError):
            if attempt == 199 or process.poll() is not None:
                raise
            time.sleep(0.05)


def _connect(phone: Phone) -> None:
    for _ in range(100):
        done = phone.inside("adb", "-P", PORT, "connect", SERIAL)
        listed = phone.inside("adb", "-P", PORT, "devices").stdout
        if f"{SERIAL}\tdevice" in listed:
            return
        time.sleep(0.1)
    raise RuntimeError(
        f"adb does not reach the device: {done.stdout} {done.stderr} {(phone.folder / 'log').read_text()}"
    )


def _hold() -> None:
    """Bring this namespace's loopback up, say so, and stay until stdin ends."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP | IFF_RUNNING))
    sys.stdout.write("up\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    _hold()
