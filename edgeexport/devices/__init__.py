"""Devices: where it runs. One module per way to reach a machine, behind the small protocol of `devices.protocol`.

The rule: a device never imports another, and none is loaded before it is asked for.
"""

from __future__ import annotations

import importlib

from edgeexport.devices.protocol import Device
from edgeexport.errors import RequestError
from edgeexport.records.device import Reachability

# Scheme of a reference -> module with `connect(reference) -> Device` and `available() -> tuple[Reachability, ...]`.
DEVICES = {name: f"edgeexport.devices.{name}" for name in ("local", "emulated", "ssh", "adb", "browser")}


def names() -> tuple[str, ...]:
    """Return the schemes of all known ways to reach a machine."""
    return tuple(DEVICES)


def get(reference: str) -> Device:
    """Return the device that `reference` (`local`, or `SCHEME://ADDRESS`) names. Raises RequestError."""
    scheme = reference.partition(":")[0]
    if scheme not in DEVICES:
        raise RequestError(f"no way to reach a device {reference!r}", next_step="known: " + ", ".join(DEVICES))
    device: Device = importlib.import_module(DEVICES[scheme]).connect(reference)
    return device


def available() -> tuple[Reachability, ...]:
    """Return every device that this machine knows of, reachable or not, and why not. Each module speaks for its own."""
    found: list[Reachability] = []
    for module in DEVICES.values():
        found.extend(importlib.import_module(module).available())
    return tuple(found)
