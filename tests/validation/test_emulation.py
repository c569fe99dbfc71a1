"""Validation under emulation: it agrees where it should, and goes red for each fault that only another CPU shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeexport import devices
from edgeexport.devices import emulated
from edgeexport.devices.guest import root
from edgeexport.devices.guest.presets import PRESETS
from edgeexport.devices.home import HOME_VARIABLE
from edgeexport.devices.local import Local
from edgeexport.devices.protocol import NoAnswer
from edgeexport.errors import DeviceError
from edgeexport.records.base import file_digest
from edgeexport.records.device import DeviceFacts
from edgeexport.records.target import load_target
from edgeexport.validation.emulation import EXACT_X86, _outputs, _reference, presets_for, validate_emulated
from edgeexport.validation.measure import Subject
from tests.device_bench.tiny import dense_model
from tests.devices.emulated_nets import half_model, integer_model, sample
from tests.needs import need

GENERIC = load_target("android-arm64")
WEAK = msgspec.structs.replace(GENERIC, name="weak", lacks=("asimddp",))
PHONE = msgspec.structs.replace(GENERIC, name="phone", features=("asimddp",), lacks=("i8mm",))


def _subject(path: Path, tolerance: float = 0.0, **more: Any) -> Subject:
    settings: dict[str, Any] = {"runtime": "ort", "inputs": [sample()], "tolerance": {"y": tolerance}, **more}
    return Subject(path.stem, path, file_digest(path), **settings)


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("android-arm64", ["armv8.0", "armv8.2", "armv8.6-i8mm"]),
        ("raspberry-pi-5", ["armv8.2", "armv8.6-i8mm"]),
        ("linux-x86_64-avx2", ["x86-avx2"]),
        ("linux-x86_64-vnni", []),
    ],
)
def test_presets_have_what_the_target_has_and_nothing_that_it_lacks(target: str, names: list[str]) -> None:
    assert [preset.name for preset in presets_for(load_target(target))] == names


def test_without_an_installation_nothing_is_said_to_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("ort")
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "nothing"))
    record = validate_emulated(_subject(dense_model(tmp_path / "m.onnx")), GENERIC, int8=False)
    assert record.runs == ()
    assert record.notes == ("not validated under emulation: run `edgeexport devices install emulated`",)


def test_a_target_that_no_emulated_cpu_stands_for_is_not_validated(tmp_path: Path) -> None:
    need("ort")
    target = load_target("linux-x86_64-vnni")
    record = validate_emulated(_subject(dense_model(tmp_path / "m.onnx")), target, int8=False)
    assert record.runs == ()
    assert "no emulated CPU stands for linux-x86_64-vnni" in record.notes[0]


def test_a_cpu_that_is_too_slow_to_answer_is_a_note_and_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("emulated")

    def late(self: emulated.Counting, *_: Any, **__: Any) -> Any:
        raise NoAnswer(f"{self.name}: no answer to a 'outputs' job within 300 s; it was killed")

    monkeypatch.setattr(emulated.Counting, "run", late)
    record = validate_emulated(_subject(dense_model(tmp_path / "m.onnx")), WEAK, int8=False)
    assert (record.holds, record.runs) == (True, ())
    assert "not validated there: emulated:armv8.0: no answer" in record.notes[0]


def test_fp16_that_overflows_from_armv8_2_on_is_right_on_armv8_0_and_red_there(tmp_path: Path) -> None:
    need("emulated")
    both = msgspec.structs.replace(GENERIC, lacks=("i8mm",))
    record = validate_emulated(_subject(half_model(tmp_path / "half.onnx"), 0.5), both, int8=False)
    by_device = {run.device: run for run in record.runs}
    assert by_device["emulated:armv8.0"].holds
    assert not by_device["emulated:armv8.2"].holds
    assert not record.holds
    assert "64 of 64 values are NaN or Inf" in by_device["emulated:armv8.2"].reason
    assert "65,504" in record.reason


def test_int8_is_exact_on_arm_and_its_missed_fast_path_is_noted(tmp_path: Path) -> None:
    """fp32 that is said to be int8 is what a missed fast path looks like."""
    need("emulated")
    right = validate_emulated(_subject(integer_model(tmp_path / "int8.onnx")), PHONE, int8=True)
    assert right.holds
    assert right.notes == ()
    assert all(run.counts is not None and run.counts.dot_product for run in right.runs)
    missed = validate_emulated(_subject(dense_model(tmp_path / "fp32.onnx"), 1e-4), PHONE, int8=True)
    assert missed.holds
    assert missed.notes == ("emulated:armv8.2: int8 uses no dot products: the fast path was missed",)


def test_saturation_is_found_where_only_x86_without_vnni_shows_it(tmp_path: Path) -> None:
    """Full 8-bit weights and activations: `vpmaddubsw` adds pairs of products in 16 bits."""
    need("emulated")
    subject = _subject(integer_model(tmp_path / "int8.onnx"), inputs=[{"x": np.full((1, 64), 9, np.float32)}])
    record = validate_emulated(subject, load_target("linux-x86_64-avx2"), int8=True)
    assert not record.holds
    assert "differs by" in record.reason
    assert record.runs[0].counts is None
    assert "Arm instructions" in record.runs[0].counts_missing


def test_a_file_that_dies_on_the_other_cpu_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that promises dot products and has none."""
    need("emulated")
    liar = dataclasses.replace(PRESETS["armv8.2"], model="cortex-a53")
    monkeypatch.setattr(emulated, "counting", lambda _: emulated.Counting(liar, root=root.installed()))
    record = validate_emulated(_subject(integer_model(tmp_path / "int8.onnx")), WEAK, int8=True)
    assert not record.holds
    assert "signal 4" in record.reason


class Old(Local):
    """This machine, if it were x86 without VNNI; `refuses`: whether onnxruntime has no exact kernels for the file."""

    def __init__(self, *, refuses: bool) -> None:
        super().__init__()
        self.refuses = refuses
        self.options: list[dict[str, Any]] = []

    def describe(self, runtime: str = "") -> DeviceFacts:
        return msgspec.structs.replace(super().describe(runtime), arch="x86_64", features=("avx2",))

    def run(self, job: Mapping[str, Any], **rest: Any) -> dict[str, Any]:
        self.options.append(job["options"])
        if self.refuses and "config_entries" in job["options"]:
            raise DeviceError("no kernel")
        return super().run(job, **rest)


@pytest.mark.parametrize("refuses", [False, True])
def test_a_machine_that_saturates_takes_its_reference_from_exact_kernels(tmp_path: Path, refuses: bool) -> None:
    need("ort")
    subject = _subject(integer_model(tmp_path / "int8.onnx"))
    here = Old(refuses=refuses)
    reference = _reference(subject, here)
    last = {"graph_optimization_level": "disable"} if refuses else {"config_entries": EXACT_X86}
    itself = dataclasses.replace(subject, options=last)
    assert np.array_equal(reference["y"], _outputs(itself, devices.get("local"))["y"])
    assert here.options[-1] == last
