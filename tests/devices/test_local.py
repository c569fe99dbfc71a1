"""The local device: fresh processes, killed when they hang, and no answer believed that is not one."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import msgspec
import pytest

from edgeexport import devices
from edgeexport.devices.local import Local, clean_environment, host_features
from edgeexport.devices.protocol import NoAnswer, place, read_answer, speaks_for
from edgeexport.errors import DeviceError, MissingExtra, RequestError
from edgeexport.records.device import DeviceFacts
from edgeexport.records.target import Target
from tests.device_bench.tiny import dense_model, job
from tests.needs import need

BOARD = DeviceFacts(
    device="board",
    arch="aarch64",
    cpu="Cortex-A76",
    features=("asimd", "asimddp"),
    cores=4,
    os="linux",
    kernel="6.6",
    python="3.11",
)
PI = Target(name="pi", title="Pi", runtime="ort", format="onnx", arch="aarch64", features=("asimd", "asimddp"))


@pytest.fixture
def pretender(tmp_path: Path) -> Path:
    """A file to be filled with a shell script that stands in for Python."""
    path = tmp_path / "python"
    path.touch()
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def _pretend(path: Path, script: str) -> Local:
    path.write_text(f"#!/bin/sh\n{script}\n")
    return Local(str(path))


def test_get_knows_local_and_names_it_when_asked_for_another() -> None:
    assert devices.get("local").name == "local"
    with pytest.raises(RequestError) as caught:
        devices.get("carrier-pigeon://coop")
    assert "local" in caught.value.next_step
    with pytest.raises(RequestError, match="no address"):
        devices.get("local://elsewhere")


def test_it_describes_this_machine_and_its_runtime() -> None:
    need("ort")
    facts = devices.get("local").describe("ort")
    assert facts.cores >= 1
    assert facts.runtime_version[0].isdigit()
    assert facts.bench_digest.startswith("sha256:")
    assert host_features() == facts.features


def test_a_description_is_the_same_each_time_so_that_it_can_be_a_key() -> None:
    assert Local(sys.executable).describe() == Local().describe()


def test_a_job_runs_with_files_by_name(tmp_path: Path) -> None:
    need("ort")
    asked = {**job("time", dense_model(tmp_path / "m.onnx")), "model": "file:model"}
    answer = devices.get("local").run(asked, files={"model": tmp_path / "m.onnx"}, timeout=60)
    assert len(answer["iterations_ns"]) == 20
    with pytest.raises(DeviceError, match="was not given"):
        devices.get("local").run(asked, timeout=60)


def test_what_the_program_refuses_is_a_device_error_with_its_reason(tmp_path: Path) -> None:
    need("ort")
    asked = job("time", dense_model(tmp_path / "m.onnx"), sha256="sha256:" + "0" * 64)
    with pytest.raises(DeviceError, match="not the model asked for") as caught:
        devices.get("local").run(asked, timeout=60)
    assert "stderr:" in str(caught.value)


def test_a_hang_is_killed_with_its_children(pretender: Path) -> None:
    left = pretender.parent / "pids"
    device = _pretend(pretender, f"sleep 600 & echo $! $$ > {left}; wait")
    with pytest.raises(NoAnswer, match=r"within 1 s; it was killed"):
        device.run({"mode": "time"}, timeout=1)
    assert not [pid for pid in left.read_text().split() if _alive(int(pid))]


def _alive(pid: int) -> bool:
    """Whether a process still runs; one that is dead but not yet collected by its parent does not."""
    for _ in range(50):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'Segmentation fault' >&2; exit 139", "exit code 139"),
        ("kill -9 $$", "signal 9"),
        ("echo hello; exit 0", "expected one JSON line"),
        ("exit 0", "expected one JSON line"),
        ("""echo '{"protocol": 1, "mode": "time"}'; echo more""", "expected one JSON line"),
        ("""echo '{"protocol": 1, "mode": "time"}'; exit 3""", "exit code 3"),
        ("""echo '{"protocol": 1, "error": {"kind": "run", "message": "boom"}}'; exit 0""", "boom"),
        ("echo 'error: device offline'; exit 0", "device offline"),
        ("""echo '{"protocol": 2, "mode": "time"}'""", "protocol 2"),
        ("""echo '{"protocol": 1, "mode": "memory"}'""", "mode 'memory'"),
        ("echo '[1, 2]'", "expected one JSON line"),
    ],
)
def test_anything_but_one_good_line_and_exit_0_is_an_error(pretender: Path, script: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        _pretend(pretender, "cat > /dev/null; " + script).run({"mode": "time"}, timeout=20)


def test_the_end_of_stderr_is_in_the_message(pretender: Path) -> None:
    with pytest.raises(DeviceError, match="out of cheese"):
        _pretend(pretender, "cat > /dev/null; echo 'out of cheese' >&2; exit 1").run({"mode": "time"}, timeout=20)


def test_a_missing_runtime_names_the_extra(pretender: Path) -> None:
    line = '{"protocol": 1, "error": {"kind": "runtime_missing", "message": "ai_edge_litert"}}'
    device = _pretend(pretender, f"cat > /dev/null; echo '{line}'; exit 1")
    with pytest.raises(MissingExtra) as caught:
        device.run({"mode": "time", "runtime": "ai_edge_litert"}, timeout=20)
    assert "edgeexport[litert]" in caught.value.next_step


def test_the_child_inherits_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("ORT_SECRET_SWITCH", "1")
    environment = clean_environment(2)
    assert environment["OMP_NUM_THREADS"] == "2"
    assert "ORT_SECRET_SWITCH" not in environment
    assert environment["PATH"] == os.environ["PATH"]


def test_a_machine_speaks_for_targets_of_its_kind_only() -> None:
    assert speaks_for(BOARD, PI) == (True, "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"arch": "x86_64"}, "is x86_64, the target is aarch64"),
        ({"os": "android"}, "runs android, the target linux"),
        ({"features": ("asimd",)}, "lacks asimddp"),
    ],
)
def test_a_machine_that_lacks_something_says_what(change: dict[str, object], reason: str) -> None:
    able, why = speaks_for(msgspec.structs.replace(BOARD, **change), PI)
    assert not able
    assert reason in why


def test_this_machine_never_judges_the_other_architecture() -> None:
    device = devices.get("local")
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[device.describe().arch]
    able, why = device.can_judge(Target(name="t", title="T", runtime="ort", format="onnx", arch=other))  # type: ignore[arg-type]
    assert not able
    assert other in why


def test_place_reaches_into_lists_and_leaves_other_text_alone() -> None:
    asked = {"inputs": [{"x": "file:a"}], "runtime": "ort", "threads": 1}
    assert place(asked, {"a": "/a.npy"}) == {"inputs": [{"x": "/a.npy"}], "runtime": "ort", "threads": 1}


def test_crlf_and_blank_lines_around_the_answer_are_no_garbage() -> None:
    answer = read_answer('\r\n{"protocol": 1, "mode": "time"}\r\n', "", exit_code=0, mode="time", device="d")
    assert answer["mode"] == "time"


def test_a_machine_with_better_kernels_does_not_speak_for_a_lesser_target() -> None:
    lesser = msgspec.structs.replace(PI, features=("asimd",), lacks=("asimddp",))
    able, why = speaks_for(BOARD, lesser)
    assert not able
    assert "asimddp" in why


def test_this_machine_is_always_reachable_and_says_what_it_is() -> None:
    found = {each.device: each for each in devices.available()}
    assert found["local"].reachable
    assert devices.get("local").describe().arch in found["local"].reason
