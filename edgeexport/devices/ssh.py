"""A machine behind ssh: `ssh://[user@]host[:port]`, by the system's own ssh and the user's configuration of it.

    ?python=/path   the Python that has the runtime; else python3, python and the usual environments are tried
    ?install=1      make an environment in the cache when none has the runtime, and pip install it there
    ?cache=/path    folder for our files; else ~/.cache/edgeexport there
    ?config=/path   an ssh configuration file of this machine (ssh -F)

The rule: nothing is asked of anybody (BatchMode), and a host whose key is not known is refused, never added. The login
shell there must read POSIX quotes (sh, dash, bash, zsh, ash, mksh).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from edgeexport.devices.protocol import Device
from edgeexport.devices.scripts import INSTALL, PROBE, PROBE_PYTHON
from edgeexport.devices.shell import DeviceLost, ShellDevice, listed_without
from edgeexport.errors import DeviceError, RequestError
from edgeexport.records.device import Reachability

OPTIONS = ("python", "install", "cache", "config")
SETTINGS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "UpdateHostKeys=no",
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
)
# A name of the ssh configuration, a host name or an address; an IPv6 address stands in brackets.
ADDRESS = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]{0,63})@)?"
    r"(?:(?P<host>[A-Za-z0-9_][A-Za-z0-9._-]{0,252})|\[(?P<six>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\])"
    r"(?::(?P<port>[0-9]{1,5}))?/?"
)
# What no second try mends, as OpenSSH says it.
LASTING = {
    "Host key verification failed": "check the key, then connect once by hand: ssh HOST",
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "find out why; ssh-keygen -R HOST forgets the old key",
    "Permission denied": "let a key in without a password: ssh-copy-id HOST (passwords are never asked for)",
    "Too many authentication failures": "name one key for this host in ~/.ssh/config",
    "Could not resolve hostname": "check the name, or add it to ~/.ssh/config",
    "Bad configuration option": "mend the ssh configuration",
    "Can't open user config file": "give the path of an ssh configuration file",
    "no matching": "the device's ssh is too old for this machine's: allow what it names in ~/.ssh/config",
    "protocol error": "is that an ssh server?",
}
SEARCH_SECONDS = 120.0
INSTALL_SECONDS = 1200.0


class Ssh(ShellDevice):
    """A machine behind ssh."""

    def __init__(self, name: str, command: list[str], *, options: Mapping[str, str]) -> None:
        """`command`: the local ssh command that takes one line of shell. `options`: of the reference."""
        super().__init__(name, cache=options.get("cache", ""))
        self._command = command
        self._python = options.get("python", "")
        self._install = options.get("install") == "1"
        self._pythons: dict[str, str] = {}

    def carrier(self, line: str) -> list[str]:
        """Return the ssh command."""
        return [*self._command, line]

    def interpreter(self, runtime: str) -> list[str]:
        """Return the first Python that has numpy and the runtime; with `install` one is made if there is none."""
        if runtime not in self._pythons:
            self._pythons[runtime] = self._search(runtime)
        return [self._pythons[runtime], "-X", "faulthandler"]

    def lost(self, said: str) -> DeviceError:
        """Return a lasting error for what ssh calls by name, else DeviceLost."""
        for phrase, remedy in LASTING.items():
            if phrase in said:
                return DeviceError(f"{self.name}: {said}", next_step=remedy)
        return DeviceLost(f"{self.name}: the connection was lost: {said}")

    def _search(self, runtime: str) -> str:
        cache = self.greet().cache
        made = f"{cache}/venv-{runtime}/bin/python"
        named = [self._python] if self._python else [made, "python3", "python", "venv/bin/python", ".venv/bin/python"]
        found = self._probe(named, runtime)
        if self._install and runtime and not self._python and not any(each["has"] for each in found):
            self._make(f"{cache}/venv-{runtime}", runtime)
            found = self._probe([made], runtime)
        fit = [each for each in found if each["has"] or not runtime]
        if fit:
            return str(fit[0]["python"])
        if found:
            error = self.missing(runtime)
            error.next_step += ", or let it be put into an environment of its own: `?install=1`"
            raise error
        raise DeviceError(
            f"{self.name}: no Python 3.8 or newer is there (tried {', '.join(named)})",
            next_step="name one: `?python=/path/on/the/device`",
        )

    def _probe(self, pythons: list[str], runtime: str) -> list[dict[str, Any]]:
        """Ask every Python there for its path and whether it has numpy and the runtime; those fit come first."""
        done = self.ask(PROBE, PROBE_PYTHON, runtime, *pythons, timeout=SEARCH_SECONDS)
        answers = []
        for line in done.stdout.decode("utf-8", "replace").splitlines():
            try:
                answer = json.loads(line)
            except ValueError:
                continue
            if isinstance(answer, dict) and isinstance(answer.get("python"), str) and "has" in answer:
                answers.append(answer)
        return sorted(answers, key=lambda answer: not answer["has"])

    def _make(self, folder: str, runtime: str) -> None:
        """Make an environment in the cache, with numpy and the runtime, or raise with what pip said."""
        package = runtime.replace("_", "-")
        done = self.ask(INSTALL, folder, "numpy", package, timeout=INSTALL_SECONDS)
        if done.exit_code != 0:
            said = [line for line in done.stderr.splitlines() if line.strip()][-4:]
            raise DeviceError(f"{self.name}: {package} could not be installed there: " + " / ".join(said))


def connect(reference: str) -> Device:
    """Return the machine behind `ssh://[user@]host[:port][?option=value&…]`. Connects at first use.

    Raises RequestError for a reference that is none.
    """
    address, _, query = reference.removeprefix("ssh://").partition("?")
    found = ADDRESS.fullmatch(address)
    if not reference.startswith("ssh://") or found is None or int(found["port"] or 22) not in range(1, 65536):
        raise RequestError(f"{reference!r} is no address", next_step="write ssh://user@host or ssh://user@host:port")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key in options:
        if key not in OPTIONS:
            raise RequestError(f"{reference!r}: unknown option {key!r}", next_step="known: " + ", ".join(OPTIONS))
    command = ["ssh", "-T", *(["-F", options["config"]] if "config" in options else [])]
    for setting in SETTINGS:
        command += ["-o", setting]
    command += ["-p", found["port"]] if found["port"] else []
    command += ["-l", found["user"]] if found["user"] else []
    return Ssh(f"ssh://{address.rstrip('/')}", [*command, "--", found["host"] or found["six"]], options=options)


def available() -> tuple[Reachability, ...]:
    """Return how to name a machine behind ssh: which ones there are, only their users know."""
    if shutil.which("ssh") is None:
        return (listed_without("ssh://user@host", "ssh"),)
    reason = "name one: any host that `ssh -o BatchMode=yes HOST` reaches, with a Python that has the runtime"
    return (Reachability("ssh://user@host", reachable=False, reason=reason),)
