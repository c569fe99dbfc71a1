"""What a page tells is checked here: an answer that does not fit its job is an error, never a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeexport.devices.browser.jobs import finish, prepare
from edgeexport.devices.browser.package import wanted
from edgeexport.errors import DeviceError
from edgeexport.records.browser import PageAnswer
from edgeexport.validation.launches import read_launch
from tests.devices.phone import Phone

Y = np.array([1, 2], np.float32)
TENSOR = {"name": "y", "blob": 0, "dtype": "float32", "shape": [2]}
TIMES = {
    "first_ms": 2.0, "warmup": 2, "warmup_seconds": 0.1, "warmup_ns": [1000], "iterations_ns": [1000, 2000],
    "batch": 4, "seconds": 0.1,
}  # fmt: skip
GOOD: dict[str, Any] = {
    "facts": Phone.facts(), "load_ms": 1.0, "threads": 1, "outputs": [[TENSOR]], "after": [[TENSOR]], "times": TIMES,
    "sentinel_before_ns": [5], "sentinel_after_ns": [5],
}  # fmt: skip


def _ended(folder: Path, mode: str, blobs: dict[int, bytes] | None = None, **changes: Any) -> dict[str, Any]:
    (folder / "m.onnx").write_bytes(b"model")
    np.save(folder / "x.npy", Y)
    job = {
        "mode": mode, "runtime": "onnxruntime", "model": "file:model", "inputs": [{"x": "file:x"}],
        "goldens": [{"outputs": {"y": "file:x"}, "tolerance": {"y": 0.5}}],
    }  # fmt: skip
    prepared = prepare(job, {"model": folder / "m.onnx", "x": folder / "x.npy"}, device="browser")
    prepared.work.blobs.update({0: Y.tobytes()} if blobs is None else blobs)
    prepared.work.answer = msgspec.convert({"job": prepared.work.id, **GOOD, **changes}, type=PageAnswer)
    return finish(prepared, device="browser", outputs_to=folder / "out", boot_id="boot")


def test_an_honest_answer_is_a_launch(tmp_path: Path) -> None:
    launch = read_launch({**_ended(tmp_path, "time"), "bench_digest": "sha256:0"})
    assert launch.clock.resolution_ns == pytest.approx(0.1e6 / 4)
    assert launch.timed.cpu_seconds is None
    written = _ended(tmp_path, "outputs")["outputs"][0]["y"]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / written["file"]), Y)


@pytest.mark.parametrize(
    ("mode", "changes", "said"),
    [
        ("time", {"facts": None}, "without saying what it is"),
        ("time", {"error": {"kind": "run", "message": "boom"}}, "boom"),
        ("time", {"times": None}, "no times"),
        ("time", {"times": {**TIMES, "seconds": 0.0, "iterations_ns": [9_000_000]}}, "iterations of 0.036 s in a run"),
        ("time", {"sentinel_after_ns": []}, "no times of the fixed workload"),
        ("time", {"after": []}, "no outputs of 1 goldens after timing"),
        ("time", {"load_ms": None}, "no session"),
        ("time", {"hidden": 1}, "was hidden 1 time"),
        ("time", {"digest": "sha256:" + "0" * 64}, "ran another model"),
        ("time", {"blobs": {}}, "has no bytes"),
        ("time", {"blobs": {0: b"1234"}}, "has 4 bytes"),
        ("time", {"blobs": {0: (Y + 1).tobytes()}}, "before timing: output 'y' of sample 0 differs by 1, allowed 0.5"),
        ("time", {"blobs": {0: (Y * np.float32("nan")).tobytes()}}, "is not finite"),
        ("memory", {"outputs": [[{**TENSOR, "name": "z"}]]}, "is not among the outputs"),
        ("memory", {"outputs": [[{**TENSOR, "shape": [1, 2]}]]}, r"is float32 \(1, 2\), expected float32 \(2,\)"),
        ("outputs", {"outputs": []}, "no outputs of each of 1 samples"),
        ("outputs", {"outputs": [[]]}, "no outputs of each of 1 samples"),
        ("sentinel", {"sentinel_before_ns": []}, "no times of the fixed workload"),
    ],
)
def test_an_answer_that_does_not_fit_its_job_is_an_error(tmp_path: Path, mode: str, changes: Any, said: str) -> None:
    with pytest.raises(DeviceError, match=said):
        _ended(tmp_path, mode, **changes)
    assert not (tmp_path / "out").exists()


def test_memory_that_a_browser_does_not_tell_has_a_reason(tmp_path: Path) -> None:
    assert "not measured" in _ended(tmp_path, "memory")["memory"]["reason"]
    told = _ended(tmp_path, "memory", memory_before=1, memory_loaded=5, memory_after=4)["memory"]
    assert (told["before_load_bytes"], told["peak_bytes"]) == (1, 5)


def test_npm_is_asked_for_a_release_no_newer_than_onnxruntime_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeexport.devices.browser.package.version_of", lambda _: "1.25.1")
    assert wanted() == "onnxruntime-web@<=1.25"
    monkeypatch.setattr("edgeexport.devices.browser.package.version_of", lambda _: "absent")
    assert wanted() == "onnxruntime-web@latest"
