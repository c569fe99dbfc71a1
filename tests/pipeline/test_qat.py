"""Quantization-aware training on the road: it ships, is kept, and says what it was; for networks and .onnx sources."""

from __future__ import annotations

import pytest

from tests.pipeline.test_forms import ENCODER

DATA = """
import numpy as np


def _noise(seed, count):
    pictures = np.random.default_rng(seed).standard_normal((count, 1, 8, 8)).astype(np.float32)
    return [(picture, None) for picture in pictures]


def train():
    return _noise(1, 200)


def test():
    return _noise(2, 200)
"""
ONNX = """
[model]
onnx = "net.onnx"

[data]
train = "data:train"
evaluate = "data:test"
metric = "agreement"

[limits]
max_drop = 100.0

[[step]]
do = "quantize"
qat = "always"
methods = ["minmax"]
training = { epochs = 2, batch_size = 32, learning_rate = 0.001 }
"""


def _rows(desk, target="linux-arm64"):
    return [row for row in desk.record()["rungs"] if row["target"] == target]


def _exported(desk, models):
    """Turn the factory of some code into the desk's .onnx source."""
    import edgeexport

    code: dict[str, object] = {}
    exec(models, code)
    edgeexport.export(code["net"](), {"image": (1, 1, 8, 8)}, out=desk.folder / "net.onnx")
    desk.write("data.py", DATA)
    desk.write("recipe.toml", ONNX)


def test_an_onnx_source_is_trained_for_its_integers_ships_and_is_not_trained_twice(desk, monkeypatch):
    from tests.pipeline.conftest import MODELS

    _exported(desk, MODELS)
    assert desk.run() == 0
    shipped = next(row for row in _rows(desk) if row["status"] == "shipped")
    assert shipped["name"] == "source int8 qat minmax"
    assert any(note.startswith("trained for its integers: ") for note in shipped["notes"])
    assert any(note.startswith("simulation and onnxruntime: ") for note in shipped["notes"])

    from edgeexport.quantization import qat

    monkeypatch.setattr(qat, "train_quantized", lambda *_, **__: pytest.fail("trained again"))
    first = desk.record()
    assert desk.run() == 0
    assert desk.record() == first
    assert desk.run(target="raspberry-pi-5") == 0


def test_a_training_starts_from_what_the_best_form_did_to_the_weights(desk, monkeypatch):
    from edgeexport.pipeline import ladder
    from edgeexport.quantization import qat
    from edgeexport.records.base import file_digest
    from tests.pipeline.conftest import MODELS

    _exported(desk, MODELS)
    plain, real, started = ladder.trained_form, qat.train_quantized, []

    def rounded_first(lane, rung, *, step, way, choice):
        return plain(lane, rung, step=step, way=way or "equalized rounded", choice=choice)

    def watched(path, plan, **more):
        started.append((file_digest(path), plan.model_digest))
        return real(path, plan, **more)

    monkeypatch.setattr(ladder, "trained_form", rounded_first)
    monkeypatch.setattr(qat, "train_quantized", watched)
    assert desk.run() == 0
    shipped = next(row for row in _rows(desk) if row["status"] == "shipped")
    assert shipped["name"] == "source int8 equalized rounded qat minmax"
    refined = list(desk.folder.glob("**/refine-*/spine.onnx"))
    assert started == [(file_digest(each), file_digest(each)) for each in refined]


def test_a_training_for_integers_that_was_stopped_goes_on_where_it_was(desk, monkeypatch):
    from edgeexport.training import unfinished
    from edgeexport.training.stepping import Stepper
    from tests.pipeline.conftest import MODELS

    _exported(desk, MODELS)
    real, steps = Stepper.step, []

    def stopping(self, batches, number, *, rate):
        steps.append(number)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return real(self, batches, number, rate=rate)

    monkeypatch.setattr(unfinished, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(unfinished, "SAVE_RATIO", 0.0)
    monkeypatch.setattr(Stepper, "step", stopping)
    assert desk.run() == 130
    assert desk.run() == 0
    assert steps[3:6] == [3, 3, 4]


def test_an_encoder_is_trained_in_the_static_form_of_its_linear_layers(desk):
    _exported(desk, ENCODER)
    assert desk.run() == 0
    shipped = next(row for row in _rows(desk) if row["status"] == "shipped")
    assert shipped["name"] == "source int8 qat static"
    assert shipped["artifact"]["maker"].startswith("convert")


def test_a_network_that_torch_cannot_express_leaves_a_row_and_ships_otherwise(desk):
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = {"w": (16, 1, 3, 3), "v": (16, 16, 3, 3)}
    stored = [numpy_helper.from_array(random.standard_normal(s).astype(np.float32) / 9, n) for n, s in weights.items()]
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["h"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "v"], ["y"], "second", pads=[1] * 4),
        helper.make_node("Det", ["y"], ["d"], "det"),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])]
    outputs = [helper.make_tensor_value_info("d", TensorProto.FLOAT, ["n", 16])]
    graph = helper.make_graph(nodes, "net", inputs, outputs, stored)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), desk.folder / "net.onnx"
    )
    desk.write("data.py", DATA)
    desk.write("recipe.toml", ONNX)
    assert desk.run() == 0
    rows = {row["name"]: row for row in _rows(desk)}
    reason = rows["source int8 qat minmax"]["reason"]
    assert "cannot be built: operators that cannot be lifted into torch: Det" in reason
    assert any(row["status"] == "shipped" for row in rows.values())


def test_a_file_that_computes_something_else_than_was_trained_leaves_a_row_and_something_else_ships(desk, monkeypatch):
    from edgeexport.quantization.qat import arithmetic
    from tests.pipeline.conftest import MODELS

    real = arithmetic.layer

    def layer(run, inputs, *, source, weights, into):
        return real(run, inputs, source=source, weights=weights, into=into) + (0 if into is None else 3)

    monkeypatch.setattr(arithmetic, "layer", layer)
    _exported(desk, MODELS)
    assert desk.run() == 0
    rows = {row["name"]: row for row in _rows(desk)}
    reason = rows["source int8 qat minmax"]["reason"]
    assert "cannot be built: the int8 file computes something else than its simulation" in reason
    assert "3 steps (at '" in reason
    assert rows["source int8 minmax"]["status"] == "shipped"


def test_training_that_is_asked_for_without_samples_is_refused(desk, capsys):
    desk.edit("recipe.toml", 'do = "quantize"', 'do = "quantize"\nqat = "always"')
    assert desk.run() == 2
    assert "no samples to train on" in capsys.readouterr().err
