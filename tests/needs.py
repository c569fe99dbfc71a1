"""What a test may need beyond Python, and the rule that CI skips nothing it is meant to cover.

`need("strace")` skips the test where strace is missing. When the environment variable EDGEEXPORT_REQUIRE lists
"strace", the same test fails instead; and once that variable is set, a skip that does not go through `need` fails too.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("EDGEEXPORT_DATA") or ROOT.parent / "shared" / "data")


def _modules(*names: str) -> Callable[[], bool]:
    return lambda: all(importlib.util.find_spec(name) is not None for name in names)


def _program(*names: str) -> Callable[[], bool]:
    return lambda: any(shutil.which(name) for name in names)


def _private_mounts() -> bool:
    """Whether this machine lets a process mount a small disk of its own."""
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def _emulated() -> bool:
    """Whether `edgeexport devices install emulated` was run for this version."""
    from edgeexport.devices.guest import root

    return not root.missing()


def _onnxruntime_web() -> bool:
    """Whether `edgeexport devices install browser` was run for this version."""
    from edgeexport.devices.browser import package

    return not package.missing()


def _unpacked(server: str) -> Callable[[], bool]:
    """Whether tests/devices/fetch_servers.py has fetched a server, and what runs it is here."""
    return lambda: importlib.import_module(f"tests.devices.{server}").available()


NEEDS: dict[str, Callable[[], bool]] = {
    "data": (DATA / "cifar10").is_dir,
    "torch": _modules("torch"),
    "ort": _modules("onnx", "onnxruntime"),
    "litert": _modules("litert_torch", "ai_edge_quantizer", "ai_edge_litert"),
    "tflite-runtime": _modules("tflite_runtime"),
    "strace": _program("strace"),
    "unshare": _private_mounts,
    "qemu": _program("qemu-aarch64", "qemu-aarch64-static"),
    "emulated": _emulated,
    "sshd": _unpacked("sshd"),
    "adbd": _unpacked("adbd"),
    "browser": _program("chromium", "chromium-browser", "google-chrome"),
    "onnxruntime-web": _onnxruntime_web,
}


def required() -> frozenset[str]:
    """The names in EDGEEXPORT_REQUIRE; one that nobody knows is an error, for it would demand nothing."""
    names = frozenset(filter(None, re.split(r"[,\s]+", os.environ.get("EDGEEXPORT_REQUIRE", ""))))
    if unknown := names - NEEDS.keys():
        raise pytest.UsageError(f"EDGEEXPORT_REQUIRE: unknown {sorted(unknown)}; known: {sorted(NEEDS)}")
    return names


def need(name: str) -> None:
    """Skip the running test if `name` is missing on this machine; fail it if EDGEEXPORT_REQUIRE demands it."""
    if NEEDS[name]():
        return
    if name in required():
        pytest.fail(f"{name} is missing here and EDGEEXPORT_REQUIRE demands it", pytrace=False)
    pytest.skip(f"missing: {name}", allow_module_level=True)


def pytest_configure() -> None:
    """Refuse a misspelt EDGEEXPORT_REQUIRE before any test runs."""
    required()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Turn a skip that nobody may make into a failure."""
    return _judge((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    """The same for a whole module that skips itself."""
    return _judge((yield))


def _judge(report: Any) -> Any:
    if required() and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        name = reason.removeprefix("Skipped: ").removeprefix("missing: ")
        if name not in NEEDS or name in required():
            report.outcome = "failed"
            report.longrepr = f"skipped although EDGEEXPORT_REQUIRE is set: {reason} (say need(NAME) in the test)"
    return report
