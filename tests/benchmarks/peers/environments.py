"""One environment for each peer: made by pip in a cache folder, kept for the next run.

EDGEEXPORT_PEERS_CACHE names the folder; the system's temporary folder holds it otherwise. A peer that cannot be
installed is reported with pip's last words.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgeexport.workspace import version_of
from tests.needs import ROOT

INSTALL_SECONDS = 600


@dataclass(frozen=True)
class Peer:
    """A tool: the script that its user writes, and what pip installs for it; without packages it is this environment.

    first: installed before the rest, so that nothing pulls another build of it.
    """

    title: str
    script: str
    packages: tuple[str, ...] = ()
    first: tuple[str, ...] = ()

    @property
    def lines(self) -> int:
        """Return how many lines its user writes: those of the script that are neither empty nor its docstring."""
        text = (Path(__file__).parent / self.script).read_text(encoding="utf-8")
        return sum(bool(line.strip()) for line in text.split('"""', 2)[2].splitlines())


def _ours(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}=={version_of(name)}" for name in names)


_TORCH = tuple(
    line for line in (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").split() if line[:7] == "torch=="
)
_COMMON = _ours("onnxruntime", "onnx", "numpy")
PEERS = {
    "ours": Peer("edgeexport", "ours.py"),
    "ort": Peer("onnxruntime quantize_static", "ort_static.py", (*_COMMON, "sympy")),
    "olive": Peer("Olive 0.13.0", "olive_static.py", ("olive-ai==0.13.0", "requests", *_COMMON), _TORCH),
    "nncf": Peer("NNCF 3.4.0", "nncf_static.py", ("nncf==3.4.0", *_COMMON), _TORCH),
}


def python_of(name: str) -> tuple[Path | None, str]:
    """Return the interpreter of a peer's environment, made now if need be; or None and the reason."""
    peer = PEERS[name]
    if not peer.packages:
        return Path(sys.executable), ""
    cache = Path(os.environ.get("EDGEEXPORT_PEERS_CACHE") or Path(tempfile.gettempdir()) / "edgeexport-peers")
    folder = cache / name
    stamp, wanted = folder / "installed.json", json.dumps([*peer.first, *peer.packages])
    python = folder / "bin" / "python"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python, ""
    sys.stderr.write(f"{name}: installing into {folder}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    steps = [
        [sys.executable, "-m", "venv", "--without-pip", str(folder)],
        *([[*pip, *peer.first]] if peer.first else []),
    ]
    for step in [*steps, [*pip, *peer.packages]]:
        try:
            done = subprocess.run(step, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
        except subprocess.TimeoutExpired:
            return None, f"not installed within {INSTALL_SECONDS} s"
        if done.returncode:
            return None, f"cannot be installed: {done.stderr.strip().splitlines()[-1][:300]}"
    stamp.write_text(wanted, encoding="utf-8")
    return python, ""
