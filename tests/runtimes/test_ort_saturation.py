"""The saturation predictor: a proof for 7-bit weights, a warning with figures for others, and the option that helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeexport import devices, graph
from edgeexport.quantization import calibrate, plan_quantization, quantize
from edgeexport.quantization.integer import quantize_dynamic
from edgeexport.records.saturation import Saturation
from edgeexport.records.target import NumberFormat, load_target
from edgeexport.runtimes import get
from edgeexport.runtimes.ort import open_session
from edgeexport.runtimes.ort_saturation import predict_saturation
from edgeexport.runtimes.protocol import Conversion
from tests.device_bench.tiny import saved
from tests.needs import need
from tests.quantization.encoder_nets import small_encoder
from tests.quantization.nets import pictures, small_mobilenet, small_resnet


def one_layer(weight: NDArray[Any], op: str = "Conv", **attributes: Any) -> onnx.ModelProto:
    """Return a model with one integer layer of this stored weight."""
    scale = numpy_helper.from_array(np.float32(1), "scale")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["real"]),
        helper.make_node(op, ["x", "real"], ["y"], "layer", **attributes),
    ]
    ends = [helper.make_tensor_value_info(name, 1, None) for name in ("x", "y")]
    stored = [numpy_helper.from_array(weight, "w"), scale]
    return helper.make_model(helper.make_graph(nodes, "net", ends[:1], ends[1:], stored))


def of(weight: list[list[int]], op: str = "Gemm", **attributes: Any) -> Saturation:
    return predict_saturation(one_layer(np.array(weight, np.int8), op, **attributes))


def test_two_large_weights_of_one_channel_may_saturate_wherever_they_stand() -> None:
    (layer,) = of([[127, 0, 0, 2, -127]], transB=1).layers
    assert (layer.highest, layer.lowest) == (255 * 129, 255 * -127)
    assert layer.possible
    assert (layer.pairs, layer.over) == (3, 0)  # neighbours: 127 + 0, 0 + 2, -127 alone


def test_the_bound_is_exact_at_sixteen_bits() -> None:
    assert not of([[127, 1], [-127, -1]], transB=1).possible  # 255 * 128 = 32640
    assert of([[127, 2]], transB=1).possible
    assert of([[-127, -2]], transB=1).possible
    assert not of([[127, -127]], transB=1).possible


def test_weights_of_different_outputs_never_meet() -> None:
    assert not of([[127, 0], [127, 0]], transB=1).possible
    assert of([[127, 0], [127, 0]]).possible  # without transB the columns are the outputs
    assert of([[127, 0], [127, 0]], "MatMul").possible


def test_weights_of_dynamic_quantization_are_seen_and_unsigned_ones_cannot_saturate() -> None:
    found = []
    for kind in (np.int8, np.uint8):
        model = one_layer(np.array([[100], [100]], kind), "MatMulInteger")
        model.graph.node[1].input[1] = "w"
        found.append(predict_saturation(model))
    assert found[0].possible
    assert found[1].layers == ()


def test_convolutions_pair_channels_first_then_taps() -> None:
    weight = np.zeros((1, 4, 3, 3), np.int8)
    weight[0, :2, 1, 1] = 100
    (layer,) = predict_saturation(one_layer(weight)).layers
    assert (layer.pairs, layer.over) == (18, 1)
    assert layer.possible


@pytest.mark.parametrize("build", [small_resnet, small_mobilenet])
def test_seven_bit_weights_are_proven_safe_and_eight_bits_are_not(build: Any, tmp_path: Path) -> None:
    path = build(tmp_path / "net.onnx")
    ranges = calibrate(path, pictures(2), samples_digest="sha256:0")
    found = []
    for seven in (True, False):
        numbers = NumberFormat(activations="uint8", reduce_range=seven)
        quantize(path, plan_quantization(path, ranges, numbers=numbers), out=tmp_path / "int8.onnx")
        found.append(predict_saturation(graph.load(tmp_path / "int8.onnx")))
    assert len(found[0].layers) == len(found[1].layers) >= 8
    assert not found[0].possible
    assert "no sum can saturate" in found[0].sentence()
    assert found[1].possible
    assert "could saturate on AVX2 without VNNI" in found[1].sentence()


def test_eight_bits_without_vnni_are_opened_with_exact_sums_and_the_reason_is_told(tmp_path: Path) -> None:
    path = small_resnet(tmp_path / "net.onnx")
    ranges = calibrate(path, pictures(2), samples_digest="sha256:0")
    numbers = NumberFormat(activations="uint8")
    plan = plan_quantization(path, ranges, numbers=numbers)
    quantize(path, plan, out=tmp_path / "int8.onnx")
    target = msgspec.structs.replace(load_target("linux-x86_64-avx2"), number_format=numbers)
    options = {}
    for kind in ("onnx", "ort"):
        place = msgspec.structs.replace(target, format=kind)
        job = Conversion(path, tmp_path / "int8.onnx", ranges, plan, lambda: iter(pictures(2)), place)
        made = get("ort").convert(job, tmp_path / f"out.{kind}")
        assert any("could saturate" in note for note in made.notes)
        options[kind] = made.session_options["config_entries"]
    assert options == {"onnx": {"session.x64quantprecision": "1"}, "ort": {"session.x64quantprecision": "0"}}


@pytest.mark.parametrize("seven", [True, False])
def test_dynamic_linear_layers_are_looked_at_and_only_seven_bits_are_said_to_help(seven: bool, tmp_path: Path) -> None:
    path = small_encoder(tmp_path / "net.onnx")
    quantize_dynamic(path, out=tmp_path / "int8.onnx", reduce_range=seven)
    found = predict_saturation(graph.load(tmp_path / "int8.onnx"))
    assert [layer.op for layer in found.layers] == ["MatMulIntegerToFloat"] * 10
    assert found.possible != seven
    job = Conversion(path, tmp_path / "int8.onnx", None, None, lambda: iter(()), load_target("linux-x86_64-avx2"))
    made = get("ort").convert(job, tmp_path / "out.onnx")
    told = [note for note in made.notes if "could saturate" in note]
    assert [note.split("; ")[-1] for note in told] == ([] if seven else ["7-bit weights would prevent it"])
    assert made.session_options["config_entries"] == ({} if seven else {"session.x64quantprecision": "0"})


def test_each_output_of_a_dynamic_linear_layer_is_a_column() -> None:
    for columns, possible in (([[127, 0], [0, 127]], False), ([[127, 0], [127, 0]], True)):
        model = one_layer(np.array(columns, np.int8), "MatMulIntegerToFloat")
        model.graph.node[1].input[1] = "w"
        assert predict_saturation(model).possible == possible


@pytest.mark.parametrize(("bits", "exact"), [(7, False), (8, False), (8, True)])
def test_an_emulated_cpu_without_vnni_agrees_exactly_where_that_is_predicted(
    bits: int, exact: bool, tmp_path: Path
) -> None:
    """The reference runs here with exact sums, which are right on any x86 CPU."""
    need("emulated")
    path = small_resnet(tmp_path / "net.onnx")
    ranges = calibrate(path, pictures(2), samples_digest="sha256:0")
    numbers = NumberFormat(activations="uint8", reduce_range=bits == 7)
    model = tmp_path / "int8.onnx"
    quantize(path, plan_quantization(path, ranges, numbers=numbers), out=model)
    precise = {"config_entries": {"session.x64quantprecision": "1"}}
    options = {**precise, "graph_optimization_level": "all"} if exact else {}
    feeds = pictures(1, seed=4, shape=(4, 3, 16, 16))[0]
    (here,) = open_session(model, options=precise).run(feeds).values()
    there = on_avx2(model, feeds["image"], options=options)
    possible = predict_saturation(graph.load(model)).possible
    assert np.array_equal(here, there) == (exact or not possible)


def on_avx2(model: Path, image: NDArray[Any], *, options: dict[str, Any]) -> NDArray[Any]:
    """Run a model on an emulated Haswell."""
    asked = {
        "mode": "outputs", "runtime": "onnxruntime", "model": str(model), "options": options,
        "inputs": [{"image": saved(model.parent, "image.npy", image)}],
    }  # fmt: skip
    out = model.parent / "emulated"
    devices.get("emulated:x86-avx2").run(asked, timeout=120, outputs_to=out)
    return np.load(out / "0.0.npy")
