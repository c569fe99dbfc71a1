"""A device behind a real OpenSSH server: files by digest, fresh processes, whole launches, keys checked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeexport import devices
from edgeexport.errors import DeviceError, MissingExtra
from edgeexport.records.target import load_target
from tests.bundles.making import make
from tests.device_bench.tiny import dense_model, job
from tests.devices.bundles import run_bundle
from tests.devices.sshd import Sshd
from tests.needs import ROOT, need


@pytest.fixture(scope="module")
def board(server: Sshd) -> Any:
    need("ort")
    return devices.get(server.reference(python=sys.executable))


def _cached(server: Sshd, what: str) -> list[str]:
    return sorted(path.name for path in (server.folder / "cache" / what).iterdir())


def _placed(folder: Path, mode: str) -> tuple[dict[str, Any], dict[str, Path]]:
    asked = {**job(mode, dense_model(folder / "m.onnx")), "model": "file:model", "inputs": [{"x": "file:x"}]}
    return asked, {"model": folder / "m.onnx", "x": folder / "x.npy"}


def test_it_says_what_it_is_as_this_machine_does(board: Any) -> None:
    there, here = board.describe("ort"), devices.get("local").describe("ort")
    assert (there.device, there.features, there.runtime_version) == ("ssh://board", here.features, here.runtime_version)
    assert there.bench_digest == here.bench_digest
    able, reason = board.can_judge(load_target("android-arm64"))
    assert not able
    assert "aarch64" in reason


def test_outputs_are_those_of_this_machine_and_files_are_pushed_once(board: Any, server: Sshd, tmp_path: Path) -> None:
    asked, files = _placed(tmp_path, "outputs")
    board.run(asked, files=files, timeout=60, outputs_to=tmp_path / "there")
    devices.get("local").run(asked, files=files, timeout=60, outputs_to=tmp_path / "here")
    there, here = (np.load(tmp_path / name / "0.0.npy") for name in ("there", "here"))
    np.testing.assert_array_equal(there, here)
    stamps = {path.name: path.stat().st_ino for path in (server.folder / "cache/files").iterdir()}
    assert {"", ".npy", ".onnx", ".py"} >= {Path(name).suffix for name in stamps}
    again = devices.get(server.reference(python=sys.executable))
    again.run(asked, files=files, timeout=60, outputs_to=tmp_path / "again")
    assert {path.name: path.stat().st_ino for path in (server.folder / "cache/files").iterdir()} == stamps
    assert _cached(server, "jobs") == []


def test_a_file_that_was_changed_there_is_pushed_again(board: Any, server: Sshd, tmp_path: Path) -> None:
    asked, files = _placed(tmp_path, "time")
    board.run(asked, files=files, timeout=60)
    model = next((server.folder / "cache/files").glob("*.onnx"))
    model.write_bytes(b"something else")
    again = devices.get(server.reference(python=sys.executable))
    assert len(again.run(asked, files=files, timeout=60)["iterations_ns"]) == 20
    assert model.read_bytes() == (tmp_path / "m.onnx").read_bytes()


def test_a_run_that_takes_too_long_is_killed_there(board: Any, server: Sshd) -> None:
    with pytest.raises(DeviceError, match=r"within 0\.5 s; it was killed"):
        board.run({"mode": "sentinel", "repeats": 10**7}, timeout=0.5)
    assert _cached(server, "jobs") == []
    assert _working(server) == []


def test_when_this_process_is_killed_the_program_there_ends(server: Sshd) -> None:
    code = "import sys; from edgeexport import devices; device = devices.get(sys.argv[1]); "
    code += "device.run({'mode': 'sentinel', 'repeats': 10**7}, timeout=600)"
    process = subprocess.Popen([sys.executable, "-c", code, server.reference(python=sys.executable)], cwd=ROOT)
    assert _until(lambda: _working(server) != [])
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert _until(lambda: _working(server) == [])
    assert _until(lambda: _cached(server, "jobs") == [])


def _working(server: Sshd) -> list[str]:
    """Command lines of device programs that run out of this server's cache."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if f"{server.folder}/cache/files" in words and words.rstrip().endswith("job.json"):
            found.append(words)
    return found


def _until(holds: Any) -> bool:
    for _ in range(300):
        if holds():
            return True
        time.sleep(0.05)
    return False


def test_a_host_whose_key_is_not_known_is_refused_and_not_remembered(server: Sshd, tmp_path: Path) -> None:
    known = server.folder / "known_hosts"
    config = tmp_path / "config"
    for text, message in (("", "verification failed"), (known.read_text().replace("AAAAC3", "AAAAC4"), "failed")):
        strange = tmp_path / "known"
        strange.write_text(text)
        config.write_text((server.folder / "config").read_text().replace(str(known), str(strange)))
        with pytest.raises(DeviceError, match=message) as caught:
            devices.get(f"ssh://board?config={config}").describe()
        assert caught.value.next_step
        assert strange.read_text() == text


def test_a_key_that_is_not_let_in_is_a_lasting_error(server: Sshd, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    text = (server.folder / "config").read_text().replace(str(server.folder / "client_key"), str(tmp_path / "key"))
    (tmp_path / "config").write_text(text)
    with pytest.raises(DeviceError, match="Permission denied") as caught:
        devices.get(f"ssh://board?config={tmp_path / 'config'}").describe()
    assert "ssh-copy-id" in caught.value.next_step


def test_a_server_that_is_gone_is_tried_and_named(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeexport.devices.shell.PAUSES", (0.0,))
    reference = server.reference().replace("board", "127.0.0.1:9")
    with pytest.raises(DeviceError, match=r"refused[\s\S]*tried 2 times"):
        devices.get(reference).describe()


def test_the_python_is_found_or_its_lack_told(server: Sshd) -> None:
    found = devices.get(server.reference())
    with pytest.raises(MissingExtra, match="tflite-runtime") as caught:
        found.run({"mode": "describe", "runtime": "tflite_runtime"}, timeout=60)
    assert "install=1" in caught.value.next_step
    assert found.run({"mode": "describe"}, timeout=60)["python"].startswith("3.")


def test_a_bundle_gives_its_goldens_there_and_is_measured(server: Sshd, tmp_path: Path) -> None:
    need("ort")
    device = devices.get(server.reference(python=sys.executable))
    record = run_bundle(device, make(tmp_path), timed=True)
    assert record["goldens"] == 2
    assert record["worst"] <= 1
    measured = record["measurement"]
    assert measured["conditions"]["device"] == "ssh://board"
    assert measured["conditions"]["bench_digest"] == device.describe().bench_digest
    # Whether this machine is quiet enough to be measured on is not this test's affair.
    assert measured["valid"] == (measured["latency"] is not None) == (not measured["reasons"])
    assert not [reason for reason in measured["reasons"] if "failed" in reason]
