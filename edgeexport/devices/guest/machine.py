"""How a guest program is started under QEMU.

The rule: the guest sees its own libraries, a clean environment and a /proc/cpuinfo that fits the CPU it is given.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from edgeexport.devices.guest.presets import Preset
from edgeexport.devices.guest.root import PYTHON
from edgeexport.devices.protocol import pinned_environment


def command(root: Path, preset: Preset, *, plugin: tuple[str, ...] = ()) -> list[str]:
    """Return the words that start the guest's Python on a preset; `plugin`: QEMU's options for one."""
    emulator = root / "qemu" / "usr" / "bin" / f"qemu-{preset.arch}"
    python = str(root / "root" / "usr" / "bin" / f"python{PYTHON}") if preset.arch == "aarch64" else sys.executable
    prefix = str(root / "prefixes" / preset.name)
    # The path to QEMU's own libraries is nothing to the guest.
    return [str(emulator), "-cpu", preset.model, "-L", prefix, "-U", "LD_LIBRARY_PATH", *plugin, python]


def environment(root: Path, *, site: str, threads: int) -> dict[str, str]:
    """Return the guest's environment; `site`: the folder of packages it may import, empty for the host's own."""
    libraries = ":".join(str(path) for lib in ("usr/lib", "lib") for path in (root / "qemu" / lib).glob("*-linux-gnu"))
    paths = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LD_LIBRARY_PATH": libraries}  # noqa: S108 - the guest's
    found = str(root / site) if site else os.environ.get("PYTHONPATH", "")
    packages = {"PYTHONPATH": found} if found else {}
    return {**paths, **pinned_environment(threads), **packages}
