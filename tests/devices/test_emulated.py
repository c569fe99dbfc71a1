"""Emulated CPUs: they compute what the host does, count exactly, die of what they lack, and have no times."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edgeexport import devices
from edgeexport.devices import emulated
from edgeexport.devices.emulated.counts import read_counts
from edgeexport.devices.guest import root
from edgeexport.devices.guest.presets import PRESETS
from edgeexport.devices.home import HOME_VARIABLE
from edgeexport.errors import CorruptFile, DeviceError, MachineError, RequestError
from edgeexport.records.base import to_json
from edgeexport.records.emulation import Installed
from edgeexport.records.target import load_target
from tests.device_bench.tiny import dense_model
from tests.devices.emulated_nets import integer_model, job
from tests.needs import need

SECONDS = 120


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of an installation, with nothing in it."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    return root.folder()


def _pretend(place: Path, recipe: str) -> None:
    (place / "site").mkdir(parents=True)
    (place / "site" / "numpy.py").write_text("good")
    (place / "lib").symlink_to("site")
    (place / root.MANIFEST).write_bytes(to_json(Installed(recipe, {}, root.contents(place))))


def test_a_machine_that_was_not_installed_names_the_command(bare: Path) -> None:
    with pytest.raises(MachineError, match="not installed") as caught:
        devices.get("emulated:armv8.2")
    assert caught.value.next_step == "edgeexport devices install emulated"
    told = {each.device: each for each in devices.available()}
    assert not told["emulated:armv8.2"].reachable
    assert "devices install emulated" in told["emulated:armv8.2"].reason


def test_an_unknown_preset_is_refused_with_the_known_ones(bare: Path) -> None:
    with pytest.raises(RequestError, match="armv9") as caught:
        devices.get("emulated:armv9")
    assert "emulated:armv8.0" in caught.value.next_step


def test_an_installation_for_other_versions_is_not_used(bare: Path) -> None:
    _pretend(bare, "sha256:old")
    with pytest.raises(MachineError, match="other versions"):
        root.installed()


@pytest.mark.parametrize("change", ["file", "link", "more", "less"])
def test_whatever_differs_from_what_was_installed_is_found_and_named(bare: Path, change: str) -> None:
    _pretend(bare, root.recipe())
    file, link = bare / "site" / "numpy.py", bare / "lib"
    if change == "file":
        file.write_text("evil")
    elif change == "link":
        link.unlink()
        link.symlink_to("/tmp")
    elif change == "more":
        (bare / "site" / "extra.py").touch()
    else:
        file.unlink()
    named = {"file": "numpy.py", "link": "lib", "more": "extra.py", "less": "numpy.py"}[change]
    with pytest.raises(CorruptFile, match=f"{named} is not what was installed"):
        root.installed()
    assert not any(each.reachable for each in emulated.available())


def test_an_intact_installation_is_used(bare: Path) -> None:
    _pretend(bare, root.recipe())
    assert root.installed() == bare


def test_x86_without_vnni_computes_what_the_host_does(tmp_path: Path) -> None:
    need("emulated")
    asked = job(dense_model(tmp_path / "m.onnx"))
    for name in ("local", "emulated:x86-avx2"):
        devices.get(name).run(asked, timeout=SECONDS, outputs_to=tmp_path / name)
    here, there = (np.load(tmp_path / name / "0.0.npy") for name in ("local", "emulated:x86-avx2"))
    assert np.abs(here - there).max() < 1e-5


def test_it_is_the_machine_that_its_name_says() -> None:
    need("emulated")
    facts = devices.get("emulated:armv8.2").describe("ort")
    assert (facts.arch, facts.os, facts.runtime_version) == ("aarch64", "linux", root.version_of("onnxruntime"))
    assert "asimddp" in facts.features
    assert "i8mm" not in facts.features


def test_it_has_no_times_and_judges_no_target() -> None:
    need("emulated")
    device = devices.get("emulated:armv8.2")
    with pytest.raises(DeviceError, match="under emulation there are none"):
        device.run({"mode": "time"}, timeout=SECONDS)
    able, why = device.can_judge(load_target("raspberry-pi-5"))
    assert not able
    assert "no times" in why


def test_a_count_is_exact_for_multiply_accumulates_of_floats(tmp_path: Path) -> None:
    """Two layers of 64 x 64 products, four in each vector."""
    need("emulated")
    machine = emulated.machine("armv8.2")
    asked = job(dense_model(tmp_path / "m.onnx"), samples=4)
    answer, counts = machine.count(asked, timeout=SECONDS, outputs_to=tmp_path / "out")
    assert (counts.multiply_accumulate, counts.dot_product) == (2 * 64 * 64 / 4, 0)
    assert counts.total > counts.simd > counts.multiply_accumulate
    assert counts.loads > counts.stores > 0
    assert (len(answer["outputs"]), counts.inferences) == (4, 2)


def test_dot_products_appear_where_the_cpu_has_them(tmp_path: Path) -> None:
    need("emulated")
    asked, found = job(integer_model(tmp_path / "m.onnx"), samples=4), {}
    for preset in ("armv8.0", "armv8.2"):
        machine = emulated.machine(preset)
        found[preset] = machine.count(asked, timeout=SECONDS, outputs_to=tmp_path / preset)[1]
    assert found["armv8.0"].dot_product == 0
    assert found["armv8.2"].dot_product >= 64 * 64 / 16
    here, there = (np.load(tmp_path / preset / "0.0.npy") for preset in found)
    assert np.array_equal(here, there)


def test_a_cpu_that_lacks_what_it_promises_dies_and_is_a_device_error(tmp_path: Path) -> None:
    need("emulated")
    liar = dataclasses.replace(PRESETS["armv8.2"], model="cortex-a53")
    with pytest.raises(DeviceError, match="signal 4"):
        emulated.Emulated(liar, root=root.installed()).run(
            job(integer_model(tmp_path / "m.onnx")), timeout=SECONDS, outputs_to=tmp_path
        )


def test_x86_instructions_are_not_counted_and_the_reason_is_said(tmp_path: Path) -> None:
    need("emulated")
    with pytest.raises(MachineError, match="the plugin reads Arm instructions"):
        emulated.machine("x86-avx2").count({}, timeout=SECONDS, outputs_to=tmp_path)


LOG = "mark 0 0 0 0 0 0 0 0\nmark 1 0 9 5 1 0 3 2\nmark 2 0 9 5 1 0 3 2\nmark 3 0 18 9 2 0 6 4\n"
THIRD = "mark 4 0 20 10 2 0 6 4\nmark 5 0 28 14 3 0 9 6\nmark 6 0 30 14 3 0 9 6\nmark 7 0 40 18 4 0 13 8\n"


def test_the_least_count_after_two_warm_ups_is_taken(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(LOG + THIRD)
    counts = read_counts(tmp_path / "log", inferences=4)
    assert (counts.total, counts.simd, counts.loads, counts.inferences, counts.deviation) == (8, 4, 3, 2, 0.25)


@pytest.mark.parametrize(
    "text", ["", LOG, LOG + "mark 4 0 20 10 2 0\n", LOG + "mark 4 0 1 1 1 1 1 1\nmark 5 1 2 2 2 2 2 2\n"]
)
def test_a_log_without_its_marks_is_no_count(tmp_path: Path, text: str) -> None:
    (tmp_path / "log").write_text(text)
    with pytest.raises(DeviceError, match=r"marks|thread"):
        read_counts(tmp_path / "log", inferences=3)
