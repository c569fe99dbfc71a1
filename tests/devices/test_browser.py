"""Models in a real Chromium: outputs as here, times with their clock, and an error for whatever goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeexport import devices
from edgeexport.cli import main
from edgeexport.devices import browser
from edgeexport.devices.browser import Browser, chromium, package
from edgeexport.devices.home import HOME_VARIABLE
from edgeexport.errors import CorruptFile, DeviceError, MachineError, RequestError
from edgeexport.records.target import load_target
from tests.device_bench.tiny import dense_model, job
from tests.devices.phone import Phone
from tests.needs import need
from tests.pipeline.conftest import Desk


@pytest.fixture(scope="module")
def page() -> Any:
    for name in ("browser", "onnxruntime-web", "ort"):
        need(name)
    device = devices.get("browser")
    yield device
    device.close()  # type: ignore[attr-defined]


def _placed(folder: Path, mode: str, **more: Any) -> tuple[dict[str, Any], dict[str, Path]]:
    asked = {**job(mode, dense_model(folder / "m.onnx")), "model": "file:model", "inputs": [{"x": "file:x"}], **more}
    return asked, {"model": folder / "m.onnx", "x": folder / "x.npy"}


def _outputs(device: Any, folder: Path) -> Any:
    asked, files = _placed(folder, "outputs")
    answer = device.run(asked, files=files, timeout=60, outputs_to=folder / device.name)
    return np.load(folder / device.name / answer["outputs"][0]["y"]["file"])


def _children() -> list[str]:
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [line for line in listed if "edgeexport-browser-" in line and "user-data-dir" in line]


def test_the_digits_agree_in_a_chromium_and_bench_records_them(page: Any, tmp_path: Path) -> None:
    need("torch")
    desk, out = Desk(tmp_path), tmp_path / "r.json"
    done = desk.start("--device", "none")
    assert done.returncode == 0, done.stderr
    assert main(["bench", str(desk.bundle()), "--device", "browser", "--mode", "smoke", "--out", str(out)]) in {0, 4}
    entry = json.loads(out.read_text().splitlines()[-1])["entries"][0]
    measured, conditions = entry["measurement"], entry["measurement"]["conditions"]
    assert entry["device"] == page.name
    assert conditions["inputs"] == "goldens"
    assert not [text for text in (*measured["reasons"], *measured["warnings"]) if "output" in text]
    assert measured["valid"] is (measured["latency"] is not None)
    assert "Chrome" in conditions["cpu"]
    assert (conditions["arch"], conditions["runtime_version"].split()[1]) == ("wasm32", "(web)")
    assert {"simd", "threads", "cross-origin-isolated"} <= set(conditions["features"])
    assert measured["memory"] is None or measured["memory"]["method"].startswith("measureUserAgentSpecificMemory")


def test_outputs_are_those_of_this_machine(page: Any, tmp_path: Path) -> None:
    np.testing.assert_allclose(_outputs(page, tmp_path), _outputs(devices.get("local"), tmp_path), rtol=1e-5, atol=1e-6)


def test_a_launch_says_how_fine_its_clock_is_and_nothing_of_ours_stays(page: Any, tmp_path: Path) -> None:
    asked, files = _placed(tmp_path, "time")
    answer = page.run({**asked, "threads": 2}, files=files, timeout=60)
    assert len(answer["iterations_ns"]) >= 20
    assert answer["threads"] == {"requested": 2, "actual": 2}
    assert answer["clock"]["batch"] > 1
    assert answer["clock"]["resolution_ns"] * answer["clock"]["batch"] == pytest.approx(answer["clock"]["measured_ns"])
    assert len(answer["sentinel"]["before_ns"]) == 12
    assert answer["timed"]["cpu_seconds"] is None
    end = time.monotonic() + 10
    while _children() and time.monotonic() < end:
        time.sleep(0.1)
    assert not _children()


def test_a_warm_up_ends_when_its_time_is_up(page: Any, tmp_path: Path) -> None:
    endless = {"iterations": 10**9, "seconds": 0, "cap_seconds": 0.5}
    asked, files = _placed(tmp_path, "time", warmup=endless)
    answer = page.run(asked, files=files, timeout=60)
    assert 0 < answer["warmup"]["iterations"] < 10**9
    assert 0.5 <= answer["warmup"]["seconds"] < 20
    assert page.run({**asked, "mode": "memory", "timed": endless}, files=files, timeout=60)["memory"]


def test_wrong_goldens_are_no_measurement(page: Any, tmp_path: Path) -> None:
    asked, files = _placed(tmp_path, "time", goldens=[{"outputs": {"y": "file:y"}, "tolerance": {"y": 1e-3}}])
    np.save(tmp_path / "y.npy", _outputs(devices.get("local"), tmp_path) + np.float32(1))
    with pytest.raises(DeviceError, match="before timing: output 'y' of sample 0 differs by 1"):
        page.run(asked, files={**files, "y": tmp_path / "y.npy"}, timeout=60)


def test_a_file_that_is_no_model_is_an_error_of_loading(page: Any, tmp_path: Path) -> None:
    asked, files = _placed(tmp_path, "outputs")
    files["model"].write_bytes(b"no model")
    with pytest.raises(DeviceError, match="browser: "):
        page.run(asked, files=files, timeout=60, outputs_to=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"runtime": "ai_edge_litert"}, "runs onnxruntime-web"),
        ({"accelerator": "CUDAExecutionProvider"}, "CUDAExecutionProvider"),
        ({"sha256": "0" * 64}, "is not the model asked for"),
        ({"affinity": [0]}, "cannot be confined"),
        ({"options": {"execution_mode": 1}}, "no session option 'execution_mode'"),
        ({"mode": "count"}, "has no 'count'"),
    ],
)
def test_what_no_page_can_do_is_refused_by_name(page: Any, tmp_path: Path, change: Any, said: str) -> None:
    asked, files = _placed(tmp_path, "outputs")
    with pytest.raises(DeviceError, match=said):
        page.run({**asked, **change}, files=files, timeout=60, outputs_to=tmp_path / "out")


def test_other_files_than_onnx_are_refused(page: Any, tmp_path: Path) -> None:
    asked, files = _placed(tmp_path, "outputs")
    other = files["model"].rename(tmp_path / "m.ort")
    with pytest.raises(DeviceError, match=r"\.onnx files only, not m\.ort"):
        page.run(asked, files={**files, "model": other}, timeout=60, outputs_to=tmp_path / "out")


def test_a_browser_judges_no_target_and_knows_no_energy(page: Any) -> None:
    able, reason = page.can_judge(load_target("linux-arm64"))
    assert not able
    assert "wasm" in reason
    assert "not measured" in page.run({"mode": "energy"}, timeout=1)["energy"]["reason"]


def test_a_browser_that_ends_or_hangs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime-web")
    for name, script, said in (("ends", "exit 0", "ended in the middle"), ("hangs", "sleep 60", "within 1 s")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(chromium, "found", lambda program=program: str(program))
        with pytest.raises(DeviceError, match=said):
            Browser().run({"mode": "describe"}, timeout=1)


def test_a_killed_run_leaves_no_browser_behind(page: Any) -> None:
    script = "from edgeexport.devices.browser import Browser\n"
    script += "d = Browser(); s = d._serve(); s.pages['/page.js'] = ('text/javascript', b'')\n"
    script += "d.run({'mode': 'describe'}, timeout=60)"
    running = subprocess.Popen([sys.executable, "-c", script])
    end = time.monotonic() + 20
    while not any("--type=renderer" in line for line in _children()) and time.monotonic() < end:
        time.sleep(0.1)
    there = _children()
    running.kill()
    running.wait()
    assert there
    while _children() and time.monotonic() < end:
        time.sleep(0.1)
    assert not _children()


def test_a_page_that_is_not_isolated_runs_one_thread_and_says_so(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a phone on plain http in a network: an origin that browsers do not trust."""
    device = Browser()
    server = device._serve()
    server.hosts = frozenset({f"lan.test:{server.port}"})
    show = chromium.showing
    monkeypatch.setattr(chromium, "FLAGS", (*chromium.FLAGS, "--host-resolver-rules=MAP lan.test 127.0.0.1"))
    monkeypatch.setattr(chromium, "showing", lambda url, program: show(url.replace("127.0.0.1", "lan.test"), program))
    facts = device.describe()
    assert "without threads, cross-origin-isolated, webgpu" in facts.cpu
    assert facts.features == ("simd",)
    asked, files = _placed(tmp_path, "memory")
    assert "not measured" in device.run(asked, files=files, timeout=60)["memory"]["reason"]
    timed = device.run({**asked, "mode": "time", "threads": 2}, files=files, timeout=60)
    assert timed["threads"] == {"requested": 2, "actual": 1}
    assert timed["clock"]["measured_ns"] > 50_000
    device.close()


