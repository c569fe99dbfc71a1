"""An int8 form that is too slow is repaired; what is not measured faster does not ship."""

from __future__ import annotations

import contextlib
import platform

import msgspec
import pytest

from edgeexport.devices import local
from edgeexport.errors import DeviceError
from edgeexport.pipeline import repairing, ship
from edgeexport.records.measurement import Comparison, Interval
from edgeexport.validation.measure import PLANS


@pytest.fixture
def slow(desk, monkeypatch):
    """A net with HardSwish, on a target that this machine can judge, whose int8 form is said to be slow."""
    desk.edit("models.py", "nn.ReLU(), nn.Conv2d", "nn.Hardswish(), nn.Conv2d")
    desk.edit("recipe.toml", "[[step]]", "[limits]\nmax_drop = 100.0\n\n[[step]]")
    text = f'title = "here"\nruntime = "ort"\nformat = "onnx"\narch = "{platform.machine()}"\n'
    desk.target = str(desk.write("here.toml", text))

    monkeypatch.setitem(PLANS, "brief", PLANS["smoke"])  # what it says is replaced
    honest = ship.timed

    def timed(road, target, *, base, candidate, device):
        times = honest(road, target, base=base, candidate=candidate, device=device)
        if candidate.row.artifact.digest == base.row.artifact.digest:
            return times
        ratio, claim = (0.5, "faster") if "repaired" in candidate.row.name else (1.5, "slower")
        measured = msgspec.structs.replace(times.candidate, valid=True, reasons=())
        ours, theirs = candidate.row.artifact.digest, base.row.artifact.digest
        compared = Comparison(theirs, ours, Interval(ratio, ratio, ratio), claim)
        return msgspec.structs.replace(times, candidate=measured, comparison=compared)

    monkeypatch.setattr(ship, "timed", timed)
    return desk


def _rows(desk):
    return {row["name"]: row for row in desk.record()["rungs"] if row["target"] == "here"}


def test_the_form_that_a_repair_makes_faster_ships_and_says_what_was_tried(slow, monkeypatch):
    honest, measured = repairing.ratio, []

    def ratio(road, target, **more):
        with contextlib.suppress(DeviceError):  # one launch says little: it may be called invalid
            measured.append(honest(road, target, **more))
        return 0.8

    monkeypatch.setattr(repairing, "ratio", ratio)
    write, compared = repairing.written, []

    def written(lane, changed, *, of, **more):
        compared.extend([of.spine.record.parity, changed.spine.record.parity])
        return write(lane, changed, of=of, **more)

    monkeypatch.setattr(repairing, "written", written)
    assert slow.run(target=slow.target) == 0
    assert compared[0] is not None
    assert compared[1] is None  # the edited spine is not what the export was compared with
    rows = _rows(slow)
    assert "'not slower than fp32'" in rows["source int8 minmax"]["reason"]
    shipped = rows["source int8 minmax repaired"]
    assert shipped["status"] == "shipped"
    assert any("hardswish" in note for note in shipped["notes"])
    assert all(value > 0 for value in measured)


def test_without_a_faster_edit_the_source_ships_in_fp32(slow, monkeypatch):
    monkeypatch.setattr(repairing, "ratio", lambda *_, **__: 1.01)
    assert slow.run(target=slow.target) == 0
    rows = _rows(slow)
    assert "no repair is faster here" in rows["source int8 minmax repaired"]["reason"]
    assert rows["source fp32"]["status"] == "shipped"


def test_that_nothing_is_faster_is_kept_where_it_was_measured_and_for_that_machine(slow, monkeypatch):
    asked = []

    def noisy(*_, **__):
        asked.append("noisy")
        raise DeviceError("launches lie 40% apart")

    monkeypatch.setattr(repairing, "ratio", noisy)
    assert slow.run(target=slow.target) == 0
    assert "not measured: launches lie" in _rows(slow)["source int8 minmax repaired"]["reason"]
    monkeypatch.setattr(repairing, "ratio", lambda *_, **__: asked.append("quiet") or 1.01)
    assert slow.run(target=slow.target) == 0
    edits = asked.count("noisy")
    assert asked.count("quiet") == edits > 0
    assert slow.run(target=slow.target) == 0
    assert asked.count("quiet") == edits
    honest = local._facts
    monkeypatch.setattr(local, "_facts", lambda *words: msgspec.structs.replace(honest(*words), cpu="another"))
    assert slow.run(target=slow.target) == 0
    assert asked.count("quiet") == 2 * edits
