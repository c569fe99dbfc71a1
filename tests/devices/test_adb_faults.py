"""How adb and its server go wrong: no foreign server dies of us, no invalid result is believed, nothing is left."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgeexport import devices
from edgeexport.devices import adb
from edgeexport.devices.guest import root as layout
from edgeexport.errors import DeviceError, MachineError
from tests.device_bench.tiny import dense_model, job
from tests.devices.adbd import DUMPSYS, GETPROP
from tests.devices.loopback import free_port
from tests.devices.pretend import Pretended
from tests.needs import need

pytestmark = pytest.mark.faults
JOB = {"mode": "describe"}
VERSION = b"OKAY00040029"
# What phones said, as their owners published it: Android Stack Exchange 246774 and others.
RECORDED = Path(__file__).with_name("recorded")


@contextmanager
def _server(answer: bytes) -> Iterator[str]:
    """What says `answer` to every question on a port, as an adb server does; the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(100)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield str(listener.getsockname()[1])


@pytest.fixture
def phone(pretended: Pretended, monkeypatch: pytest.MonkeyPatch) -> Pretended:
    """A pretended arm64 phone, an installed root for it, and no adb server."""
    pretended.program("uname", "echo aarch64")
    installed = pretended.root()
    monkeypatch.setattr(layout, "installed", lambda: installed)
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
    return pretended


def _connect(phone: Pretended, at: str = "") -> Any:
    return devices.get(f"adb://TEST0001{at}?cache={phone.folder}/home/tmp")


def _clean(phone: Pretended) -> None:
    assert phone.jobs() == []
    assert phone.processes() == []


def test_a_job_runs_in_the_pushed_root_which_is_pushed_once(phone: Pretended) -> None:
    for _ in range(2):
        assert _connect(phone).run(JOB, timeout=20)["python"].startswith("3.")
    assert phone.steps().count("unpack") == 1
    assert list((phone.folder / "home/tmp").glob("root-*/ready"))
    assert not list((phone.folder / "home/tmp/files").glob("*.tar"))
    _clean(phone)


def test_heat_and_supply_are_told_before_and_after(phone: Pretended, tmp_path: Path) -> None:
    need("ort")
    phone.program("getprop", GETPROP)
    phone.program("dumpsys", DUMPSYS)
    asked = {**job("time", dense_model(tmp_path / "m.onnx")), "model": "file:model", "inputs": [{"x": "file:x"}]}
    device = _connect(phone)
    launch = device.run(asked, files={"model": tmp_path / "m.onnx", "x": tmp_path / "x.npy"}, timeout=60)
    assert launch["runtime_version"].endswith("(manylinux build)")
    for when in ("before", "after"):
        moment = launch["environment"][when]
        assert (moment["thermal_status"], moment["battery_percent"], moment["plugged"]) == (1, 87, True)
    assert device.describe().os == "android"
    assert device.describe().product == "Test Phone"


def _says(phone: Pretended, thermal: str, battery: str = "") -> dict[str, Any]:
    """The state of a phone whose services say these texts."""
    for name, text in (("thermalservice", thermal), ("battery", battery)):
        (phone.folder / name).write_text(text)
    phone.program("dumpsys", f'cat "{phone.folder}/$1"')
    state: dict[str, Any] = _connect(phone).state()
    return state


def _recorded(name: str) -> str:
    return (RECORDED / f"{name}.txt").read_text()


@pytest.mark.parametrize("status", [0, 1, 3, 6])
def test_the_thermal_status_is_read_from_what_phones_say(phone: Pretended, status: int) -> None:
    galaxy = _recorded("thermal-galaxy-a52-android-12")
    said = galaxy.replace("Thermal Status: 0", f"Thermal Status: {status}")
    assert (said == galaxy) == (status == 0)
    assert _says(phone, said)["thermal_status"] == status


@pytest.mark.parametrize(
    "said",
    [
        _recorded("thermal-phone-without-hal"),
        _recorded("thermal-galaxy-a52-android-12").replace("IsStatusOverride: false", "IsStatusOverride: true"),
        "Can't find service: thermalservice",
        "",
    ],
)
def test_a_thermal_status_that_no_sensor_stands_behind_is_none(phone: Pretended, said: str) -> None:
    assert _says(phone, said)["thermal_status"] is None


@pytest.mark.parametrize(("name", "percent", "plugged"), [("usb", 100, True), ("galaxy-s24", 75, False)])
def test_the_supply_is_read_from_what_phones_say(phone: Pretended, name: str, *, percent: int, plugged: bool) -> None:
    state = _says(phone, "", _recorded(f"battery-{name}"))
    assert (state["battery_percent"], state["plugged"]) == (percent, plugged)


