"""Thirty-odd ways in which a device goes wrong: no invalid result is believed, nothing is left running or lying there.

Each fault names what comes out: an error of one class with its exit code, or, where a second try mends it, what one
whole launch gives.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeexport import devices
from edgeexport.devices import shell
from edgeexport.devices.shell import DeviceLost
from edgeexport.errors import DeviceError, EdgeExportError, MissingExtra
from tests.device_bench.tiny import dense_model, job
from tests.devices.pretend import Pretended
from tests.needs import need

pytestmark = pytest.mark.faults
# The least a device can be asked for: it needs neither numpy nor a runtime.
JOB = {"mode": "describe"}
LONG = {"mode": "sentinel", "repeats": 200}
ENDLESS = {"mode": "sentinel", "repeats": 10**7}


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and the end of the message; an empty message: the launch is repeated and succeeds."""

    name: str
    step: str
    how: str
    message: str = ""
    error: type[EdgeExportError] = DeviceError
    runs: int = 1
    more: dict[str, Any] = field(default_factory=dict)


def _says(name: str, text: str, message: str, *, step: str = "hello", runs: int = 0, **more: Any) -> Fault:
    return Fault(name, step, "says", message, runs=runs, more={"text": text, **more})


FAULTS = (
    _says("offline", "ssh: connect to host board port 22: No route to host", "No route to host"),
    _says("offline once", "ssh: connect to host board port 22: Connection refused", "", times=1, runs=1),
    _says(
        "key unknown", "No ED25519 host key is known for board\nHost key verification failed.", "verification failed"
    ),
    _says("key changed", "WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!", "HAS CHANGED"),
    _says("not let in", "pi@board: Permission denied (publickey).", "Permission denied"),
    _says("no such name", "ssh: Could not resolve hostname board: Name or service not known", "not resolve"),
    _says("lost before the push", "Connection reset by peer", "", step="push", times=1, runs=1),
    _says("exit 0, error text", "error: device is busy", "device is busy", step="run", code=0, runs=3),
    _says("lost in every run", "client_loop: send disconnect", "tried 3 times", step="run", runs=3),
    Fault("push cut once", "push", "cut-push", more={"times": 1}),
    Fault("push cut", "push", "cut-push", "arrived damaged", runs=0),
    Fault("push changed", "push", "flip-push", "arrived damaged", runs=0),
    Fault("drop in a run once", "run", "drops", runs=2, more={"times": 1}),
    Fault("drop in every run", "run", "drops", "connection was lost", runs=3),
    Fault("nothing said, exit 0", "run", "silent", "nothing was said", runs=3),
    Fault("text instead, exit 0", "run", "text", "device is busy", runs=3),
    Fault("answer cut once", "run", "cut", runs=2, more={"times": 1}),
    Fault("answer cut", "run", "cut", "connection was lost", runs=3),
    Fault("line ends changed", "any", "crlf"),
    Fault("banners around", "any", "noise"),
    Fault("noise inside", "run", "inside", "expected one JSON line"),
    Fault("rebooted", "run", "reboot", "it was rebooted, or another machine answers"),
    Fault("another program", "run", "program", "another program answered"),
    Fault("another protocol", "run", "protocol", "protocol 2"),
    Fault("answer to another job", "run", "stale", "mode 'time'"),
)


def _connect(**options: str) -> Any:
    """The pretended device; its Python need not be searched for unless another is named."""
    device: Any = devices.get("ssh://pi@board?" + "&".join(f"{key}={value}" for key, value in options.items()))
    if "python" not in options:
        device._pythons.update({"": sys.executable, "onnxruntime": sys.executable})
    return device


def _clean(pretended: Pretended) -> None:
    assert pretended.jobs() == []
    assert pretended.processes() == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_gives_its_error_or_one_whole_launch(pretended: Pretended, fault: Fault) -> None:
    device, asked = _connect(), JOB
    if fault.how == "drops":
        asked = LONG if "times" in fault.more else ENDLESS
    pretended.plan(fault.step, fault.how, **fault.more)
    if fault.message:
        with pytest.raises(fault.error, match=fault.message) as caught:
            device.run(asked, timeout=20)
        assert caught.value.exit_code == 4
        assert not isinstance(caught.value, DeviceLost)
    else:
        assert device.run(asked, timeout=20)["mode"] == asked["mode"]
    assert pretended.steps().count("run") == fault.runs
    _clean(pretended)


