"""The one boundary over which words reach a device's shell, and what a reference to a device may look like."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgeexport import devices
from edgeexport.devices.protocol import read_answer
from edgeexport.devices.shell import quote
from edgeexport.errors import DeviceError, RequestError

HOSTILE = (
    "; touch canary", "$(touch canary)", "`touch canary`", "| touch canary", "& touch canary", "&& touch canary",
    "\n touch canary\n", "' ; touch canary; '", '" ; touch canary; "', "'$(touch canary)'", '"$(touch canary)"',
    "\\'; touch canary; \\'", "$'\\n'touch canary", "${IFS}touch${IFS}canary", "> canary", ">> canary", "< /etc/passwd",
    "*", "?", "[a-z]*", "~", "~root", "#comment", "!!", "a b", " leading", "trailing ", "\t", "-rf", "--", "", "%s%n",
    "é ü 模型", "\u202egnp.exe", "a\\", "\\", "(touch canary)", "{touch,canary}", "\r\ntouch canary\r\n", "\x1b[2J",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_word_arrives_as_itself_and_does_nothing(name: str, tmp_path: Path) -> None:
    line = quote("printf", "%s\\n", name, "end")
    once = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, check=True).stdout
    assert once.decode() == f"{name}\nend\n"
    twice = quote("sh", "-c", 'printf "%s\\n" "$@"', "sh", name, "end")
    done = subprocess.run(["sh", "-c", twice], cwd=tmp_path, capture_output=True, check=True).stdout
    assert done == once
    assert list(tmp_path.iterdir()) == []


def test_a_nul_is_refused() -> None:
    with pytest.raises(RequestError, match="NUL"):
        quote("a\0b")


@pytest.mark.parametrize(
    "reference",
    [
        "ssh://", "ssh:pi", "ssh", "ssh:///", "ssh://-oProxyCommand=touch canary", "ssh://pi@-oProxyCommand=x",
        "ssh://pi@host;touch canary", "ssh://pi:secret@host", "ssh://pi@host:0", "ssh://pi@host:99999", "ssh://a@b@c",
        "ssh://pi@host/path", "ssh://pi@host?pyton=/x", "ssh://$(touch canary)", "ssh://h\nost",
        "adb://", "adb:x", "adb://-s", "adb://a b", "adb://x;y", "adb://x@port", "adb://x@0", "adb://x?python=/x",
        "adb://$(touch canary)",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused_at_once(reference: str) -> None:
    with pytest.raises(RequestError) as caught:
        devices.get(reference)
    assert caught.value.exit_code == 2
    assert caught.value.next_step


def test_references_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    device = devices.get("ssh://pi@[fe80::1%eth0]:2222?python=/opt/py/bin/python&config=/x/y")
    assert device.name == "ssh://pi@[fe80::1%eth0]:2222"
    command = device.carrier("line")  # type: ignore[attr-defined]
    assert command[:4] == ["ssh", "-T", "-F", "/x/y"]
    assert command[-8:] == ["PermitLocalCommand=no", "-p", "2222", "-l", "pi", "--", "fe80::1%eth0", "line"]
    assert "StrictHostKeyChecking=yes" in command
    assert "BatchMode=yes" in command
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "1")
    assert devices.get("adb://192.0.2.7:5555").carrier("line")[:5] == ["adb", "-P", "1", "-s", "192.0.2.7:5555"]  # type: ignore[attr-defined]


def test_an_answer_that_is_cut_short_is_none() -> None:
    with pytest.raises(DeviceError):
        read_answer('{"protocol": 1, "mo', "", exit_code=0, mode="time", device="d")
