"""What is timed before any training: the same integer operators as in the form that the ladder tries first."""

from __future__ import annotations

import platform
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgeexport import graph
from edgeexport.compression.latency import layer_shapes
from edgeexport.compression.macs import count_macs
from edgeexport.errors import RequestError
from edgeexport.graph.sheet import Layer
from edgeexport.pipeline import encoders, pruned, students
from edgeexport.pipeline import layer_times as timing
from edgeexport.pipeline.ladder import candidates
from edgeexport.pipeline.layer_times import Place
from edgeexport.pipeline.lower import Lane
from edgeexport.pipeline.road import open_road
from edgeexport.pipeline.shipped import fitted, float_layers, shipped
from edgeexport.pipeline.torch_rungs import climb, load_rung, place_of
from edgeexport.pipeline.workbench import Workbench, feeds_of
from edgeexport.progress import silent
from edgeexport.quantization import LinearForm
from edgeexport.records.base import file_digest
from edgeexport.records.encoder import FormChoice, FormTrial
from edgeexport.records.latency import LayerShape
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import Distill, Limits, Prune, Quantize, load_recipe
from edgeexport.records.target import Target, load_target
from edgeexport.search import entrants
from edgeexport.validation.answers import ProfiledNode
from edgeexport.workspace import Workspace
from tests.pipeline.test_forms import ENCODER

FRONT = """
import torch
from torch import nn


class Front(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Conv2d(1, 16, 3, padding=1)
        self.one, self.two, self.last = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16 * 16, 10)

    def forward(self, image):
        power = self.front(image)
        power = torch.log(power * power + 1e-4)
        return self.last(torch.relu(self.two(torch.relu(self.one(power)))).flatten(1))


def net():
    torch.manual_seed(0)
    return Front()
"""


@contextmanager
def benched(desk, *, target="linux-arm64"):
    """The network of a recipe, as it would be cut for a target without a device."""
    where = load_target(target)
    with Workspace(desk.folder / "work") as work:
        road = open_road(load_recipe(desk.folder / "recipe.toml"), work, progress=silent)
        source = climb(road, None, target=where, device="none").standing[0]
        place = fitted(road, place_of(road, (where, "none")), rung=source)
        folder = desk.folder / "bench"
        folder.mkdir(exist_ok=True)
        yield Workbench(road, Prune(speedup=2.0), place, source, folder)


def rebuilt(bench) -> Path:
    """The network as a student would be built of which nothing is cut."""
    module, feeds = load_rung(bench.road, bench.last), feeds_of(bench.road)
    macs = count_macs(module, feeds[0])
    return bench.built(module, PruningPlan("l2", 16, macs, macs, ()), feeds=feeds).path


def first_form(bench) -> Path:
    lane = Lane(bench.road, bench.place.target, bench.last, None, "none")
    return next(iter(candidates(lane, (bench.last,)))).path


def kinds(path: Path) -> Counter[tuple[str, bool]]:
    """Every operator, and whether it reads what was an integer before."""
    model = graph.load(path)
    real = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return Counter((node.op_type, bool(real.intersection(node.input))) for node in model.graph.node)


def test_an_encoder_is_timed_in_the_form_of_linear_layers_that_numbers_chose(desk):
    desk.write("models.py", ENCODER)
    with benched(desk) as bench:
        present = bench.present().path
        assert kinds(present) == kinds(first_form(bench))
        assert file_digest(present) == file_digest(first_form(bench))
        assert kinds(rebuilt(bench)) == kinds(present)
        assert not [op for op, integer in kinds(present) if integer and op != "Mul"]
        assert {"MatMulIntegerToFloat", "MatMulNBits"} & {op for op, _ in kinds(present)}


def trial(form, *rewritings):
    return FormTrial(form, rewritings, cosine=0.999, sqnr_db=30.0, bytes=1)


@pytest.mark.parametrize(
    ("trials", "qat", "first"),
    [
        ([trial("blockwise"), trial("static", "smoothed")], "if-needed", LinearForm("blockwise")),
        ([trial("blockwise"), trial("static", "smoothed")], "always", LinearForm("static", ("smoothed",))),
        ([trial("dynamic")], "always", LinearForm("static")),
    ],
)
def test_an_encoder_that_is_trained_for_its_integers_in_any_case_is_timed_in_the_form_it_is_trained_for(
    monkeypatch, trials, qat, first
):
    choice = SimpleNamespace(record=FormChoice("", 2, tuple(trials), ""))
    monkeypatch.setattr(encoders, "form_choice", lambda *_: choice)
    rung = SimpleNamespace(spine=SimpleNamespace(record=SimpleNamespace(operators=("LayerNormalization",))))
    lane = SimpleNamespace(target=load_target("linux-arm64"))
    assert encoders.first_linear(lane, rung, step=Quantize(qat=qat)) == first