def test_what_no_second_try_mends_is_not_tried_again(pretended: Pretended) -> None:
    pretended.plan("hello", "says", text="Host key verification failed.")
    with pytest.raises(DeviceError):
        _connect().describe()
    assert pretended.steps() == ["hello"]


def test_a_reboot_between_describing_and_launching_is_no_measurement(pretended: Pretended) -> None:
    device = _connect()
    device.describe()
    pretended.plan("run", "reboot")
    with pytest.raises(DeviceError, match="rebooted"):
        device.run(JOB, timeout=20)
    assert pretended.steps() == ["run"]


def test_a_reboot_under_a_run_is_not_resumed_as_if_nothing_were(pretended: Pretended) -> None:
    device = _connect()
    device.describe()
    pretended.plan("run", "drops", times=1)
    real, left = shell.execute, [True]

    def rebooted(command: list[str], **more: Any) -> Any:
        done = real(command, **more)
        if "job.json" in command[-1] and left:
            left.clear()
            pretended.plan("run", "reboot")
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shell, "execute", rebooted)
        with pytest.raises(DeviceError, match="rebooted"):
            device.run(LONG, timeout=20)
    _clean(pretended)


def test_a_connection_that_hangs_is_ended_with_what_runs_there(
    pretended: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "GRACE_SECONDS", 0.5)
    device = _connect()
    device.describe()
    pretended.plan("run", "hangs")
    with pytest.raises(DeviceError, match="no answer within"):
        device.run(JOB, timeout=0.5)
    _clean(pretended)


