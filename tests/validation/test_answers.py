"""Nonsense from a device, in modes other than `time`, is a DeviceError or a reason, never a crash."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeexport.benchmark.run import _energy, _nodes
from edgeexport.errors import DeviceError
from edgeexport.validation.answers import read_energy, read_memory, read_nodes, read_sentinel
from edgeexport.validation.measure import PLANS, measure, run_on_device
from edgeexport.validation.subjects import prepared
from tests.validation.test_measure import Scripted, _subject, _times

PEAK = {"peak_bytes": 2000, "before_load_bytes": 1000, "method": "VmHWM"}
NODE = {"name": "n", "op": None, "provider": "CPU", "us": 3, "calls": 1}
RAIL = {"idle_w": 1.0, "busy_w": 2.0, "j_per_inference": 0.1, "seconds": 3.0}
DIGEST = "sha256:0"


class Saying(Scripted):
    """A device that answers one mode as told, and writes what it is told to."""

    def __init__(self, mode: str, said: Any, written: bytes = b"") -> None:
        super().__init__(lambda _, number: _times(1.0, number))
        self.mode, self.said, self.written = mode, said, written

    def run(self, job: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        if job["mode"] != self.mode:
            return super().run(job, **more)
        if self.written:
            more["outputs_to"].mkdir()
            (more["outputs_to"] / "0.0.npy").write_bytes(self.written)
        return dict(self.said)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"memory": None},
        {"memory": []},
        {"memory": {"reason": 3}},
        {"memory": {**PEAK, "peak_bytes": "2000 kB"}},
        {"memory": {**PEAK, "peak_bytes": 0}},
        {"memory": {**PEAK, "rollup": {"Pss": "x"}}},
        {"memory": {"peak_bytes": 2000}},
    ],
)
def test_memory_that_is_nonsense_makes_the_measurement_invalid(said: Any) -> None:
    measured, _ = measure([_subject("a")], device=Saying("memory", said), mode="smoke")
    assert not measured[0].valid
    assert "a memory launch failed: the answer is not" in measured[0].reasons[0]


def test_what_is_right_is_read() -> None:
    assert read_memory({"memory": {"reason": "not told"}}) == "not told"
    assert read_sentinel({"sentinel": {"before_ns": [3, 4]}}) == (3, 4)
    assert [node.op for node in read_nodes({"profile": {"nodes": [NODE]}}) if not isinstance(node, str)] == [None]
    assert read_energy({"energy": {"reason": "none"}}) == ({}, "none")
    assert read_energy({"energy": {"rails": {"r": RAIL}}})[0]["r"].seconds == 3.0


@pytest.mark.parametrize("said", [{}, {"sentinel": 3}, {"sentinel": {"before_ns": []}}, {"sentinel": {}}])
def test_a_sentinel_that_is_nonsense_is_no_abort(said: Any) -> None:
    with pytest.raises(DeviceError, match="not the time of a fixed workload"):
        read_sentinel(said)
    timed = {"timed": {"seconds": 3.0, "cpu_seconds": 3.0}}
    device = Saying("sentinel", said)
    device.script = lambda _, number: {**_times(1.0, number), **timed}
    assert measure([_subject("a")], device=device, mode="quick")[0][0].valid


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"profile": 3},
        {"profile": {}},
        {"profile": {"nodes": [{"name": "n"}]}},
        {"profile": {"nodes": [{**NODE, "us": "fast"}]}},
        {"profile": {"nodes": [{**NODE, "us": float("inf")}]}},
    ],
)
def test_a_profile_that_is_nonsense_is_a_reason(said: Any, tmp_path: Path) -> None:
    nodes, reason = _nodes(prepared(_subject("a"), tmp_path, plan=PLANS["smoke"]), Saying("profile", said))
    assert nodes == ()
    assert reason.startswith("not profiled: the answer is not")


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"energy": []},
        {"energy": {"rails": {"r": {"idle_w": 1}}}},
        {"energy": {"rails": {"r": {**RAIL, "busy_w": float("nan")}}}},
    ],
)
def test_energy_that_is_nonsense_is_a_reason(said: Any, tmp_path: Path) -> None:
    turn = prepared(_subject("a"), tmp_path, plan=PLANS["smoke"])
    assert _energy(turn, Saying("energy", said), mode="official").reason.startswith("not measured: the answer is not")


def _bomb() -> bytes:
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1024), }"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize("written", [b"no array", b"PK\x03\x04", b"\x93NUMPY\x01\x00", _bomb()])
def test_an_output_that_is_no_array_is_refused(written: bytes, tmp_path: Path) -> None:
    said = {"outputs": [{"y": {"file": "0.0.npy", "digest": DIGEST}}]}
    with pytest.raises(DeviceError, match="is no array"):
        run_on_device(_subject("a"), device=Saying("outputs", said, written), folder=tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"outputs": [None]},
        {"outputs": []},
        {"outputs": [{"y": {"file": "0.0.npy"}}]},
        {"outputs": [{"y": {"file": "../in/in0.0.npy", "digest": DIGEST}}]},
        {"outputs": [{"y": {"file": "/etc/passwd", "digest": DIGEST}}]},
        {"outputs": [{"y": {"file": "0.0.npy", "digest": DIGEST}}]},
    ],
)
def test_outputs_that_are_nonsense_or_elsewhere_are_refused(said: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "secret.npy", np.zeros(1))
    with pytest.raises(DeviceError):
        run_on_device(_subject("a"), device=Saying("outputs", said), folder=tmp_path)
