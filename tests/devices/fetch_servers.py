"""Fetch the servers that device tests run: OpenSSH's sshd, and Android's adbd and adb. Nothing is installed.

    python3 tests/devices/fetch_servers.py [FOLDER]

Debian's packages are unpacked below FOLDER (default: `.servers` in the clone), out of a private apt state with the
system's own mirror and keyring. Needs apt-get, dpkg-deb and some seconds; does nothing where they are there already.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "http://deb.debian.org/debian"
SSH = (
    "openssh-server", "libwrap0", "libgssapi-krb5-2", "libkrb5-3", "libk5crypto3", "libkrb5support0", "libcom-err2",
    "libkeyutils1",
)  # fmt: skip
ADB = (
    "adb", "adbd", "android-libbase", "android-libboringssl", "android-libcutils", "android-liblog",
    "android-libziparchive", "libbrotli1", "liblz4-1", "libprotobuf32", "libusb-1.0-0", "libzstd1",
)  # fmt: skip


def folder() -> Path:
    """Return where the servers are, or belong."""
    return Path(os.environ.get("EDGEEXPORT_TEST_SERVERS") or ROOT / ".servers")


def sshd(where: Path) -> Path:
    return where / "usr/sbin/sshd"


def adbd(where: Path) -> Path:
    return where / "usr/lib/android-sdk/platform-tools/adbd"


def libraries(where: Path) -> str:
    """Return the LD_LIBRARY_PATH that the unpacked programs need."""
    below = where / f"usr/lib/{platform.machine()}-linux-gnu"
    return f"{below}/android:{below}"


def fetch(where: Path) -> None:
    """Download and unpack what is missing."""
    if sshd(where).exists() and adbd(where).exists():
        return
    with tempfile.TemporaryDirectory(prefix="edgeexport-servers-") as name:
        state = Path(name)
        state.chmod(0o755)  # apt's own user reads there
        apt, codename = _private_apt(state)
        subprocess.run([*apt, "-qq", "update"], check=True, stdout=sys.stderr)
        subprocess.run([*apt, "-qq", "download", *SSH], check=True, cwd=state, stdout=sys.stderr)
        newer = ["-t", f"{codename}-backports"]
        subprocess.run([*apt, *newer, "-qq", "download", *ADB], check=True, cwd=state, stdout=sys.stderr)
        unpacked = state / "unpacked"
        for package in sorted(state.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(unpacked)], check=True)
        shutil.rmtree(unpacked / "usr/share")
        if where.exists():
            shutil.rmtree(where)
        shutil.copytree(unpacked, where, symlinks=True)


def _private_apt(state: Path) -> tuple[list[str], str]:
    """Return the apt-get command that knows nothing of the system but its mirror, and the release's name."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release["VERSION_CODENAME"].strip('"')
    asked = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    listed = subprocess.run(asked, check=False, capture_output=True, text=True).stdout.split("\n")
    mirrors = [line.split()[1].rstrip("/") for line in listed if line.startswith(f"{codename} ")]
    mirror = mirrors[0] if mirrors else MIRROR
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    lines = [f"deb [signed-by={KEYRING}] {mirror} {suite} main" for suite in (codename, f"{codename}-backports")]
    (state / "sources.list").write_text("\n".join(lines) + "\n")
    settings = {
        "Dir::Etc::sourcelist": state / "sources.list", "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::Lists": state / "lists", "Dir::Cache": state / "cache", "Dir::State::status": state / "status",
    }  # fmt: skip
    return ["apt-get", *(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))], codename


if __name__ == "__main__":
    fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else folder())
