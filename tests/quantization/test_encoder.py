"""Encoders: rewritings that keep the float numbers, int8 forms that keep near them, and the choice between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeexport import graph, quantization
from edgeexport.errors import DataError, ModelError
from edgeexport.quantization.blockwise import quantize_blockwise
from edgeexport.quantization.encoder import choose_encoder_form, encoder_spines, static_encoder
from edgeexport.quantization.integer import keep_encoder_float, quantize_dynamic, quantize_static_encoder
from edgeexport.quantization.outliers import split_outliers
from edgeexport.quantization.smooth import smooth, smoothing_scales
from edgeexport.records.target import NumberFormat
from edgeexport.runtimes.ort import open_session
from tests.needs import need
from tests.quantization.encoder_nets import inside_if, sentences, small_encoder
from tests.quantization.nets import small_resnet

need("ort")
U8S8 = NumberFormat(activations="uint8")


def sqnr(reference: Path, candidate: Path, *, samples=None) -> float:
    """SQNR over all outputs of all samples, in dB."""
    left, right = open_session(reference), open_session(candidate)
    pairs = [(left.run(feeds), right.run(feeds)) for feeds in samples or sentences(16, seed=9)]
    signal = sum(float((values**2).sum()) for one, _ in pairs for values in one.values())
    noise = sum(float(((one[name] - other[name]) ** 2).sum()) for one, other in pairs for name in one)
    return 10 * np.log10(signal / noise) if noise else 200.0


def ops(path: Path) -> dict[str, int]:
    return graph.op_counts(graph.load(path))


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return small_encoder(tmp_path_factory.mktemp("encoder") / "net.onnx")


@pytest.fixture(scope="module")
def spines(net):
    return encoder_spines(net, sentences(16), folder=net.parent)


def test_smoothing_changes_no_number_of_the_float_model(net, spines):
    assert sqnr(net, spines.smoothed) > 100


def test_smoothing_names_the_layers_it_helped_and_the_tensors_it_could_not(net, tmp_path):
    record = smooth(net, sentences(4), out=tmp_path / "smooth.onnx")
    assert [len(nodes) for nodes in record.smoothed.values()] == [3, 1, 3, 1]
    assert len(record.left) == 2  # the results of Gelu


def test_smoothing_scales_are_powers_of_two_and_largest_where_the_activation_is(net):
    scales = smoothing_scales(np.array([1.0, 64.0, 1.0]), [np.ones((3, 4))], strength=0.5)
    assert np.array_equal(np.log2(scales), np.rint(np.log2(scales)))
    assert scales[1] == 8 * scales[0]


def test_a_normalization_written_out_in_small_steps_is_smoothed_too(tmp_path):
    factor = onnx.numpy_helper.from_array(np.linspace(0.1, 40, 64).astype(np.float32), "factor")
    offset = onnx.numpy_helper.from_array(np.ones(64, np.float32), "offset")
    weight = onnx.numpy_helper.from_array(np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32), "w")
    path = onnx.helper
    nodes = [
        path.make_node("Tanh", ["x"], ["t"], "tanh"),
        path.make_node("Mul", ["t", "factor"], ["scaled"], "scaled"),
        path.make_node("Add", ["scaled", "offset"], ["normed"], "normed"),
        path.make_node("MatMul", ["normed", "w"], ["y"], "layer"),
    ]
    values = [path.make_tensor_value_info(name, 1, ("batch", 64)) for name in ("x", "y")]
    built = path.make_graph(nodes, "net", values[:1], values[1:], [factor, offset, weight])
    model = path.make_model(built, opset_imports=[path.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    noise = np.random.default_rng(1).standard_normal((4, 1, 64)).astype(np.float32)
    samples = [{"x": row} for row in noise]
    record = smooth(tmp_path / "net.onnx", samples, out=tmp_path / "smooth.onnx")
    assert record.smoothed == {"normed": ("layer",)}
    assert sqnr(tmp_path / "net.onnx", tmp_path / "smooth.onnx", samples=samples) > 100


def test_the_giant_channel_is_found_and_split_off_without_changing_the_float_model(spines, tmp_path):
    record = split_outliers(spines.smoothed, sentences(16), out=tmp_path / "split.onnx")
    assert [5 in found.channels for found in record.tensors.values()] == [True, True]
    assert all(found.seen_high > 2 * found.high for found in record.tensors.values())
    assert sqnr(spines.smoothed, tmp_path / "split.onnx", samples=sentences(16)) > 100


def test_an_encoder_without_giants_is_not_split(tmp_path):
    tame = small_encoder(tmp_path / "tame.onnx", giant=1.0)
    assert not split_outliers(tame, sentences(8), out=tmp_path / "split.onnx").tensors


def test_static_int8_fails_on_giant_channels_and_holds_once_they_are_smoothed_and_split(net, spines, tmp_path):
    for name, source in (("plain", net), ("split", spines.split)):
        static_encoder(source, sentences(16), numbers=U8S8, out=tmp_path / f"{name}.onnx")
    plain, split = (sqnr(net, tmp_path / f"{name}.onnx") for name in ("plain", "split"))
    assert split > 30
    assert split > plain + 6


def test_the_dynamic_form_is_near_float_small_and_the_same_bytes_each_time(net, tmp_path):
    plan = quantize_dynamic(net, out=tmp_path / "a.onnx")
    quantize_dynamic(net, out=tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert (tmp_path / "a.onnx").stat().st_size < 0.4 * net.stat().st_size
    assert ops(tmp_path / "a.onnx")["MatMulIntegerToFloat"] == 10
    assert len(plan.quantized) == 11  # and the table
    assert sqnr(net, tmp_path / "a.onnx") > 15


def test_layers_that_read_one_tensor_quantize_it_once(net, tmp_path):
    quantize_dynamic(net, out=tmp_path / "a.onnx")
    assert ops(tmp_path / "a.onnx")["DynamicQuantizeLinear"] == 6


def test_a_node_kept_in_float_stays_and_its_reason_is_recorded(net, tmp_path):
    name = next(node.name for node in graph.load(net).graph.node if node.op_type == "MatMul")
    plan = quantize_dynamic(net, out=tmp_path / "a.onnx", keep_float={name: "asked for"})
    assert plan.keep_float[name] == "asked for"
    assert ops(tmp_path / "a.onnx")["MatMulIntegerToFloat"] == 9


def test_layers_inside_the_branches_of_an_if_are_quantized(tmp_path):
    path = inside_if(tmp_path / "if.onnx")
    plan = quantize_dynamic(path, out=tmp_path / "int8.onnx")
    assert sorted(plan.quantized) == ["layer_own", "layer_w0"]
    noise = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    samples = [{"x": noise, "first": np.array(first)} for first in (True, False)]
    assert sqnr(path, tmp_path / "int8.onnx", samples=samples) > 30


def test_a_model_with_nothing_to_quantize_is_an_error_and_no_copy(tmp_path):
    path = inside_if(tmp_path / "if.onnx", hidden=8)
    with pytest.raises(ModelError, match="fewer than 4096 weights"):
        quantize_dynamic(path, out=tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()


def test_seven_bit_weights_stay_within_64(net, tmp_path):
    quantize_dynamic(net, out=tmp_path / "a.onnx", numbers=NumberFormat(activations="uint8", reduce_range=True))
    stored = graph.initializers(graph.load(tmp_path / "a.onnx"))
    layers = [value for value in stored.values() if value.dtype == np.int8 and value.shape[0] != 200]
    assert len(layers) == 10
    assert max(int(np.abs(value.astype(int)).max()) for value in layers) == 64


def test_a_static_form_takes_a_plan_of_its_own_file_with_unsigned_activations_only(net, spines, tmp_path):
    ranges = quantization.calibrate(net, sentences(4), samples_digest="")
    kept = keep_encoder_float(net)
    signed = quantization.plan_quantization(net, ranges, numbers=NumberFormat("int8"), keep_float=kept)
    with pytest.raises(DataError, match="uint8"):
        quantize_static_encoder(net, signed, out=tmp_path / "a.onnx")
    with pytest.raises(DataError, match="belongs to the model"):
        quantize_static_encoder(spines.split, signed, out=tmp_path / "a.onnx")


def test_the_blockwise_form_is_nearer_to_float_than_the_dynamic_one(net, tmp_path):
    quantize_dynamic(net, out=tmp_path / "dynamic.onnx")
    quantize_blockwise(net, out=tmp_path / "blockwise.onnx", block=32)
    assert ops(tmp_path / "blockwise.onnx")["MatMulNBits"] == 10
    assert sqnr(net, tmp_path / "blockwise.onnx") > sqnr(net, tmp_path / "dynamic.onnx") + 3


def test_blocks_that_do_not_divide_a_layer_are_padded(net, tmp_path):
    quantize_blockwise(net, out=tmp_path / "blockwise.onnx", block=256)
    assert sqnr(net, tmp_path / "blockwise.onnx") > 20
    with pytest.raises(ModelError, match="blocks of 48"):
        quantize_blockwise(net, out=tmp_path / "blockwise.onnx", block=48)


def test_the_choice_puts_forms_that_hold_first_and_says_what_the_others_lost(tmp_path):
    costs = {"static": 0.3, "dynamic": 0.4, "blockwise": 0.7}
    hard = small_encoder(tmp_path / "hard.onnx", giant=15.0)
    choice = choose_encoder_form(
        hard,
        sentences(16),
        numbers=U8S8,
        folder=tmp_path,
        timed=lambda path: costs[path.name.split("-")[0].split(".")[0]],
    )
    cosines = [trial.cosine for trial in choice.trials]
    holding = [trial.time_ratio for trial in choice.trials if trial.cosine >= 0.998]
    assert len(cosines) == 6
    assert holding == sorted(holding)
    assert 0 < len(holding) < 6
    assert min(cosines[: len(holding)]) >= 0.998 > max(cosines[len(holding) :])
    assert "cosine" in choice.reason
    assert (tmp_path / choice.trials[0].path).is_file()


def test_only_forms_that_hold_are_timed_and_one_invalid_time_lets_none_count(tmp_path):
    hard, asked = small_encoder(tmp_path / "hard.onnx", giant=15.0), []

    def timed(path):
        asked.append(path.name)
        return "it was too noisy" if len(asked) == 2 else 0.1 * len(asked)

    choice = choose_encoder_form(hard, sentences(16), numbers=U8S8, folder=tmp_path, timed=timed)
    holding = {trial.path for trial in choice.trials if trial.cosine >= 0.998}
    assert set(asked) == holding
    assert choice.untimed == {asked[1]: "it was too noisy"}
    assert [trial.time_ratio for trial in choice.trials] == [None] * 6
    assert "of its time" not in choice.reason


def test_a_network_without_linear_layers_or_tables_has_no_encoder_form(tmp_path):
    path = small_resnet(tmp_path / "net.onnx")
    noise = np.random.default_rng(0).standard_normal((2, 1, 3, 16, 16)).astype(np.float32)
    with pytest.raises(ModelError, match="no int8 form can be made"):
        choose_encoder_form(path, [{"image": item} for item in noise], numbers=U8S8, folder=tmp_path)
    with pytest.raises(DataError, match="0 samples cannot both"):
        choose_encoder_form(path, [], numbers=U8S8, folder=tmp_path)
