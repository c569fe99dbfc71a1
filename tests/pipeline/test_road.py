"""The road itself: gates that close, candidates in order, targets that do not stop each other."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeexport import onnx_export
from edgeexport.cli import main
from edgeexport.records.recipe import load_recipe
from tests.needs import need


def _rows(desk, target: str = "linux-arm64"):
    return [row for row in desk.record()["rungs"] if row["target"] == target]


def test_the_shipped_bundle_verifies_and_a_changed_one_does_not(desk, capsys):
    assert desk.run() == 0
    assert main(["verify", str(desk.bundle())]) == 0
    content = bytearray(desk.bundle().read_bytes())
    content[len(content) // 2] ^= 1
    desk.bundle().write_bytes(content)
    assert main(["verify", str(desk.bundle())]) == 1
    assert "differs" in capsys.readouterr().out


def test_an_infeasible_limit_is_exit_1_with_the_nearest_miss_and_no_bundle(desk, capsys):
    desk.edit("recipe.toml", "[[step]]", "[limits]\nmax_size_mb = 0.001\n\n[[step]]")
    assert desk.run() == 1
    assert "nearest is" in capsys.readouterr().err
    assert not desk.bundle().exists()


def test_an_infeasible_target_does_not_stop_the_others(desk):
    target = desk.write(
        "tight.toml",
        'title = "tight"\nruntime = "ort"\nformat = "onnx"\narch = "aarch64"\n[limits]\nmax_size_mb = 0.001\n',
    )
    assert desk.run("--target", str(target)) == 1
    assert desk.bundle().exists()
    assert not desk.bundle("tight").exists()


def test_unproven_limits_ship_marked_as_such(desk):
    assert desk.run() == 0
    states = {limit["limit"]: limit["state"] for limit in desk.record()["targets"][0]["verdict"]["limits"]}
    assert states["never_slower"] == "unproven"


def test_a_candidate_that_loses_too_much_is_rolled_back_for_the_next_method(desk):
    desk.edit("recipe.toml", "[[step]]", "[limits]\nmax_drop = 0.0\n\n[[step]]")
    assert desk.run() == 0
    rows = _rows(desk)
    lost = [row for row in rows if row["status"] == "rolled back"]
    assert lost
    assert all("selection split" in row["reason"] for row in lost)
    assert rows[-1]["status"] == "shipped"


def test_a_network_that_cannot_be_quantized_ships_in_fp32_with_the_reason(desk):
    desk.edit("models.py", "return nn.Sequential(", "return nn.Sequential(nn.Flatten(), nn.Softmax(1))\n    _ = (")
    assert desk.run() == 0
    rows = _rows(desk)
    assert rows[-1]["name"] == "source fp32"
    assert "int8 cannot be built" in next(row["reason"] for row in rows if row["form"] == "int8")


def test_a_clean_up_that_changes_the_numbers_is_left_out(desk, monkeypatch):
    honest = onnx_export.clean

    def crooked(model):
        cleaned, record = honest(model)
        for tensor in cleaned.graph.initializer:
            if tensor.data_type == 1:
                tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * 1.5).astype(np.float32).tobytes()
                break
        return cleaned, record

    monkeypatch.setattr(onnx_export, "clean", crooked)
    assert desk.run() == 0
    source = desk.record()["rungs"][0]
    assert any("changes the numbers" in note for note in source["notes"])


def test_an_onnx_file_of_an_old_opset_takes_the_road_to_onnxruntime_and_litert(desk):
    need("litert")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    weight = numpy_helper.from_array(generator.standard_normal((32, 1, 3, 3)).astype(np.float32), "w")
    head = numpy_helper.from_array(generator.standard_normal((32, 10)).astype(np.float32), "v")
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "v"], ["logits"], name="head"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])
    graph = helper.make_graph(nodes, "g", [image], [logits], [weight, head])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    (desk.folder / "model.onnx").write_bytes(model.SerializeToString())
    onnx.checker.check_model(model)
    desk.edit("recipe.toml", 'factory = "models:net"', 'onnx = "model.onnx"')
    assert desk.run("--target", "raspberry-pi-5-litert") == 0
    assert {row["shipped"].split()[1] for row in desk.record()["targets"]} == {"int8"}
    assert main(["verify", str(desk.bundle("raspberry-pi-5-litert"))]) == 0


def test_json_is_all_that_stdout_holds_even_when_user_code_prints(desk, capsys):
    desk.edit("models.py", "torch.manual_seed(0)", "torch.manual_seed(0); print('loaded')")
    assert desk.run("--json") == 0
    import json

    assert json.loads(capsys.readouterr().out)["targets"][0]["bundle"] == "linux-arm64.bundle"


def test_explain_runs_no_user_code(desk, capsys):
    desk.write("models.py", "raise SystemExit('imported')")
    assert main(["explain", str(desk.folder / "recipe.toml"), "--target", "linux-x86_64-avx2"]) == 0
    out = capsys.readouterr().out
    assert "fit_pairs" in out
    assert "calibration_count" in out


@pytest.mark.real
@pytest.mark.parametrize("name", ["resnet56", "lite0", "fraud"])
def test_the_recipes_on_real_data_are_readable(name):
    path = Path(__file__).parents[1] / "real" / f"{name}.toml"
    recipe = load_recipe(path)
    assert msgspec.to_builtins(recipe)["name"] == name


def test_the_evaluation_set_is_opened_once_and_then_only_the_source_may_ship(desk, monkeypatch):
    from edgeexport.pipeline import ship

    honest, opened = ship.limits, []

    def strict(evidence, target, *, recipe, **more):
        verdict = honest(evidence, target, recipe=recipe, **more)
        if evidence.split == "selection" or evidence.drop.method == "identical":
            return verdict
        opened.append(evidence.candidate)
        failing = msgspec.structs.replace(verdict.limits[0], state="fails", reason="planted")
        return msgspec.structs.replace(verdict, limits=(failing, *verdict.limits[1:]))

    monkeypatch.setattr(ship, "limits", strict)
    desk.edit("recipe.toml", 'do = "quantize"', 'do = "quantize"\nmethods = ["percentile", "mse", "entropy"]')
    assert desk.run() == 0
    assert len(opened) == 1
    rows = _rows(desk)
    assert [row["status"] for row in rows] == ["rolled back", "shipped"]
    assert rows[-1]["name"] == "source fp32"


def test_a_bundle_of_an_earlier_run_does_not_outlive_an_infeasible_one(desk):
    assert desk.run() == 0
    assert desk.bundle().exists()
    desk.edit("recipe.toml", "[[step]]", "[limits]\nmax_size_mb = 0.001\n\n[[step]]")
    assert desk.run() == 1
    assert not desk.bundle().exists()


def test_what_is_unproven_does_not_ship_when_proof_is_required(desk, capsys):
    assert desk.run("--require-proof") == 1
    assert "proof is required" in capsys.readouterr().err
    assert not desk.bundle().exists()


def test_rungs_of_like_steps_have_names_of_their_own(desk):
    step = '[[step]]\ndo = "distill"\ntraining = {{ steps = 2, learning_rate = {} }}\n\n'
    desk.edit("recipe.toml", "[[step]]", step.format(1e-4) + step.format(1e-5) + "[[step]]")
    assert desk.run() == 0
    rows = [row for row in desk.record()["rungs"] if row["target"] is None]
    assert [row["name"] for row in rows] == ["source", "distilled", "distilled (2)"]
    assert len({row["artifact"]["digest"] for row in rows}) == 3
    assert {row["name"] for row in _rows(desk) if row["name"].startswith("distilled (2)")}


def test_changed_code_with_equal_weights_redoes_distilling(desk):
    desk.edit(
        "recipe.toml",
        "[[step]]",
        '[[step]]\ndo = "distill"\ntraining = { epochs = 1, learning_rate = 0.0001 }\n\n[[step]]',
    )
    assert desk.run() == 0
    before = {row["name"]: row["artifact"]["digest"] for row in desk.record()["rungs"] if row["target"] is None}
    desk.edit("models.py", "nn.ReLU()", "nn.Tanh()")
    assert desk.run() == 0
    after = {row["name"]: row["artifact"]["digest"] for row in desk.record()["rungs"] if row["target"] is None}
    assert before.keys() == after.keys() == {"source", "distilled"}
    assert before["source"] != after["source"]
    assert before["distilled"] != after["distilled"]


def test_a_target_that_cannot_be_served_keeps_its_exit_code(desk, monkeypatch):
    import sys

    for name in ("litert_torch", "ai_edge_quantizer", "ai_edge_litert"):
        monkeypatch.setitem(sys.modules, name, None)
    assert desk.run("--target", "raspberry-pi-5-litert") == 3
    assert desk.bundle().exists()
