"""What a place says when it cannot be used: the path, the reason and exit code 3, never an OSError."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeexport.errors import MachineError, NoSpace
from edgeexport.records.recipe import Limits
from edgeexport.workspace import Workspace, publish, usable


def _a_file(folder: Path) -> Path:
    (folder / "out").write_text("mine")
    return folder / "out"


def _below_a_file(folder: Path) -> Path:
    return _a_file(folder) / "deeper" / "still"


def _read_only(folder: Path) -> Path:
    if os.geteuid() == 0:
        return Path("/proc/edgeexport")  # nothing stops root in a folder of its own
    folder.chmod(0o500)
    return folder / "out"


def _write(place: Path) -> None:
    publish(place / "report.html", b"report")


def _enter(place: Path) -> None:
    with Workspace(place):
        pass


@pytest.mark.parametrize("use", [usable, _write, _enter])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_a_file, "file|Not a directory"),
        (_below_a_file, "Not a directory"),
        (_read_only, "Permission|No such file|Read-only|Operation not permitted"),
    ],
)
def test_a_place_that_cannot_be_used_is_named_with_the_reason(
    use: Callable[[Path], None], make: Callable[[Path], Path], reason: str, tmp_path: Path
) -> None:
    place = make(tmp_path)
    with pytest.raises(MachineError, match=reason) as caught:
        use(place)
    assert str(place) in str(caught.value) or str(tmp_path) in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_usable_place_is_made_and_left_empty(tmp_path: Path) -> None:
    usable(tmp_path / "new" / "out")
    assert list((tmp_path / "new" / "out").iterdir()) == []


def test_what_a_killed_run_left_in_a_place_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".linux-arm64.bundle.0123abcd.tmp").write_text("half")
    (tmp_path / ".mine.tmp").write_text("mine")
    usable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mine.tmp"]


def test_a_place_is_proven_on_the_disk_and_not_by_its_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace, match="no space left for 5 bytes"):
        usable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_library_raises_without_an_error_number_is_not_blamed_on_the_place(tmp_path: Path) -> None:
    def make(folder: Path) -> str:
        raise OSError("not a picture")

    with Workspace(tmp_path) as work, pytest.raises(OSError, match="not a picture"):
        work.stage("one", key={}, make=make, kind=str)


def test_what_was_kept_of_unfinished_work_goes_when_its_stage_is_published(tmp_path: Path) -> None:
    with Workspace(tmp_path) as work:
        mine, other = (work.unfinished("train", key={"seed": seed}) for seed in (0, 1))
        for folder in (mine, other):
            publish(folder / "state", b"half way")

        def make(_: Path) -> Limits:
            assert (mine / "state").is_file()
            return Limits()

        work.stage("train", key={"seed": 0}, make=make, kind=Limits)
    assert not mine.exists()
    assert other.exists()


def test_what_a_kill_after_publishing_left_of_unfinished_work_goes_when_its_stage_is_found(tmp_path: Path) -> None:
    for fresh in (True, False):
        with Workspace(tmp_path) as work:
            mine, other = (work.unfinished("train", key={"seed": seed}) for seed in (0, 1))
            if not fresh:
                publish(mine / "state", b"all the way")
                publish(other / "state", b"half way")
            assert work.stage("train", key={"seed": 0}, make=lambda _: Limits(), kind=Limits).fresh is fresh
    assert not mine.exists()
    assert other.exists()
