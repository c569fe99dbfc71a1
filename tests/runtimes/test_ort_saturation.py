"""The saturation predictor: a proof for 7-bit weights and fitted pairs, a warning for others, the option that helps."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgeexport import devices, graph
from edgeexport.devices.local import host_features
from edgeexport.quantization import calibrate, plan_quantization, quantize
from edgeexport.quantization.integer import quantize_dynamic
from edgeexport.records.saturation import Saturation
from edgeexport.records.target import NumberFormat, load_target
from edgeexport.runtimes import get
from edgeexport.runtimes.ort import EXACT_SUMS, open_session
from edgeexport.runtimes.ort_saturation import from_rows, partners, predict_saturation, rows
from edgeexport.runtimes.protocol import Conversion
from tests.device_bench.tiny import saved
from tests.needs import need
from tests.quantization.encoder_nets import small_encoder
from tests.quantization.nets import pictures, small_mobilenet, small_resnet

AS_IT_IS = {"config_entries": {EXACT_SUMS: "0"}}


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


def test_only_weights_that_a_kernel_adds_may_saturate() -> None:
    (apart,) = of([[127, 0, 0, 2, 127]], transB=1).layers
    assert (apart.highest, apart.lowest, apart.pairs, apart.over) == (255 * 127, 0, 2, 0)  # 127 + 0, 0 + 2, 127 alone
    assert not apart.possible
    (met,) = of([[0, 0, 127, 2, 0], [0, 0, 127, -2, 0]], transB=1).layers
    assert (met.highest, met.lowest, met.pairs, met.over) == (255 * 129, 255 * -2, 4, 1)
    assert met.possible


def test_the_bound_is_exact_at_sixteen_bits() -> None:
    assert not of([[127, 1], [-127, -1]], transB=1).possible  # 255 * 128 = 32640
    assert of([[127, 2]], transB=1).possible
    assert of([[-127, -2]], transB=1).possible
    assert not of([[1, -127], [127, 127], [127, 127]]).possible


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
    for channels, possible in (([0, 1], True), ([1, 2], False)):
        weight = np.zeros((1, 4, 3, 3), np.int8)
        weight[0, channels, 1, 1] = 100
        (layer,) = predict_saturation(one_layer(weight)).layers
        assert (layer.pairs, layer.over, layer.possible) == (18, int(possible), possible)


def test_branches_are_walked_with_weights_of_their_own_and_of_the_main_graph() -> None:
    inner, outer = one_layer(np.array([[127], [127]], np.int8), "MatMul"), one_layer(np.array([[9]], np.int8), "MatMul")
    outer.graph.node.append(helper.make_node("If", ["asked"], ["z"], then_branch=inner.graph, else_branch=outer.graph))
    assert [layer.possible for layer in predict_saturation(outer).layers] == [False, False, True]  # else before then


def test_a_convolution_of_three_channels_fits_with_a_fourth_of_zeros_too() -> None:
    """As the first one is stored on x86: channels 0 and 1 meet in every tap, not in every other one."""
    weight = np.zeros((1, 3, 1, 2), np.int8)
    for tap in (0, 1):
        weight[:], weight[0, :2, 0, tap] = 0, 100
        assert predict_saturation(one_layer(weight)).possible
    assert partners(helper.make_node("Conv", ["x", "w"], ["y"]), (1, 3, 1, 2)).tolist() == [
        [2, 4, 0, 5, 1, 3],
        [2, 3, 0, 1, 4, 5],
    ]
    assert len(partners(helper.make_node("Conv", ["x", "w"], ["y"], group=2), (2, 3, 1, 2))) == 1


def test_depthwise_convolutions_cannot_saturate_and_others_of_one_channel_can() -> None:
    for outputs, possible in ((4, False), (8, True)):
        model = one_layer(np.full((outputs, 1, 3, 3), 127, np.int8), group=4)
        assert predict_saturation(model).possible == possible


@pytest.mark.parametrize(("op", "shape", "group"), [
    ("QLinearConv", (351, 3, 3, 3), 1), ("QLinearConv", (105, 5, 3), 1), ("QLinearConv", (2 * 153, 2, 3, 3), 2),
    ("QLinearConv", (36, 1, 3, 3), 36), ("QLinearConv", (3 * 6, 1, 2, 2), 3),
    ("QLinearMatMul", (7, 21), 1), ("MatMulInteger", (6, 15), 1),
])  # fmt: skip
def test_kernels_without_vnni_add_the_very_pairs_that_are_predicted(
    op: str, shape: tuple[int, ...], group: int, tmp_path: Path
) -> None:
    """Every output has 127 at two places of its own and inputs of 255: a 16-bit sum of both loses half of them."""
    layer = helper.make_node(op.replace("QLinear", ""), ["x", "w"], ["y"], group=group)
    weight = rows(layer, np.zeros(shape, np.int8))
    pairs = list(itertools.combinations(range(weight.shape[1]), 2))
    for place, two in zip(range(len(weight)), itertools.cycle(pairs), strict=False):
        weight[place, two] = 127
    graph.save(planted(op, from_rows(layer, weight, shape=shape), group=group), tmp_path / "planted.onnx")
    image = np.full((1, shape[1] * group, *shape[2:]) if op == "QLinearConv" else (1, shape[0]), 255, np.uint8)
    if {"avx_vnni", "avx512_vnni"} & set(host_features()) or "avx2" not in host_features():
        need("emulated")
        found = on_avx2(tmp_path / "planted.onnx", {"x": image}, options={})
    else:
        (found,) = open_session(tmp_path / "planted.onnx", options=AS_IT_IS).run({"x": image}).values()
    whole = 254 if op != "MatMulInteger" else 254 * 255
    met = partners(layer, shape)[0]
    expected = [met[one] == other for one, other in itertools.islice(itertools.cycle(pairs), len(weight))]
    assert np.array_equal(found.ravel() < whole, expected)
    assert found.max() == whole


@pytest.mark.parametrize("build", [small_resnet, small_mobilenet])
def test_seven_bit_weights_and_fitted_pairs_are_proven_safe_and_eight_bits_are_not(build: Any, tmp_path: Path) -> None:
    path = build(tmp_path / "net.onnx")
    ranges = calibrate(path, pictures(2), samples_digest="sha256:0")
    found = []
    for bits in ({"reduce_range": True}, {"fit_pairs": True}, {}):
        numbers = NumberFormat(activations="uint8", **bits)
        quantize(path, plan_quantization(path, ranges, numbers=numbers), out=tmp_path / "int8.onnx")
        found.append(predict_saturation(graph.load(tmp_path / "int8.onnx")))
    assert len(found[0].layers) == len(found[1].layers) == len(found[2].layers) >= 8
    assert not found[0].possible
    assert not found[1].possible
    assert "no sum can saturate" in found[0].sentence()
    assert found[2].possible
    assert "could saturate on AVX2 without VNNI" in found[2].sentence()


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


@pytest.mark.parametrize("fit", [True, False])
def test_dynamic_linear_layers_are_looked_at_and_only_fitted_pairs_are_said_to_help(fit: bool, tmp_path: Path) -> None:
    path = small_encoder(tmp_path / "net.onnx")
    quantize_dynamic(path, out=tmp_path / "int8.onnx", numbers=NumberFormat(activations="uint8", fit_pairs=fit))
    found = predict_saturation(graph.load(tmp_path / "int8.onnx"))
    assert [layer.op for layer in found.layers] == ["MatMulIntegerToFloat"] * 10
    assert found.possible != fit
    job = Conversion(path, tmp_path / "int8.onnx", None, None, lambda: iter(()), load_target("linux-x86_64-avx2"))
    made = get("ort").convert(job, tmp_path / "out.onnx")
    told = [note for note in made.notes if "could saturate" in note]
    assert [note.split("; ")[-1] for note in told] == (
        [] if fit else ["a number format with `fit_pairs` would prevent it"]
    )
    assert made.session_options["config_entries"] == ({} if fit else {"session.x64quantprecision": "0"})


def test_each_output_of_a_dynamic_linear_layer_is_a_column() -> None:
    for columns, possible in (([[127, 0], [0, 127]], False), ([[127, 0], [127, 0]], True)):
        model = one_layer(np.array(columns, np.int8), "MatMulIntegerToFloat")
        model.graph.node[1].input[1] = "w"
        assert predict_saturation(model).possible == possible


@pytest.mark.parametrize(("bits", "exact"), [("fit_pairs", False), ("reduce_range", False), ("", False), ("", True)])
def test_an_emulated_cpu_without_vnni_agrees_exactly_where_that_is_predicted(
    bits: str, exact: bool, tmp_path: Path
) -> None:
    """The reference runs here with exact sums, which are right on any x86 CPU."""
    need("emulated")
    path = small_resnet(tmp_path / "net.onnx")
    ranges = calibrate(path, pictures(2), samples_digest="sha256:0")
    numbers = NumberFormat(activations="uint8", **({bits: True} if bits else {}))
    model = tmp_path / "int8.onnx"
    quantize(path, plan_quantization(path, ranges, numbers=numbers), out=model)
    precise = {"config_entries": {"session.x64quantprecision": "1"}}
    options = {**precise, "graph_optimization_level": "all"} if exact else {}
    feeds = pictures(1, seed=4, shape=(4, 3, 16, 16))[0]
    (here,) = open_session(model, options=precise).run(feeds).values()
    there = on_avx2(model, feeds, options=options)
    possible = predict_saturation(graph.load(model)).possible
    assert np.array_equal(here, there) == (exact or not possible)


def planted(op: str, weight: NDArray[Any], *, group: int) -> onnx.ModelProto:
    """Return a model of one integer node; an output of 8 bits is in steps of 255."""
    values = {"w": weight, "zx": np.uint8(0), "zw": np.int8(0), "one": np.float32(1), "step": np.float32(255)}
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    names = ["x", "one", "zx", "w", "one", "zw", "step", "zx"] if op != "MatMulInteger" else ["x", "w", "zx", "zw"]
    attributes = {"group": group} if op == "QLinearConv" else {}
    ends = [
        helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [None] * (weight.ndim if attributes else 2)),
        helper.make_tensor_value_info("y", onnx.TensorProto.INT32 if len(names) == 4 else onnx.TensorProto.UINT8, None),
    ]
    node = helper.make_node(op, names, ["y"], "layer", **attributes)
    net = helper.make_graph([node], "net", ends[:1], ends[1:], stored)
    return helper.make_model(net, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def on_avx2(model: Path, feeds: dict[str, NDArray[Any]], *, options: dict[str, Any]) -> NDArray[Any]:
    """Run a model on an emulated Haswell."""
    asked = {
        "mode": "outputs", "runtime": "onnxruntime", "model": str(model), "options": options,
        "inputs": [{name: saved(model.parent, f"{name}.npy", value) for name, value in feeds.items()}],
    }  # fmt: skip
    out = model.parent / "emulated"
    devices.get("emulated:x86-avx2").run(asked, timeout=120, outputs_to=out)
    return np.load(out / "0.0.npy")
