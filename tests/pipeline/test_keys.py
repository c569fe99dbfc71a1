"""Keys say enough: whatever changes an answer changes the key, and what cannot be seen through is never used again."""

from __future__ import annotations

import functools
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import torch

from edgeexport.pipeline import live, road
from edgeexport.pipeline.callables import callable_key
from edgeexport.pipeline.live import detach
from edgeexport.records.recipe import DataSpec, ModelSpec, Recipe, load_recipe
from edgeexport.workspace import Workspace
from tests.needs import need
from tests.pipeline.conftest import Desk
from tests.pipeline.test_resume import _fresh


def _metric(text: str, **names):
    space = {"__name__": "users", **names}
    exec(compile(f"def metric(outputs, targets):\n    {text}\n", "nowhere.py", "exec"), space)
    return space["metric"]


def _scaled(by):
    def metric(outputs, targets):
        return by

    return metric


def _defaulting(by):
    def metric(outputs, targets, *, scale=by):
        return scale

    return metric


def _with_unit(unit):
    function = _metric("return 1")
    function.unit = unit
    return function


DIFFERENT = {
    "constant": (_metric("return 1.0"), _metric("return 2.0")),
    "attribute looked up": (_metric("return outputs.a"), _metric("return outputs.b")),
    "captured value": (_scaled(1.0), _scaled(2.0)),
    "captured array": (_scaled(np.arange(5000)), _scaled(np.arange(5000)[::-1])),
    "default": (_defaulting(1.0), _defaulting(2.0)),
    "unit": (_with_unit("points"), _with_unit("dB")),
    "global": (_metric("return LIMIT", LIMIT=1), _metric("return LIMIT", LIMIT=2)),
    "function that it calls": (
        _metric("return inner()", inner=_metric("return 1")), _metric("return inner()", inner=_metric("return 2")),
    ),
    "inner function": (_metric("return [x + 1 for x in targets]"), _metric("return [x + 2 for x in targets]")),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_live_metric_that_differs_has_another_key(name):
    first, second = DIFFERENT[name]
    assert callable_key(first) != callable_key(second)
    assert callable_key(first) == callable_key(first)


def test_a_function_that_calls_itself_has_a_key():
    space = {"__name__": "users"}
    exec("def metric(outputs, targets):\n    return metric(outputs, targets)", space)
    assert callable_key(space["metric"]) == callable_key(space["metric"])


def test_the_key_of_a_function_is_the_same_in_another_process(tmp_path):
    (tmp_path / "m.py").write_text(
        "import math\nBY = (1, 2)\ndef metric(o, t, k={'a', 'b'}):\n    return math.exp(BY[0])"
    )
    code = "import m; from edgeexport.pipeline.callables import callable_key as key; print(key(m.metric))"
    started = [
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert started[0].stdout == started[1].stdout != ""


@pytest.mark.parametrize("metric", [functools.partial(_scaled(1.0)), _scaled(functools.partial(int)), [].append])
def test_the_score_of_what_cannot_be_seen_through_is_never_used_again(metric):
    assert callable_key(metric) != callable_key(metric)


def _network(kind: str, value: float):
    need("torch")
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)
            nn.init.ones_(self.linear.weight)
            nn.init.ones_(self.linear.bias)
            tensor = torch.full((4,), value)
            if kind == "non-persistent buffer":
                self.register_buffer("mean", tensor, persistent=False)
            else:
                self.mean = tensor

        def forward(self, x):
            return self.linear(x - self.mean)

    return Net()


@pytest.mark.parametrize("kind", ["non-persistent buffer", "constant"])
def test_a_live_network_is_known_by_what_its_checkpoint_leaves_out_too(kind):
    names = [live._identity(_network(kind, value), {"x": (1, 4)}) for value in (1.0, 1.0, 2.0)]
    assert names[0] == names[1] != names[2]


LOSS = "def loss(outputs, batch):\n    return {}\n\ndef flip(batch, generator):\n    return batch\n"


@pytest.mark.parametrize("part", ["loss", "augment", "optimizer"])
def test_a_changed_loss_augmentation_or_optimizer_of_the_user_trains_again(desk, tmp_path, part):
    recipe = load_recipe(desk.folder / "recipe.toml")
    desk.write("learn.py", LOSS.format("outputs.mean()"))
    settings = road.Training(**{part: "learn:loss"})
    with Workspace(tmp_path / "work") as work:
        before = road.training_key(settings, recipe, workspace=work)
        assert road.training_key(settings, recipe, workspace=work) == before
        desk.write("learn.py", LOSS.format("outputs.sum() * 2"))
        assert road.training_key(settings, recipe, workspace=work) != before
        plain = road.training_key(road.Training(), recipe, workspace=work)
    assert plain["code"] == {"loss": "cross_entropy", "augment": None, "optimizer": "sgd"}
    assert msgspec.to_builtins(plain) == plain


def _external_model(desk: Desk, seed: int) -> None:
    """Write m.onnx, its weights in m.data; the .onnx is the same for every seed."""
    need("ort")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(seed).standard_normal((64, 10)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["image"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"], name="head")],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (desk.folder / "m.data").unlink(missing_ok=True)
    onnx.save_model(model, desk.folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)


def test_new_weights_beside_the_same_onnx_file_redo_the_road(desk, monkeypatch):
    desk.edit("recipe.toml", 'factory = "models:net"', 'onnx = "m.onnx"')
    _external_model(desk, 0)
    before = (desk.folder / "m.onnx").read_bytes()
    assert {"external", "clean"} <= set(_fresh(desk, monkeypatch))
    assert _fresh(desk, monkeypatch) == []
    _external_model(desk, 1)
    assert (desk.folder / "m.onnx").read_bytes() == before
    made = set(_fresh(desk, monkeypatch))
    assert "clean" in made
    assert "external" not in made


def test_a_second_run_of_an_onnx_file_with_external_data_loads_neither_torch_nor_a_runtime(desk):
    desk.edit("recipe.toml", 'factory = "models:net"', 'onnx = "m.onnx"')
    _external_model(desk, 0)
    assert desk.run() == 0
    code = (
        "import sys; from edgeexport.cli import main; code = main(sys.argv[1:]); "
        "print(code, [name for name in ('torch', 'onnx', 'onnxruntime') if name in sys.modules], file=sys.stderr)"
    )
    arguments = ["run", "recipe.toml", "--target", "linux-arm64", "--out", "out", "--workspace", "work"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=desk.folder, capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr


def named(factory):
    return detach(
        Recipe(model=ModelSpec(factory=factory, inputs={"row": (1, 4)}), data=DataSpec(train=[], evaluate=[]))
    )


def test_a_network_that_a_callable_builds_starts_from_the_same_weights_every_time():
    names = []
    for seed in (1, 2):  # whatever was drawn before
        torch.manual_seed(seed)
        names.append(named(lambda: torch.nn.Linear(4, 2))[0].model.factory)
    assert names[0] == names[1]


def test_a_frozen_layer_makes_another_network():
    module = torch.nn.Linear(4, 2)
    names = [named(module)[0].model.factory]
    module.weight.requires_grad_(False)
    assert named(module)[0].model.factory != names[0]