def test_somebody_who_opens_the_address_is_the_device(capfd: pytest.CaptureFixture[str]) -> None:
    need("onnxruntime-web")
    device = Browser("open")
    told: list[Any] = []
    waiting = threading.Thread(target=lambda: told.append(device.describe()), daemon=True)
    waiting.start()
    said = ""
    while "token=" not in said or "waiting" not in said:
        time.sleep(0.05)
        said += capfd.readouterr().err
    url = next(word for word in said.split() if word.startswith("http://127.0.0.1:"))
    phone = Phone(url)
    phone.answer(facts=phone.facts(agent="<script>alert(1)</script>", isolated=False, threads=False))
    waiting.join(10)
    assert told[0].features == ("simd",)
    assert "without threads, cross-origin-isolated, webgpu" in told[0].cpu
    device.close()
    with pytest.raises(OSError, match="refused"):
        Phone(url)


def test_what_is_not_installed_is_said_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    (row,) = browser.available()
    assert not row.reachable
    assert package.INSTALL in row.reason
    with pytest.raises(MachineError, match="not installed"):
        devices.get("browser")
    with pytest.raises(RequestError, match="no browser"):
        devices.get("browser:wan")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="'npm'"):
        package.install()
    assert not list(tmp_path.iterdir())


def test_a_changed_file_of_the_runtime_is_never_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime-web")
    root = package.installed()
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    (tmp_path / "browser").mkdir()
    for path in root.iterdir():
        os.link(path, tmp_path / "browser" / path.name) if path.suffix != ".mjs" else (
            tmp_path / "browser" / path.name
        ).write_bytes(path.read_bytes() + b"//")
    with pytest.raises(CorruptFile, match="is not what was installed"):
        devices.get("browser")


def test_the_flags_of_a_browser_keep_its_sandbox_for_all_but_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "--no-sandbox" not in chromium.flags()
    assert sys.platform != "linux" or "--headless=new" in chromium.flags()
