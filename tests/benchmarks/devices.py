"""A bundle on real devices: behind an OpenSSH server, behind an adbd without Python, in a Chromium. Each gives a valid
record or not.

Needs tests/devices/fetch_servers.py to have run, `edgeexport devices install emulated` for the phone, whose arm64
programs are emulated here (its record has outputs and no times), and a Chromium with `devices install browser`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeexport import devices
from tests.benchmarks.bar import Bar
from tests.devices import adbd, sshd
from tests.devices.bundles import run_bundle
from tests.pipeline.conftest import Desk

Record = dict[str, Any]


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Pack one bundle and run it on every device."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = _pack(folder / "desk")
        records = {kind: ask(folder / kind, bundle) for kind, ask in DEVICES.items()}
    figures = {kind: _told(record) for kind, record in records.items()}
    valid = sum(bool(record.get("valid")) for record in records.values())
    return figures, {"valid records": Bar(valid, len(DEVICES), "every device, a real server each", "min")}


def _pack(folder: Path) -> Path:
    folder.mkdir()
    desk = Desk(folder)
    done = desk.start("--device", "none")
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return desk.bundle()


def _behind_sshd(folder: Path, bundle: Path) -> Record:
    folder.mkdir()
    with sshd.running(folder) as server:
        return run_bundle(devices.get(server.reference(python=sys.executable)), bundle, timed=True)


def _behind_adbd(folder: Path, bundle: Path) -> Record:
    request = json.dumps([{"verb": "bundle", "bundle": str(bundle), "timed": False}])
    with adbd.running(folder, adbd.cortex_a53()) as phone:
        done = phone.inside(sys.executable, "-m", "tests.devices.ask", phone.reference, given=request)
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
    answer: Record = json.loads(done.stdout)[0]
    return answer.get("answer", answer)


def _in_a_chromium(folder: Path, bundle: Path) -> Record:
    del folder
    return run_bundle(devices.get("browser"), bundle, timed=True)


# How each kind is asked; one that is added counts.
DEVICES: dict[str, Callable[[Path, Path], Record]] = {
    "sshd": _behind_sshd,
    "adbd": _behind_adbd,
    "chromium": _in_a_chromium,
}


def _told(record: Record) -> Record:
    """What of a record is worth printing."""
    if "error" in record:
        return record
    measured, machine = record.get("measurement") or {}, record["device"]
    return {
        "valid": record["valid"],
        "device": machine["device"],
        "arch": machine["arch"],
        "cpu": machine["cpu"],
        "runtime": machine["runtime_version"],
        "goldens": record["goldens"],
        "worst golden difference / tolerance": record["worst"],
        "latency_ms": (measured.get("latency") or {}).get("median_ms"),
        "reasons": measured.get("reasons", []),
    }
