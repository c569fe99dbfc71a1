"""On emulated CPUs `bench` counts instructions, compares with goldens, and gates on the count."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeexport import devices
from edgeexport.benchmark import opened, read_records
from edgeexport.benchmark.counting import counted
from edgeexport.benchmark.front import Benched
from edgeexport.benchmark.gating import gate
from edgeexport.cli import main
from edgeexport.devices.emulated import Emulated
from edgeexport.errors import CheckFailed, DeviceError
from edgeexport.records.benchmark import BenchRecord
from edgeexport.records.emulation import InstructionCounts
from tests.benchmark.records import entry, record
from tests.bundles.making import make
from tests.device_bench.tiny import dense_model
from tests.needs import need

COUNTS = InstructionCounts(100_000, 40_000, 20_000, 5_000, 20_000, 10_000, 5, 0.001)


def _counted(**changes: int) -> BenchRecord:
    counts = msgspec.structs.replace(COUNTS, **changes)
    plain = entry(device="emulated:armv8.2", latency=None, memory=None)
    return record(msgspec.structs.replace(plain, counts=counts))


def test_a_count_within_what_is_allowed_holds_and_one_beyond_fails() -> None:
    states = [gate(_counted(total=total), _counted(), allowed=0.01)[0] for total in (99_000, 100_900, 101_100)]
    assert [(each.what, each.state) for each in states] == [
        ("instructions", "holds"), ("instructions", "holds"), ("instructions", "fails"),
    ]  # fmt: skip
    assert states[2].reason == "1.011 times as many, 1.01 allowed"
    with pytest.raises(CheckFailed, match="regression"):
        Benched(_counted(total=101_100), tuple(states[2:])).raise_faults()


def test_dot_products_that_are_gone_fail_however_few_instructions_there_are() -> None:
    found = gate(_counted(total=90_000, dot_product=0), _counted(), allowed=0.5)[0]
    assert found.state == "fails"
    assert "the fast path was missed" in found.reason


def test_a_count_that_is_not_there_does_not_pass() -> None:
    invalid = msgspec.structs.replace(_counted().entries[0], counts=None)
    found = gate(record(invalid), _counted(), allowed=0.01)
    assert found[0].state == "unproven"
    with pytest.raises(DeviceError):
        Benched(record(invalid), found).raise_faults()


def test_a_larger_model_fails_the_gate_of_a_smaller_ones_record(tmp_path: Path, capsys: Any) -> None:
    need("emulated")
    need("ort")
    out, gated = tmp_path / "r.json", ["--device", "emulated:armv8.2", "--gate", "1%", "--against"]
    model = dense_model(tmp_path / "m.onnx", 2)
    assert main(["bench", str(model), "--device", "emulated:armv8.2", "--out", str(out)]) == 0
    assert "dot products" in capsys.readouterr().out
    kept = read_records(out)[0].entries[0]
    assert kept.counts is not None
    assert kept.counts.total > kept.counts.loads > 0
    assert (kept.measurement.latency, kept.measurement.memory) == (None, None)
    assert main(["bench", str(model), *gated, str(out)]) == 0
    assert "holds     m.onnx: instructions 1" in capsys.readouterr().out
    dense_model(model, 3)
    assert main(["bench", str(model), *gated, str(out)]) == 1
    assert "regression: m.onnx: instructions" in capsys.readouterr().err


def test_outputs_that_are_not_the_goldens_have_no_count(tmp_path: Path) -> None:
    need("emulated")
    need("ort")
    device = devices.get("emulated:armv8.0")
    assert isinstance(device, Emulated)
    with opened([make(tmp_path)]) as (subject,):
        right = counted(subject, device, mode="quick")
        wrong = [{name: value + np.float32(1) for name, value in each.items()} for each in subject.goldens]
        other = counted(replace(subject, goldens=wrong), device, mode="quick")
    assert right.measurement.valid
    assert right.counts is not None
    assert (other.measurement.valid, other.counts) == (False, None)
    assert "output 'y' differs by 1" in other.measurement.reasons[0]


def test_times_are_not_promised_there(tmp_path: Path, capsys: Any) -> None:
    need("emulated")
    need("ort")
    model = str(dense_model(tmp_path / "m.onnx", 1))
    assert main(["bench", model, "--device", "emulated:armv8.0", "--throughput"]) == 2
    assert "has no times" in capsys.readouterr().err
    assert main(["bench", model, "--device", "emulated:x86-avx2", "--json"]) == 4
    found = json.loads(capsys.readouterr().out)["entries"][0]["measurement"]
    assert "has others" in found["reasons"][0]