@pytest.mark.parametrize("asked", [[], ["one"]])
def test_what_a_net_leaves_in_float_is_in_float_where_it_is_timed(desk, asked):
    desk.write("models.py", FRONT)
    desk.edit("recipe.toml", 'do = "quantize"', f'do = "quantize"\nkeep_float = {asked}'.replace("'", '"'))
    with benched(desk) as bench:
        present = bench.present()
        module = load_rung(bench.road, bench.last)
        ours = kinds(first_form(bench))
        assert kinds(present.path) == ours
        assert kinds(rebuilt(bench)) == ours
        assert ours["Conv", True] == 2 - len(asked)
        floats = float_layers(present, place=bench.place)
        assert floats == {"front", *asked}
        shapes = layer_shapes(module, feeds_of(bench.road)[0], floats=floats)
        assert [name for name, (shape,) in shapes.items() if shape.in_float] == ["front", *asked]


def test_a_float_that_was_cut_away_is_not_missed_and_one_that_never_was_is_told(desk):
    desk.write("models.py", FRONT)
    with benched(desk) as found:
        bench = replace(found, place=replace(found.place, keep_float=("won",)))
        assert rebuilt(bench).exists()
        with pytest.raises(RequestError, match="no node 'won'"):
            bench.present()


def test_the_layers_of_a_table_are_in_the_form_that_they_ship_in(tmp_path, monkeypatch):
    seen: list[Counter[tuple[str, bool]]] = []

    def profile(subject, *, machine, folder):
        seen.append(kinds(subject.path))
        return tuple(ProfiledNode(f"layer{index}", 1.0, 1) for index in range(3))

    monkeypatch.setattr(timing, "profiled", profile)
    conv = LayerShape("conv", (8, 8), (3, 3), (1, 1), (1, 1), (1, 1))
    kept = LayerShape("conv", (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), in_float=True)
    layers = [Layer(conv, 16, 16), Layer(kept, 16, 16), Layer(LayerShape("linear", (8,)), 64, 64)]
    place = Place(Target("here", "h", "ort", "onnx", platform.machine()), "int8")
    for linear in (
        None,
        LinearForm("dynamic"),
        LinearForm("static", ("smoothed", "outliers split")),
        LinearForm("blockwise"),
    ):
        timing._timed(layers, replace(place, linear=linear), machine=None)
    static, dynamic, encoder, blockwise = seen[:: timing.LAUNCHES]
    assert (static["Conv", True], static["Conv", False], static["Gemm", True]) == (1, 1, 1)
    assert (
        dynamic["Conv", False],
        dynamic["MatMulIntegerToFloat", False],
        dynamic["DynamicQuantizeLinear", False],
    ) == (2, 1, 1)
    assert (encoder["Conv", False], encoder["MatMulIntegerToFloat", False], encoder["QuantizeLinear", False]) == (
        2,
        1,
        1,
    )
    assert (blockwise["Conv", False], blockwise["MatMulNBits", False]) == (2, 1)


def test_a_sheet_of_which_nothing_is_quantized_is_timed_in_float(tmp_path):
    model, feeds = graph.sheet([Layer(LayerShape("linear", (4,)), 8, 8)])
    graph.save(model, tmp_path / "sheet.onnx")
    place = Place(Target("here", "h", "ort", "onnx", platform.machine()), "int8", linear=LinearForm("dynamic"))
    assert kinds(shipped(tmp_path / "sheet.onnx", [feeds], place=place, folder=tmp_path).path) == {("Gemm", False): 1}


def test_rounds_students_and_the_head_start_of_a_search_are_all_timed_in_that_form(desk, monkeypatch):
    class Seen(Exception):
        """Where something is about to be timed."""

    def caught(place):
        raise Seen(place)

    monkeypatch.setattr(pruned, "_made", lambda bench, *_, **__: caught(bench.place))
    monkeypatch.setattr(students, "_cutting", lambda bench, _: caught(bench.place))
    monkeypatch.setattr(entrants, "_started", lambda ground, _: caught(ground.place))
    desk.write("models.py", FRONT)
    desk.edit("recipe.toml", 'do = "quantize"', 'do = "quantize"\nkeep_float = ["one"]')
    with benched(desk) as bench:
        road, last, plain = bench.road, bench.last, replace(bench.place, keep_float=())
        at, step = pruned.Round(Prune(speedup=2.0), 1, plain), Distill(student="auto", speedup=2.0)
        ground = entrants.Ground(road, last, last, plain, Limits(speedup=2.0), step)
        for take in (
            lambda: pruned.pruned(road, at, last=last, source=last, begin=last),
            lambda: students.students(road, step, last=last, place=plain, begun=lambda _: False),
            lambda: entrants.head_start(ground),
        ):
            with pytest.raises(Seen) as seen:
                take()
            assert seen.value.args[0].keep_float == ("one",)
