"""A pretended device: a folder of this machine behind fake `ssh` and `adb`, which go wrong as told."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

SHIM = Path(__file__).with_name("shim.py")
# What tells the scripts of edgeexport.devices.scripts apart.
STEPS = {
    "hello": "XDG_CACHE_HOME", "unpack": "/root-*", "push": "tar -xf", "run": "job.json", "pull": "wc -c",
    "probe": "find_spec", "check": "touch", "install": "-m venv", "unpacked": "/ready", "phone": "getprop",
    "state": "dumpsys", "drop": "rm -rf", "version": "version",
}  # fmt: skip
# `ssh` and `adb`: a step that goes well runs at once; one that shall go wrong is the shim's.
PROGRAM = """
for line; do :; done
case $line in
{cases}
esac
echo $step >> {folder}/steps.txt
read -r wrong < {folder}/wrong.txt
case $wrong in
    $step | any) exec {python} -IS {shim} {folder} $step "$line" ;;
esac
[ $step != version ] || {{ echo "Android Debug Bridge version 1.0.41"; exit; }}
exec env -i PATH="{folder}/bin:$PATH" HOME={folder}/home sh -c "$line"
"""
# What the pushed root's loader is on a pretended phone: it leaves out its own words and runs this machine's Python.
LOADER = '#!/bin/sh\nunset PYTHONHOME PYTHONPATH\nshift 3\nexec {python} "$@"\n'


class Pretended:
    """Folders `home` and `bin` (first on the device's PATH), and what went over the wire."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("home", "bin", "here"):
            (folder / name).mkdir(parents=True)
        cases = "\n".join(f"    *'{text}'*) step={name} ;;" for name, text in STEPS.items())
        script = PROGRAM.format(cases=cases, folder=folder, python=sys.executable, shim=SHIM)
        for name in ("ssh", "adb"):
            self._program("here", name, script)
        self.plan()

    @property
    def path(self) -> str:
        """The PATH of this machine on which the fake programs come first."""
        return f"{self.folder / 'here'}:{os.environ['PATH']}"

    def plan(self, step: str = "", how: str = "", **more: Any) -> None:
        """Let `step` (hello, check, push, run, pull, any, …) go wrong, always or `times` times."""
        (self.folder / "plan.json").write_text(json.dumps({"step": step, "how": how, **more}))
        (self.folder / "wrong.txt").write_text((step or "none") + "\n")
        (self.folder / "steps.txt").write_text("")

    def program(self, name: str, script: str) -> None:
        """Put a program on the device's PATH."""
        self._program("bin", name, script)

    def steps(self) -> list[str]:
        """What was asked of the device, in order."""
        return (self.folder / "steps.txt").read_text().split()

    def jobs(self) -> list[Path]:
        """Folders of jobs that are left on the device; what is being cleared is waited for."""
        for _ in range(60):
            left = [path for path in (self.folder / "home").rglob("jobs/*") if path.is_dir()]
            if not left:
                break
            time.sleep(0.05)
        return left

    def processes(self) -> list[str]:
        """Command lines of processes that work in the device's folder or for it; some time to end is given."""
        for _ in range(100):
            found = list(self._processes())
            if not found:
                break
            time.sleep(0.05)
        return found

    def _processes(self) -> list[str]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                home = f"HOME={self.folder}/home".encode() in (entry / "environ").read_bytes()
            except OSError:
                continue
            if state != "Z" and (home or str(self.folder) in words):
                found.append(words)
        return found

    def _program(self, where: str, name: str, script: str) -> None:
        path = self.folder / where / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def root(self) -> Path:
        """Make what stands for an installed arm64 root; return its folder."""
        root = self.folder / "emulated"
        for name in ("root/lib", "root/usr/bin", "site"):
            (root / name).mkdir(parents=True)
        loader = root / "root/lib/ld-linux-aarch64.so.1"
        loader.write_text(LOADER.format(python=sys.executable))
        loader.chmod(0o755)
        (root / "site" / "package.py").write_text("")
        (root / "manifest.json").write_text("{}")
        return root