@pytest.mark.parametrize(
    ("text", "remedy", "steps"),
    [
        ("error: device unauthorized.", "allow this computer", ["hello"]),
        ("error: insufficient permissions for device", "udev", ["hello"]),
        ("error: more than one device/emulator", "adb devices", ["hello"]),
        ("error: target doesn't support PTY args -Tt", "Android 7", ["hello"]),
        ("error: device offline", "", ["hello"] * 3),
        ("error: device 'TEST0001' not found", "", ["hello"] * 3),
        ("error: closed", "", ["hello"] * 3),
    ],
)
def test_what_adb_says_is_lasting_or_tried_again(phone: Pretended, text: str, *, remedy: str, steps: list[str]) -> None:
    phone.plan("hello", "says", text=text, code=1)
    with pytest.raises(DeviceError) as caught:
        _connect(phone).run(JOB, timeout=20)
    assert text.removeprefix("error: ")[:12] in str(caught.value)
    assert remedy in caught.value.next_step
    assert caught.value.exit_code == 4
    assert [step for step in phone.steps() if step != "version"] == steps


@pytest.mark.parametrize(("step", "text"), [("hello", "error: device offline"), ("run", "error: closed")])
def test_what_passes_is_mended_by_a_whole_launch(phone: Pretended, step: str, text: str) -> None:
    phone.plan(step, "says", text=text, code=0, times=1)
    assert _connect(phone).run(JOB, timeout=20)["python"]
    assert phone.steps().count(step) == 2
    _clean(phone)


def test_another_device_under_the_same_serial_is_found_out(phone: Pretended) -> None:
    device = _connect(phone)
    device.run(JOB, timeout=20)
    phone.plan("run", "reboot")
    with pytest.raises(DeviceError, match="another machine answers"):
        device.run(JOB, timeout=20)


def test_a_root_that_arrives_damaged_is_not_unpacked(phone: Pretended) -> None:
    phone.plan("push", "cut-push")
    with pytest.raises(DeviceError, match="arrived damaged"):
        _connect(phone).run(JOB, timeout=20)
    assert "unpack" not in phone.steps()
    assert "run" not in phone.steps()


def test_a_device_of_another_architecture_needs_a_runner(phone: Pretended) -> None:
    phone.program("uname", "echo x86_64")
    with pytest.raises(DeviceError, match="is x86_64") as caught:
        _connect(phone).run(JOB, timeout=20)
    assert "runner=" in caught.value.next_step


def test_without_the_arm64_root_the_command_that_makes_it_is_named(
    phone: Pretended, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PATH", phone.path)
    monkeypatch.setenv("EDGEEXPORT_DEVICES", str(tmp_path / "nothing"))
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
    with pytest.raises(MachineError, match="not installed") as caught:
        _connect(phone).run(JOB, timeout=20)
    assert caught.value.exit_code == 3
    assert "devices install emulated" in caught.value.next_step


@pytest.mark.parametrize("version", range(36, 46))
def test_a_server_of_another_version_is_never_spoken_to(phone: Pretended, version: int) -> None:
    with _server(b"OKAY0004%04x" % version) as port:
        if version == 41:
            adb.spare_the_server(port)
            return
        with pytest.raises(DeviceError, match=f"of version {version}, the adb on the PATH of 41") as caught:
            _connect(phone, at=f"@{port}").run(JOB, timeout=20)
    assert "another port" in caught.value.next_step
    assert set(phone.steps()) == {"version"}


def test_a_server_of_our_version_is_used(phone: Pretended) -> None:
    with _server(VERSION) as port:
        assert _connect(phone, at=f"@{port}").run(JOB, timeout=20)["python"]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"FAIL0003no!", b"OKAY", b"OKAYzzzz"])
def test_what_is_no_adb_server_is_named(phone: Pretended, answer: bytes) -> None:
    with _server(answer) as port, pytest.raises(DeviceError, match=f"port {port} of this machine"):
        _connect(phone, at=f"@{port}").run(JOB, timeout=20)


def test_devices_are_listed_with_their_state_and_no_server_is_started(
    phone: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [(row.reachable, "adb start-server" in row.reason) for row in adb.available()] == [(False, True)]
    lines = b"TEST0001  device product:p model:m\nTEST0002  unauthorized usb:1\n"
    with _server(b"OKAY%04x" % len(lines) + lines) as port:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", port)
        rows = [(row.device, row.reachable) for row in adb.available()]
    assert rows == [("adb://TEST0001", True), ("adb://TEST0002", False)]
    assert phone.steps() == []


def test_without_the_programs_nothing_is_reachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert {row.reason for row in devices.available() if row.device.startswith(("ssh", "adb"))} == {
        "there is no ssh on the PATH: sudo apt install openssh-client",
        "there is no adb on the PATH: sudo apt install adb",
    }
    with _server(VERSION) as running:
        for reference in ("ssh://pi@board", "adb://TEST0001@1", f"adb://TEST0001@{running}"):
            with pytest.raises(MachineError, match=r"^there is no (adb|ssh) on the PATH$") as caught:
                devices.get(reference).describe()
            assert caught.value.exit_code == 3
            assert caught.value.next_step.startswith("sudo apt install ")
