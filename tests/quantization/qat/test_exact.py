"""The simulation against the file that ships: what is stored bit for bit, what is computed within one step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch

from edgeexport import graph
from edgeexport.errors import ModelError, UnsupportedOperator
from edgeexport.quantization import learn_rounding, quantize
from edgeexport.quantization.plan import weight_scales
from edgeexport.quantization.qat import simulate, twin_of
from edgeexport.quantization.qat.agreement import EXACT, agreement, prove_stored
from edgeexport.quantization.qat.steps import following, rounded
from edgeexport.runtimes.ort import open_session
from tests.needs import need
from tests.quantization.nets import FORMATS, Net, small_mobilenet, small_resnet
from tests.quantization.qat.making import SAMPLES, planned, sharing
from tests.quantization.test_real_resnet import pictures_of, resnet20

NETS = pytest.mark.parametrize("build", [small_resnet, small_mobilenet, sharing])
NUMBERS = pytest.mark.parametrize("numbers", FORMATS)
LEARN = pytest.mark.parametrize("learn_steps", [False, True], ids=["following", "learned"])


def moved(module: torch.nn.Module) -> None:
    """Change every trained number a little, as a training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))


@NETS
@NUMBERS
@LEARN
def test_the_file_stores_the_simulated_integers_scales_and_zero_points_bit_for_bit(
    build: Callable[[Path], Path], numbers: str, learn_steps: bool, tmp_path: Path
) -> None:
    path, out = build(tmp_path / "net.onnx"), tmp_path / "moved.onnx"
    module = simulate(path, planned(path, FORMATS[numbers]), learn_steps=learn_steps)
    moved(module)
    graph.save(graph.with_initializers(graph.load(path), module.stored_weights()), out)
    plan = module.plan(graph_digest(out))
    twin = twin_of(out, plan, form="qdq", int8=tmp_path / "int8.onnx")
    prove_stored(module, twin)
    stored = graph.initializers(onnx.load(tmp_path / "int8.onnx"))
    for name in plan.weights:
        integers = module.integers()[module.weights[name].tensor]
        zero = plan.weights[name].zero_points[0]
        assert np.array_equal(stored[f"{name}_quantized"], integers + zero), name


# onnxruntime computes in float where weights are shared, and on x86 where an int8 point has two readers.
ON_FLOATS = 0.9998


@NETS
@NUMBERS
@LEARN
def test_node_by_node_on_the_files_own_inputs_integer_kernels_give_what_the_simulation_does(
    build: Callable[[Path], Path], numbers: str, learn_steps: bool, tmp_path: Path
) -> None:
    path, int8 = build(tmp_path / "net.onnx"), tmp_path / "int8.onnx"
    plan = planned(path, FORMATS[numbers])
    module = simulate(path, plan, learn_steps=learn_steps)
    found = agreement(module, twin_of(path, plan, form="qdq", int8=int8), int8=int8, samples=SAMPLES[:2])
    assert found.values > 10_000
    assert found.worst <= 1
    floats = build is sharing or numbers == "symmetric"
    assert found.equal >= (ON_FLOATS * found.values if floats else found.values)


def test_what_is_compared_runs_in_integer_kernels(tmp_path: Path) -> None:
    path, int8 = small_resnet(tmp_path / "net.onnx"), tmp_path / "int8.onnx"
    twin = twin_of(path, planned(path, FORMATS["per-channel"]), form="qdq", int8=int8)
    exposed = graph.expose(graph.load(int8), [site.integers for site in twin.activations])
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.add_session_config_entry("session.x64quantprecision", "1")
    ort.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert ops.count("QLinearConv") == sum(node.op_type == "Conv" for node in graph.load(path).graph.node)


def test_a_file_of_other_numbers_is_refused_by_name(tmp_path: Path) -> None:
    path, int8 = small_resnet(tmp_path / "net.onnx"), tmp_path / "int8.onnx"
    plan = planned(path, FORMATS["per-channel"])
    twin = twin_of(path, plan, form="qdq", int8=int8)
    prove_stored(simulate(path, plan), twin)
    first = next(iter(plan.activations))
    point = msgspec.structs.replace(plan.activations[first], scale=plan.activations[first].scale * 1.001)
    other = msgspec.structs.replace(plan, activations={**plan.activations, first: point})
    with pytest.raises(ModelError, match=f"'{first}' has scale"):
        prove_stored(simulate(path, other), twin)
    module = simulate(path, plan)
    with torch.no_grad():
        module.value("w0").view(-1)[0] *= -1
    with pytest.raises(ModelError, match="integers of 'w0'"):
        prove_stored(module, twin)


def test_a_file_of_other_nodes_is_refused(tmp_path: Path) -> None:
    path = small_mobilenet(tmp_path / "net.onnx")
    plan = planned(path, FORMATS["per-channel"])
    twin = twin_of(path, plan, form="qdq", int8=tmp_path / "int8.onnx")
    module = simulate(path, plan)
    twin.model.graph.node[-1].op_type = "Elu"
    with pytest.raises(ModelError, match="its nodes are other ones"):
        prove_stored(module, twin)


