"""Ports of test servers, and the proof that nobody outside this machine can reach them."""

from __future__ import annotations

import socket
from pathlib import Path

LISTENING = "0A"


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(pid: int) -> set[str]:
    """Return the addresses, as the kernel writes them, on which a process listens."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(str(entry.readlink()))
        except OSError:
            continue
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and f"socket:[{fields[9]}]" in inodes:
                found.add(fields[1].partition(":")[0])
    return found


def only_loopback(pid: int) -> None:
    """Fail unless a process listens, and on loopback addresses only."""
    loopback = {"0100007F", "0" * 24 + "01000000", "0" * 16 + "FFFF0000" + "0100007F"}
    found = listening(pid)
    assert found, f"process {pid} listens nowhere"
    assert found <= loopback, f"process {pid} listens on {found - loopback}"
