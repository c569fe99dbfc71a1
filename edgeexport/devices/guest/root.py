"""Where the emulated machines lie on this disk, and the check that they are what was installed.

The rule: nothing of an installation is used unless every file in it has the digest that was recorded when it was made.
A process checks once.
"""

from __future__ import annotations

import functools
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from edgeexport.devices.home import home
from edgeexport.errors import CorruptFile, MachineError
from edgeexport.records.base import digest, file_digest, from_json
from edgeexport.records.emulation import Installed
from edgeexport.workspace import version_of

MANIFEST = "manifest.json"
PLUGIN = "count.so"
INSTALL = "edgeexport devices install emulated"
# The guest's Python is Debian 12's, and it runs these. What is tested here must be what is tested there.
PYTHON = "3.11"
LIKE_HOST = ("onnxruntime", "ai-edge-litert")
NEEDED = (
    "numpy",
    "flatbuffers",
    "packaging",
    "protobuf",
    "backports.strenum",
    "tqdm",
    "typing-extensions",
    "ml_dtypes",
)
LEGACY = ("tflite-runtime==2.14.0", "numpy<2")
ARM_PACKAGES = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6", "zlib1g",
    "libexpat1", "libffi8", "libbz2-1.0", "liblzma5", "libssl3", "libuuid1", "libcrypt1",
)  # fmt: skip
# The emulator, and the libraries that it wants and a small Debian may lack.
HOST_PACKAGES = (
    "qemu-user", "libcapstone4", "liburing2", "libnuma1", "libglib2.0-0", "libgnutls30", "libp11-kit0", "libidn2-0",
    "libunistring2", "libtasn1-6", "libnettle8", "libhogweed6", "libgmp10", "libffi8", "libpcre2-8-0", "zlib1g",
)  # fmt: skip


def folder() -> Path:
    """Return where the emulated machines are, or would be."""
    return home() / "emulated"


def requirements() -> tuple[str, ...]:
    """Return what pip is asked for: the host's versions of the runtimes, and what they need."""
    pinned = [name if version_of(name) == "absent" else f"{name}=={version_of(name)}" for name in LIKE_HOST]
    return (*pinned, *NEEDED)


def plugin_source() -> bytes:
    """Return the C source of the plugin that counts instructions."""
    return (Path(__file__).parent / "count.c").read_bytes()


def recipe() -> str:
    """Return the digest of all that decides what an installation holds."""
    from edgeexport.devices.guest.presets import PRESETS

    machine = (platform.machine(), sys.version_info[:2])
    asked = (ARM_PACKAGES, HOST_PACKAGES, requirements(), LEGACY, machine)
    return digest([asked, digest(plugin_source()), [preset.cpuinfo() for preset in PRESETS.values()]])


def contents(root: Path) -> dict[str, str]:
    """Return path -> digest of every file below `root`; of a link, where it points. The manifest itself is left out."""
    return {str(path.relative_to(root)): _identity(path) for path in _files(root)}


def installed() -> Path:
    """Return the folder of an installation that fits this version and is intact. Raises MachineError, CorruptFile."""
    reason = missing()
    if reason:
        raise MachineError(f"emulated devices: {reason}", next_step=INSTALL)
    _check(folder())
    return folder()


def missing() -> str:
    """Return why there is no installation that fits this version, or nothing. Digests are not checked."""
    root = folder()
    if not (root / MANIFEST).is_file():
        return f"not installed in {root}"
    if manifest(root).recipe != recipe():
        return f"{root} was made for other versions than are here ({', '.join(requirements()[:2])})"
    return ""


def manifest(root: Path) -> Installed:
    """Read the record of an installation. Raises CorruptFile."""
    return from_json((root / MANIFEST).read_bytes(), Installed, origin=str(root / MANIFEST))


@functools.cache
def _check(root: Path) -> None:
    recorded, found = manifest(root).files, contents(root)
    for path in sorted(recorded.keys() | found.keys()):
        if recorded.get(path) != found.get(path):
            raise CorruptFile(
                f"{root / path} is not what was installed: expected {recorded.get(path, 'no such file')}, "
                f"found {found.get(path, 'no such file')}",
                next_step=f"{INSTALL} --again",
            )


def _files(root: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(root):
        links = [name for name in folders if Path(place, name).is_symlink()]
        yield from (Path(place, name) for name in [*names, *links] if name != MANIFEST)


def _identity(path: Path) -> str:
    return f"-> {path.readlink()}" if path.is_symlink() else file_digest(path)
