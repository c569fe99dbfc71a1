"""A real OpenSSH server on loopback, with keys of its own; as root, in a mount namespace of its own.

The rule: it listens on 127.0.0.1 only, knows one key, and ends with the test by its own id.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.devices.fetch_servers import folder, libraries, sshd
from tests.devices.loopback import free_port, only_loopback

CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/client_key.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
Subsystem sftp internal-sftp
"""
CLIENT = """
Host board
    HostName 127.0.0.1
    Port {port}
    IdentityFile {folder}/client_key
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile /dev/null
"""
# As root, sshd wants a user to fall back to and an empty folder of root's: only this process sees them.
PRIVATE = 'mount -t tmpfs tmpfs /run && mkdir /run/sshd && mount --bind "$1/passwd" /etc/passwd && shift && exec "$@"'


@dataclass(frozen=True)
class Sshd:
    """A running server. `reference(...)` names it as a user would; `folder` holds keys and configuration."""

    folder: Path
    port: int

    def reference(self, **options: str) -> str:
        given = {"config": str(self.folder / "config"), "cache": str(self.folder / "cache"), **options}
        return "ssh://board?" + "&".join(f"{name}={value}" for name, value in given.items())


def available() -> bool:
    """Whether the server, a client and what root needs are here."""
    return sshd(folder()).exists() and shutil.which("ssh") is not None and shutil.which("ssh-keygen") is not None


@contextlib.contextmanager
def running(where: Path) -> Iterator[Sshd]:
    """Start a server that keeps its files in `where`, and end it."""
    for name in ("host_key", "client_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(where / name)], check=True)
    port = free_port()
    (where / "sshd_config").write_text(CONFIG.format(port=port, folder=where))
    (where / "config").write_text(CLIENT.format(port=port, folder=where))
    host = (where / "host_key.pub").read_text().rsplit(" ", 1)[0]
    (where / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}\n")
    command = [str(sshd(folder())), "-D", "-e", "-f", str(where / "sshd_config")]
    if os.geteuid() == 0:
        users = Path("/etc/passwd").read_text()
        (where / "passwd").write_text(users + "sshd:x:74:74::/run/sshd:/usr/sbin/nologin\n")
        command = ["unshare", "-m", "sh", "-c", PRIVATE, "sh", str(where), *command]
    with (where / "log").open("wb") as log:
        environment = {**os.environ, "LD_LIBRARY_PATH": libraries(folder())}
        process = subprocess.Popen(command, stderr=log, env=environment, start_new_session=True)
    try:
        _await(port, process, log=where / "log")
        only_loopback(process.pid)
        yield Sshd(where, port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await(port: int, process: subprocess.Popen[bytes], *, log: Path) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"sshd did not start: {log.read_text()}")
