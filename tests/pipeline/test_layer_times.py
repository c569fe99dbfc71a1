"""The latency table as it is made: sheets of layers, timed, counted or predicted, each said to be so."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from types import SimpleNamespace

import pytest

from edgeexport import devices
from edgeexport.compression.latency import Grid
from edgeexport.graph import layer_times, sheet
from edgeexport.graph.sheet import Layer
from edgeexport.pipeline import layer_times as timing
from edgeexport.pipeline.layer_times import Place, layer_table, time_layers
from edgeexport.progress import silent
from edgeexport.records.latency import LayerShape
from edgeexport.records.target import Target
from edgeexport.runtimes.ort import open_session
from edgeexport.workspace import Workspace
from tests.needs import need

INSTALLED = os.environ.get("EDGEEXPORT_DEVICES")  # before `unemulated` hides it
LAYERS = [
    Layer(LayerShape("conv", (8, 8), (3, 3), (2, 2), (1, 1), (1, 1)), 8, 16),
    Layer(LayerShape("conv", (8,), (3,), (1,), (0,), (1,), groups=2), 8, 16),
    Layer(LayerShape("depthwise", (8, 8), (3, 3), (1, 1), (1, 1), (2, 2)), 16, 16),
    Layer(LayerShape("transposed", (4, 4), (2, 2), (2, 2), (0, 0), (1, 1)), 16, 8),
    Layer(LayerShape("linear", (6,)), 24, 40),
]


def here(form="int8"):
    target = Target("here", "this machine", "ort", "onnx", platform.machine())
    return Place(target, form)


def test_a_sheet_holds_every_kind_of_layer_with_the_shapes_asked_for():
    model, feeds = sheet(LAYERS)
    outputs = open_session(model.SerializeToString()).run(feeds)
    shapes = [outputs[f"layer{index}"].shape for index in range(len(LAYERS))]
    assert shapes == [(1, 16, 4, 4), (1, 16, 6), (1, 16, 6, 6), (1, 8, 8, 8), (6, 40)]


def test_times_are_read_by_layer_whatever_the_runtime_adds_to_a_name():
    nodes = [("layer1_nchwc", 2.0), ("layer10_token_7", 3.0), ("q1", 9.0), ("layer2", 1.0)]
    assert layer_times(nodes) == {1: 2.0, 10: 3.0, 2: 1.0}


@pytest.mark.parametrize("form", ["int8", "fp32"])
def test_every_layer_is_timed_in_the_form_that_ships(form):
    wanted = [Grid(layer.shape, (layer.inputs,), (layer.outputs,)) for layer in LAYERS]
    table = time_layers(here(form), wanted)
    assert (table.basis, table.unit, table.form, table.device) == ("measured", "ms", form, "local")
    assert [shape.shape for shape in table.shapes] == [layer.shape for layer in LAYERS]
    assert all(cost.cost > 0 for shape in table.shapes for cost in shape.costs)


def test_where_no_device_may_judge_costs_are_predicted_with_the_reason():
    place = replace(here(), device="none")
    table = time_layers(place, [Grid(LAYERS[0].shape, (8,), (16,))])
    assert (table.basis, table.reason) == ("predicted", "no device was given (--device none)")


def test_a_runtime_without_times_of_layers_is_predicted_with_the_reason():
    target = Target("here", "this machine", "litert", "tflite", platform.machine())
    machine, reason = Place(target, "int8").machine()
    assert machine is None
    assert "no times of single operators" in reason


def test_a_profile_without_a_layer_is_an_error(monkeypatch):
    monkeypatch.setattr(timing.graph, "layer_times", lambda nodes: dict(list(layer_times(nodes).items())[1:]))
    with pytest.raises(timing.DeviceError, match="no time of"):
        timing._timed(LAYERS[:2], here(), machine=devices.get("local"))


def test_a_layer_that_is_given_nothing_is_left_out():
    model, feeds = sheet(LAYERS, apart=True)
    empty = {name: value[:0] for name, value in feeds.items()}
    outputs = open_session(model.SerializeToString()).run({**empty, "in4": feeds["in4"]})
    assert [outputs[f"layer{index}"].size for index in range(5)] == [0, 0, 0, 0, 240]


def test_where_an_emulated_cpu_is_like_the_targets_instructions_are_counted(monkeypatch):
    if INSTALLED is None:
        monkeypatch.delenv("EDGEEXPORT_DEVICES")
    else:
        monkeypatch.setenv("EDGEEXPORT_DEVICES", INSTALLED)
    need("emulated")
    target = Target("phone", "a phone", "ort", "onnx", "aarch64", features=("asimd", "asimddp"), lacks=("i8mm",))
    shape = LAYERS[0].shape
    table = time_layers(Place(target, "int8"), [Grid(shape, (16,), (16, 64))])
    narrow, wide = (cost.cost for cost in table.shapes[0].costs)
    assert (table.basis, table.unit, table.device) == ("counted", "M instructions", "emulated:armv8.2")
    assert "the target is aarch64" in table.reason
    assert 1.5 < wide / narrow < 6


def fake_timed(monkeypatch, asked, *, pace, disturbed=()):
    """Times in proportion to widths on a machine that runs at `pace`; what is asked for is kept.

    disturbed: layers of which no two processes agree.
    """

    def timed(layers, place, *, machine):
        asked.append([layer for layer in layers if layer not in timing.REFERENCES])
        least = {layer: pace[0] * layer.inputs * layer.outputs for layer in layers}
        return {layer: [9 * time, 30 * time] if layer in disturbed else [time] * 2 for layer, time in least.items()}

    monkeypatch.setattr(timing, "_timed", timed)


def costs(table):
    return [cost.cost for shape in table.shapes for cost in shape.costs]


def test_a_second_table_times_only_new_layers_and_carries_the_others_over_by_the_references(tmp_path, monkeypatch):
    shape, asked, pace = LAYERS[4].shape, [], [1.0]
    fake_timed(monkeypatch, asked, pace=pace)
    with Workspace(tmp_path) as work:
        road = SimpleNamespace(workspace=work, detail=silent)
        first = layer_table(road, here(), wanted=[Grid(shape, (8,), (8, 16))])
        pace[0] = 3.0
        second = layer_table(road, here(), wanted=[Grid(shape, (8,), (8, 16, 24))])
        pace[0] = 2.0
        known = layer_table(road, here(), wanted=[Grid(shape, (8,), (16, 24))])
        floats = layer_table(road, here("fp32"), wanted=[Grid(shape, (8,), (8,))])
        again = layer_table(road, here(), wanted=[Grid(shape, (8,), (8, 16))])
    assert asked == [[(shape, 8, 8), (shape, 8, 16)], [(shape, 8, 24)], [], [(shape, 8, 8)]]
    assert [costs(each) for each in (first, second, known)] == [[64, 128], [192, 384, 576], [256, 384]]
    assert costs(floats) == [128]
    assert costs(again) == costs(first)


def test_a_time_on_which_no_two_processes_agree_is_used_but_not_kept_and_of_the_references_it_spoils_none(
    tmp_path, monkeypatch
):
    asked, disturbed = [], [Layer(LAYERS[4].shape, 8, 16), timing.REFERENCES[3]]
    fake_timed(monkeypatch, asked, pace=[1.0], disturbed=disturbed)
    wanted = [Grid(LAYERS[4].shape, (8,), (8, 16))]
    assert costs(time_layers(here(), wanted, known=tmp_path)) == [64, 9 * 128]
    disturbed.clear()
    assert costs(time_layers(here(), wanted, known=tmp_path)) == [64, 128]
    assert [len(each) for each in asked] == [2, 1]


def test_a_stored_sheet_that_is_damaged_is_timed_again(tmp_path, monkeypatch):
    asked = []
    fake_timed(monkeypatch, asked, pace=[1.0])
    with Workspace(tmp_path) as work:
        road = SimpleNamespace(workspace=work, detail=silent)
        layer_table(road, here(), wanted=[Grid(LAYERS[4].shape, (8,), (8,))])
        (sheet,) = (tmp_path / "unfinished").glob("layer costs-*/*.json")
        sheet.write_bytes(sheet.read_bytes()[:-20])
        table = layer_table(road, here(), wanted=[Grid(LAYERS[4].shape, (8,), (8, 16))])
    assert len(asked[1]) == 2
    assert costs(table) == [64, 128]


def test_a_killed_table_keeps_the_sheets_that_were_timed(tmp_path, monkeypatch):
    asked = []
    fake_timed(monkeypatch, asked, pace=[1.0])
    monkeypatch.setattr(timing, "MOST_LAYERS", 1)
    timed = timing._timed
    monkeypatch.setattr(
        timing, "_timed", lambda *given, **named: pytest.fail("killed") if asked else timed(*given, **named)
    )
    wanted = [Grid(LAYERS[4].shape, (8,), (8, 16))]
    with pytest.raises(pytest.fail.Exception):
        time_layers(here(), wanted, known=tmp_path)
    monkeypatch.setattr(timing, "_timed", timed)
    assert costs(time_layers(here(), wanted, known=tmp_path)) == [64, 128]
    assert [len(each) for each in asked] == [1, 1]
