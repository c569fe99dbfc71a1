"""Installing emulated CPUs says which program, package or compiler is missing, and leaves nothing half done."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgeexport.devices.guest import install, root
from edgeexport.devices.home import HOME_VARIABLE, home
from edgeexport.errors import MachineError
from tests.needs import need


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "devices"))
    return root.folder()


def _program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_machine_without_debians_tools_is_told_so(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="needs the program 'dpkg'"):
        install.install()
    assert not bare.exists()


def test_what_apt_says_is_in_the_error_and_nothing_half_made_stays(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _program(tmp_path / "bin", "dpkg", "echo amd64")
    _program(tmp_path / "bin", "apt-get", "echo 'E: Temporary failure resolving' >&2; exit 100")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(MachineError, match="Temporary failure resolving"):
        install.install()
    assert [path.name for path in home().iterdir()] == ["downloads"]


def test_without_a_compiler_the_reason_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C compiler" in install._compile_plugin(tmp_path)


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path / "bin", "cc", "echo 'stdint.h: no such file' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert "stdint.h" in install._compile_plugin(tmp_path)


def test_a_compiler_that_hangs_is_ended_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path / "bin", "cc", "exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(install, "SECONDS", 0.2)
    with pytest.raises(MachineError, match="compiling the counting plugin took more than"):
        install._compile_plugin(tmp_path)
    monkeypatch.setattr(install.sys, "executable", str(tmp_path / "bin" / "cc"))
    monkeypatch.setattr(root, "PYTHON", "{}.{}".format(*sys.version_info[:2]))
    with pytest.raises(MachineError, match="compiling the guest's Python files took more than"):
        install._compile_python(tmp_path)


def test_an_installation_that_fits_is_kept() -> None:
    need("emulated")
    made = (root.folder() / root.MANIFEST).stat().st_mtime_ns
    assert install.install() == root.folder()
    assert (root.folder() / root.MANIFEST).stat().st_mtime_ns == made


def test_every_package_and_file_is_recorded_with_its_digest() -> None:
    need("emulated")
    record = root.manifest(root.installed())
    assert any(name.startswith("qemu-user_") for name in record.packages)
    assert any(name.startswith(f"onnxruntime-{root.version_of('onnxruntime')}-") for name in record.packages)
    assert all(digest.startswith("sha256:") for digest in record.packages.values())
    assert "count.so" in record.files