def test_a_simulation_that_rounds_differently_is_found_out_where_it_does(tmp_path: Path) -> None:
    path, int8 = small_resnet(tmp_path / "net.onnx"), tmp_path / "int8.onnx"
    plan = planned(path, FORMATS["per-channel"])
    twin = twin_of(path, plan, form="qdq", int8=int8)
    module = simulate(path, plan)
    with torch.no_grad():
        module.value("w4").mul_(1.1)
    found = agreement(module, twin, int8=int8, samples=SAMPLES[:1])
    layer = next(node for node in graph.load(path).graph.node if "w4" in node.input)
    assert found.worst > 1
    assert found.tensor.split("_")[-2] >= layer.name.split("_")[-1]


def test_halves_go_to_even_and_ends_saturate_as_onnxruntime_rounds() -> None:
    value = torch.tensor([-3.0, -0.5, 0.25, 0.75, 1.25, 300.0])
    assert rounded(value, torch.tensor(0.5), bounds=(-4, 251), count=1).tolist() == [-2.0, -0.5, 0.0, 1.0, 1.0, 125.5]


def test_gradients_stop_where_a_value_is_cut_off_and_steps_get_theirs() -> None:
    value = torch.tensor([-9.0, 0.6, 9.0], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    rounded(value, scale, bounds=(-4, 4), count=1).sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [0.0, 1.0, 0.0]
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx((-4 + (1 - 0.6) + 4) / np.sqrt(4))


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("limit", [127, 64])
def test_scales_that_follow_weights_have_the_planners_bits(axis: int | None, limit: int) -> None:
    random = np.random.default_rng(0)
    value = random.standard_normal((33, 17)).astype(np.float32)
    value[3], value[:, 4] = 0.0, 0.0
    ours = following(torch.from_numpy(value), axis=axis, limit=limit, least=0.0).numpy()
    assert np.array_equal(ours, weight_scales(value, axis, reduce_range=limit == 64))


def test_a_bias_too_large_for_its_sum_widens_the_scale_as_the_planner_does(tmp_path: Path) -> None:
    path = small_mobilenet(tmp_path / "net.onnx")
    model = graph.load(path)
    bias = graph.initializers(model)["w1"] * np.float32(1e9)
    graph.save(graph.with_initializers(model, {"w1": bias}), path)
    plan = planned(path, FORMATS["per-channel"])
    module = simulate(path, plan)
    prove_stored(module, twin_of(path, plan, form="qdq", int8=tmp_path / "int8.onnx"))
    assert module.plan(plan.model_digest) == plan


@LEARN
@pytest.mark.parametrize("numbers", ["per-channel", "per-tensor"])
def test_the_simulation_of_learnt_rounding_starts_with_the_scales_and_integers_of_its_file(
    numbers: str, learn_steps: bool, tmp_path: Path
) -> None:
    path, made, int8 = small_mobilenet(tmp_path / "net.onnx"), tmp_path / "made.onnx", tmp_path / "int8.onnx"
    plan = learn_rounding(path, planned(path, FORMATS[numbers]), samples=SAMPLES, out=made)
    name = next(iter(plan.weights))
    point = plan.weights[name]
    wide = msgspec.structs.replace(point, scales=tuple(scale * 1.07 for scale in point.scales))
    plan = msgspec.structs.replace(plan, weights={**plan.weights, name: wide})
    module = simulate(made, plan, learn_steps=learn_steps)
    assert {key: np.float32(value.scales).tolist() for key, value in module.plan("").weights.items()} == {
        key: np.float32(value.scales).tolist() for key, value in plan.weights.items()
    }
    twin = twin_of(made, plan, form="qdq", int8=int8)
    prove_stored(module, twin)
    found = agreement(module, twin, int8=int8, samples=SAMPLES[:2])
    assert found.equal == found.values


def test_an_operator_that_torch_cannot_express_is_refused_by_name(tmp_path: Path) -> None:
    net = Net()
    net.put("Det", net.conv(net.put("Relu", net.conv("image", 3, 8)), 8, 8))
    path = net.save(tmp_path / "net.onnx")
    with pytest.raises(UnsupportedOperator, match="Det"):
        simulate(path, planned(path, FORMATS["per-channel"]))


@pytest.mark.real
@pytest.mark.slow
def test_resnet20_answers_bit_for_bit_as_in_the_simulation(real_data: Path, tmp_path: Path) -> None:
    need("torch")
    path, int8 = resnet20(real_data, tmp_path / "net.onnx"), tmp_path / "int8.onnx"
    from edgeexport.quantization import calibrate, plan_quantization

    samples = [{"image": picture} for picture in pictures_of(real_data, "train", 64)]
    ranges = calibrate(path, samples, samples_digest="sha256:0")
    plan = plan_quantization(path, ranges, numbers=FORMATS["per-channel"])
    quantize(path, plan, out=int8)
    judged = np.concatenate(pictures_of(real_data, "test", 2000))
    module = simulate(path, plan)
    found = agreement(module, twin_of(path, plan, form="qdq", int8=int8), int8=int8, samples=samples[:4])
    assert (found.worst, found.equal) == (0, found.values)
    session = open_session(int8, options=EXACT)
    same = [_same_logits(module, session, judged[start : start + 100]) for start in range(0, len(judged), 100)]
    assert np.concatenate(same).all()


def _same_logits(module: torch.nn.Module, session: Any, pictures: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        ours = module(torch.from_numpy(pictures)).numpy()
    same: np.ndarray = (ours == session.run({"image": pictures})["logits"]).all(axis=1)
    return same


def graph_digest(path: Path) -> str:
    from edgeexport.records.base import file_digest

    return file_digest(path)