def test_a_program_that_hangs_is_killed_there_with_its_children(pretended: Pretended) -> None:
    python = pretended.folder / "hangs"
    python.write_text(f'#!/bin/sh\ncase "$*" in *job.json) sleep 600 & wait;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    device = _connect()
    device._pythons[""] = str(python)
    with pytest.raises(DeviceError, match=r"within 1 s; it was killed"):
        device.run(JOB, timeout=1)
    _clean(pretended)


def test_a_program_that_is_killed_there_is_an_error(pretended: Pretended) -> None:
    python = pretended.folder / "dies"
    python.write_text('#!/bin/sh\necho "out of memory" >&2\nkill -9 $$\n')
    python.chmod(0o755)
    device = _connect()
    device._pythons[""] = str(python)
    with pytest.raises(DeviceError, match=r"exit code 137\n.*out of memory"):
        device.run(JOB, timeout=20)
    _clean(pretended)


def test_a_full_disk_there_is_named_and_not_tried_again(pretended: Pretended) -> None:
    pretended.program("tar", "exec cat > /dev/full")
    with pytest.raises(DeviceError, match="no space left on the device") as caught:
        _connect().run(JOB, timeout=20)
    assert "cache" in caught.value.next_step
    assert pretended.steps().count("push") == 1
    _clean(pretended)


def test_a_folder_that_cannot_be_written_is_named(pretended: Pretended) -> None:
    with pytest.raises(DeviceError, match="no folder for our files"):
        _connect(cache="/proc/nowhere").run(JOB, timeout=20)


def test_a_device_without_setsid_is_refused_since_nothing_there_could_be_killed(pretended: Pretended) -> None:
    for name in ("cat", "tar", "sha256sum", "mkdir", "mv", "rm", "find", "touch", "sh", "env"):
        pretended.program(name, f'exec /usr/bin/{name} "$@"')
    pretended.program("sh", 'PATH=${0%/*}; export PATH; exec /bin/sh "$@"')
    with pytest.raises(DeviceError, match="no setsid"):
        _connect().run(JOB, timeout=20)


def test_no_python_and_no_runtime_are_told_apart(pretended: Pretended) -> None:
    with pytest.raises(DeviceError, match=r"no Python 3\.8 or newer"):
        _connect(python="/nowhere/python").run(JOB, timeout=20)
    with pytest.raises(MissingExtra, match="tflite-runtime") as caught:
        _connect(python=sys.executable).run({"mode": "describe", "runtime": "tflite_runtime"}, timeout=20)
    assert caught.value.exit_code == 3
    assert "pip install numpy tflite-runtime" in caught.value.next_step


# The device's own Python has no packages; the one in an environment that it makes has all, once pip has been asked.
BARE = '[ "$1 $2" = "-m venv" ] || exec {python} -S "$@"\nmkdir -p "$3/bin" && cp "${{0%/*}}/made" "$3/bin/python"'
MADE = '[ "$1 $2" = "-m pip" ] && {{ echo "$@" > "${{0%/*}}/asked"; {pip}; }}\nexec {python} "$@"'


def _bare(pretended: Pretended, pip: str) -> None:
    pretended.program("python3", BARE.format(python=sys.executable))
    pretended.program("python", "exit 1")
    pretended.program("made", MADE.format(python=sys.executable, pip=pip))


def test_an_environment_is_made_there_only_when_asked_and_once(pretended: Pretended) -> None:
    need("ort")
    _bare(pretended, "exit 0")
    asked = {"mode": "describe", "runtime": "onnxruntime"}
    with pytest.raises(MissingExtra, match="onnxruntime"):
        devices.get("ssh://board").run(asked, timeout=60)
    for _ in range(2):
        answer = devices.get("ssh://board?install=1").run(asked, timeout=60)
        assert answer["runtime_version"]
    made = next((pretended.folder / "home").rglob("asked"))
    assert made.read_text().endswith("--only-binary=:all: numpy onnxruntime\n")
    assert pretended.steps().count("install") == 1


def test_what_pip_says_there_is_told(pretended: Pretended) -> None:
    _bare(pretended, "echo no such wheel >&2; exit 1")
    with pytest.raises(DeviceError, match=r"onnxruntime could not be installed there: .*no such wheel"):
        devices.get("ssh://board?install=1").run({"mode": "describe", "runtime": "onnxruntime"}, timeout=60)
    assert not list((pretended.folder / "home").rglob("venv-*"))


def test_a_clock_that_jumps_there_changes_no_duration(pretended: Pretended) -> None:
    python = pretended.folder / "skewed"
    skew = (
        "import itertools, runpy, sys, time; ticks = itertools.cycle([4e9, 0.0, -8e4]); time.time = lambda: next(ticks)"
    )
    start = 'sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")'
    python.write_text(f"#!/bin/sh\nshift 2\nexec {sys.executable} -c '{skew}; {start}' \"$@\"\n")
    python.chmod(0o755)
    device = _connect()
    device._pythons[""] = str(python)
    times = device.run({"mode": "sentinel", "repeats": 3}, timeout=20)["sentinel"]["before_ns"]
    assert all(0 < each < 10e9 for each in times)


OUTPUT_FAULTS = (
    Fault("pull lost once", "pull", "says", runs=2, more={"text": "Connection reset", "times": 1}),
    Fault("pull cut once", "pull", "cut", runs=2, more={"times": 1}),
    Fault("pull changed", "pull", "flip", "arrived damaged", runs=2),
    Fault("pull with line ends changed", "pull", "crlf", "arrived damaged", runs=2),
    Fault("a path out of the folder", "run", "path", "no name of an output"),
)


@pytest.mark.parametrize("fault", OUTPUT_FAULTS, ids=lambda fault: fault.name)
def test_outputs_arrive_whole_or_not_at_all(
    pretended: Pretended, tmp_path: Path, *, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("ort")
    monkeypatch.setattr(shell, "PAUSES", (0.0,))
    device, out = _connect(), tmp_path / "out"
    pretended.plan(fault.step, fault.how, **fault.more)
    asked = {**job("outputs", dense_model(tmp_path / "m.onnx")), "model": "file:model", "inputs": [{"x": "file:x"}]}
    files = {"model": tmp_path / "m.onnx", "x": tmp_path / "x.npy"}
    if fault.message:
        with pytest.raises(fault.error, match=fault.message):
            device.run(asked, files=files, timeout=60, outputs_to=out)
        assert not out.exists()
    else:
        device.run(asked, files=files, timeout=60, outputs_to=out)
        assert np.load(out / "0.0.npy").shape == (1, 64)
    assert pretended.steps().count("run") == fault.runs
    _clean(pretended)
