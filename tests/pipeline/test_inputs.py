"""What goes into a model: integers, several inputs, and shapes that an .onnx file knows itself."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeexport.cli import main
from edgeexport.errors import RecipeError
from edgeexport.explain import explanation
from edgeexport.pipeline.live import detach
from edgeexport.records.recipe import InputSpec, Limits, ModelSpec, Recipe, load_recipe

EMBEDDING = """
import torch
from torch import nn


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 16)
        self.head = nn.Linear(6 * 16, 4)

    def forward(self, ids):
        return self.head(torch.relu(self.table(ids)).flatten(1))


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.sizes = nn.Linear(5, 16), nn.Linear(3, 16)
        self.kind, self.amount = nn.Linear(16, 4), nn.Linear(16, 1)

    def forward(self, row, size):
        both = torch.relu(self.rows(row) + self.sizes(size))
        return self.kind(both), self.amount(both)
"""
IDS = 'inputs = { ids = { shape = [1, 6], dtype = "int64" } }'
PAIR = 'inputs = { row = [1, 5], size = [1, 3] }\noutputs = ["kind", "amount"]'


def _ask(desk, factory: str, inputs: str) -> None:
    desk.write("models.py", EMBEDDING)
    desk.edit("recipe.toml", '"models:net"', f'"models:{factory}"')
    desk.edit("recipe.toml", "inputs = { image = [1, 1, 8, 8] }", inputs)
    desk.edit("recipe.toml", 'pool = "digits"', 'pool = "rows.npz"')


def _shipped(desk) -> None:
    assert desk.run() == 0
    assert desk.record()["targets"][0]["shipped"]
    assert main(["verify", str(desk.bundle())]) == 0


def test_a_network_on_integers_takes_the_whole_road(desk):
    _ask(desk, "Words", IDS)
    rows = np.random.default_rng(0).integers(0, 50, (300, 6))
    np.savez(desk.folder / "rows.npz", ids=rows, labels=np.zeros(300, np.int64))
    _shipped(desk)


def test_a_network_with_two_inputs_and_two_outputs_takes_the_whole_road(desk):
    _ask(desk, "Both", PAIR)
    draw = np.random.default_rng(0).standard_normal
    rows, sizes = draw((300, 5)).astype(np.float32), draw((300, 3)).astype(np.float32)
    np.savez(desk.folder / "rows.npz", row=rows, size=sizes, labels=np.zeros(300, np.int64))
    _shipped(desk)


def test_a_live_network_on_integers_has_an_identity():
    from torch import nn

    model = ModelSpec(factory=nn.Embedding(5, 2), inputs={"ids": InputSpec((1, 6), "int64")})
    named, live = detach(Recipe(model))
    assert list(live) == [named.model.factory]


def _manifest(desk):
    with zipfile.ZipFile(desk.bundle()) as bundle:
        return json.loads(bundle.read("manifest.json"))


def _onnx(path: Path, shape: list[int | str]) -> None:
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((8, 1, 3, 3)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["logits"], name="flatten"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 8])
    graph = helper.make_graph(nodes, "g", [image], [logits], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def test_an_onnx_file_that_knows_its_shapes_needs_no_inputs_in_the_recipe(desk):
    _onnx(desk.folder / "model.onnx", ["n", 1, 8, 8])
    desk.edit("recipe.toml", 'factory = "models:net"\ninputs = { image = [1, 1, 8, 8] }', 'onnx = "model.onnx"')
    _shipped(desk)


def test_an_onnx_file_with_an_open_axis_is_refused_with_what_to_say(desk, capsys):
    _onnx(desk.folder / "model.onnx", ["n", 1, "height", 8])
    desk.edit("recipe.toml", 'factory = "models:net"\ninputs = { image = [1, 1, 8, 8] }', 'onnx = "model.onnx"')
    assert desk.run() == 2
    text = capsys.readouterr().err.replace("\n", " ")
    assert "axis 2 (height)" in text
    assert "inputs = { image = [1, 1, 224, 8] }" in text


def test_a_type_that_is_not_the_onnx_files_is_refused(desk, capsys):
    _onnx(desk.folder / "model.onnx", ["n", 1, 8, 8])
    ask = 'onnx = "model.onnx"\ninputs = { image = { shape = [1, 1, 8, 8], dtype = "int64" } }'
    desk.edit("recipe.toml", 'factory = "models:net"\ninputs = { image = [1, 1, 8, 8] }', ask)
    assert desk.run() == 2
    assert "is int64, the .onnx file's input is float32" in capsys.readouterr().err.replace("\n", " ")


METRIC = "def error(outputs, targets):\n    return 0.5\n"


@pytest.mark.parametrize(("metric", "limit", "code"), [("mse", "", 2), ("own:error", "", 2), ("own:error", "1.5", 0)])
def test_a_metric_in_its_own_unit_needs_a_limit_of_the_recipe_before_any_work(desk, capsys, metric, limit, code):
    desk.write("own.py", METRIC)
    desk.edit("recipe.toml", '"agreement"', f'"{metric}"')
    if limit:
        desk.edit("recipe.toml", "[[step]]", f"[limits]\nmax_drop = {limit}\n\n[[step]]")
    assert desk.run() == code
    text = capsys.readouterr().err.replace("\n", " ")
    assert ("is in points" in text) == bool(code)
    assert any((desk.folder / "work" / "stages").glob("splits-*")) == (not code)


def test_labels_of_the_model_are_in_the_bundle_and_a_missing_file_ends_it_before_any_work(desk, capsys):
    desk.edit("recipe.toml", "[data]", 'labels = "names.txt"\n\n[data]')
    assert desk.run() == 2
    assert "names.txt" in capsys.readouterr().err.replace("\n", "")
    assert not any((desk.folder / "work" / "stages").glob("splits-*"))
    desk.write("names.txt", "".join(f"digit {index}\n" for index in range(10)))
    assert desk.run() == 0
    assert _manifest(desk)["labels"][3] == "digit 3"


def test_explain_adds_limits_up_in_the_metrics_own_unit(desk):
    def shown(metric: str, **limits: float):
        recipe = load_recipe(desk.folder / "recipe.toml")
        recipe = msgspec.structs.replace(
            recipe, data=msgspec.structs.replace(recipe.data, metric=metric), limits=Limits(**limits)
        )
        return explanation(recipe, ["linux-arm64"])["limits in force on linux-arm64"]["max_drop"]

    assert shown("top1:kind", max_drop=3.0) == 3.0
    assert shown("top1:kind") == 1.0
    assert shown("mse", max_drop=3.0) == 3.0
    assert shown("gone:metric", max_drop=3.0) == 3.0
    assert shown("gone:metric") == "1.0 if the metric's unit is points; else the recipe must give one"
    with pytest.raises(RecipeError, match="is in points"):
        shown("mse")
