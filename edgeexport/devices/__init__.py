"""Devices: where it runs. One module per way to reach a machine, behind the small protocol of `devices.protocol`.

The rule: a device never imports another, and none is loaded before it is asked for.
"""

from __future__ import annotations

import importlib

from edgeexport.devices.protocol import Device
from edgeexport.errors import RequestError

# Scheme of a reference -> module with `connect(reference) -> Device`.
DEVICES = {"local": "edgeexport.devices.local"}


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
