"""Devices of the tests: pretended ones that go wrong on purpose, and a real OpenSSH server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeexport.devices import shell
from tests.devices import sshd
from tests.devices.pretend import Pretended
from tests.needs import need


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretended:
    """A pretended device, its fake programs first on the PATH, and no pause before a launch is repeated."""
    device = Pretended(tmp_path / "device")
    monkeypatch.setenv("PATH", device.path)
    monkeypatch.setattr(shell, "PAUSES", (0.0, 0.0))
    return device


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
    """A real OpenSSH server on loopback."""
    need("sshd")
    with sshd.running(tmp_path_factory.mktemp("sshd")) as running:
        yield running
