"""A device behind a real adb and a real adbd, without Python: the pushed arm64 root runs there, on an emulated A53."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeexport import devices
from tests.bundles.making import make
from tests.device_bench.tiny import dense_model, job
from tests.devices import adbd
from tests.needs import need

Answers = list[dict[str, Any]]


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[adbd.Phone]:
    need("adbd")
    need("emulated")
    with adbd.running(tmp_path_factory.mktemp("adbd") / "phone", adbd.cortex_a53()) as running:
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("ort")
    return dense_model(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def answers(phone: adbd.Phone, model: Path) -> Answers:
    """What the device answers to one series of requests."""
    files = {"model": str(model), "x": str(model.parent / "x.npy")}
    placed = {**job("time", model), "model": "file:model", "inputs": [{"x": "file:x"}]}
    endless = {"iterations": 10**9}
    requests: list[dict[str, Any]] = [
        {"verb": "describe", "runtime": "ort"},
        {"verb": "bundle", "bundle": str(make(model.parent / "bundle")), "timed": False},
        {"verb": "run", "job": {**placed, "mode": "memory"}, "files": files, "timeout": 120},
        {"verb": "run", "job": {**placed, "mode": "memory", "timed": endless}, "files": files, "timeout": 4},
        {"verb": "run", "job": placed, "files": files, "timeout": 120},
    ]
    done = phone.inside(sys.executable, "-m", "tests.devices.ask", phone.reference, given=json.dumps(requests))
    assert done.returncode == 0, done.stderr
    found: Answers = json.loads(done.stdout)
    return found


def test_the_device_has_no_python_and_is_called_what_it_is(phone: adbd.Phone, answers: Answers) -> None:
    looked = phone.inside("adb", "-P", adbd.PORT, "-s", adbd.SERIAL, "shell", "-T", "command -v python3 python")
    assert looked.returncode != 0
    assert looked.stdout == ""
    facts = answers[0]["answer"]
    assert (facts["arch"], facts["os"], facts["product"]) == ("aarch64", "android", "Test Phone")
    assert facts["runtime_version"].endswith("(manylinux build)")
    assert "asimd" in facts["features"]
    assert "asimddp" not in facts["features"]


def test_a_bundle_gives_its_goldens_there(answers: Answers) -> None:
    record = answers[1]["answer"]
    assert record["valid"]
    assert record["goldens"] == 2
    assert record["worst"] <= 1


def test_memory_is_told_with_what_it_includes(answers: Answers) -> None:
    memory = answers[2]["answer"]["memory"]
    assert memory["peak_bytes"] > memory["before_load_bytes"] > 10 * 2**20
    assert memory["method"].endswith("the emulator's own included")


def test_nothing_is_timed_where_the_program_is_emulated(answers: Answers) -> None:
    assert answers[4]["error"] == "DeviceError"
    assert "emulates: there are none" in answers[4]["message"]


def test_a_run_that_takes_too_long_is_killed_there(phone: adbd.Phone, answers: Answers) -> None:
    assert answers[3]["error"] == "DeviceError"
    assert "within 4 s; it was killed" in answers[3]["message"]
    assert phone.left() == []
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in running.splitlines() if str(phone.folder) in line and "job.json" in line]


def test_it_is_listed_while_its_server_runs(phone: adbd.Phone) -> None:
    listed = phone.inside("env", f"ANDROID_ADB_SERVER_PORT={adbd.PORT}", sys.executable, "-m", "edgeexport", "devices")
    assert listed.returncode == 0
    assert f"adb://{adbd.SERIAL}" in listed.stdout


def test_an_emulated_program_on_a_device_judges_nothing(phone: adbd.Phone) -> None:
    able, reason = devices.get(phone.reference).can_judge(None)  # type: ignore[arg-type]
    assert not able
    assert "arm64" in reason
