"""The spine becomes a .tflite file that says the same: layout, names, numbers, bytes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeexport import graph
from edgeexport.errors import DataError, MissingExtra, ModelError, UnsupportedOperator
from edgeexport.runtimes import get, litert
from edgeexport.runtimes.litert import flatbuffer, pairing
from edgeexport.runtimes.litert.assign import assign
from edgeexport.runtimes.protocol import Converted, adapt_feeds, adapt_outputs
from tests.needs import need

need("ort")
need("torch")
need("litert")

from tests.runtimes import litert_nets as nets  # noqa: E402

Made = tuple[nets.Net, Path, Converted]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("litert")


@pytest.fixture(scope="session")
def cnn(folder) -> Made:
    net = nets.cnn(folder)
    out = folder / "cnn.tflite"
    return net, out, litert.RUNTIME.convert(net.job(), out)


@pytest.fixture(scope="session")
def cnn_int8(cnn, folder) -> Made:
    net, out = cnn[0], folder / "cnn-int8.tflite"
    return net, out, litert.RUNTIME.convert(net.job(net.plan()), out)


@pytest.fixture(scope="session")
def detector_int8(folder) -> Made:
    net, out = nets.detector(folder), folder / "detector-int8.tflite"
    return net, out, litert.RUNTIME.convert(net.job(net.plan()), out)


@pytest.fixture(scope="session")
def mlp_int8(folder) -> Made:
    net, out = nets.mlp(folder), folder / "mlp-int8.tflite"
    return net, out, litert.RUNTIME.convert(net.job(net.plan()), out)


def outputs(made: Made) -> list[np.ndarray]:
    """What the file says of the samples, in the spine's terms."""
    net, path, converted = made
    ours = graph.signature(graph.load(net.path))
    session = litert.RUNTIME.open(path)
    name = ours.outputs[0].name
    results = [session.run(adapt_feeds(sample, ours, to=converted.signature)) for sample in net.samples]
    return [adapt_outputs(result, converted.signature, to=ours)[name] for result in results]


def sqnr_db(reference: list[np.ndarray], found: list[np.ndarray]) -> float:
    noise = np.sum((np.stack(reference) - np.stack(found)) ** 2)
    return float(10.0 * np.log10(np.sum(np.stack(reference) ** 2) / noise))


def tensors(path: Path) -> dict[str, object]:
    return {flatbuffer.tensor_name(tensor): tensor for tensor in flatbuffer.read(path).subgraphs[0].tensors}


def test_the_runtime_is_found_by_its_name() -> None:
    assert get("litert") is litert.RUNTIME


def test_fp32_agrees_with_onnxruntime(cnn) -> None:
    np.testing.assert_allclose(np.stack(outputs(cnn)), np.stack(cnn[0].expected()), atol=1e-5)


def test_pictures_are_nhwc_and_names_are_the_spines(cnn) -> None:
    (image,), (logits,) = cnn[2].signature.inputs, cnn[2].signature.outputs
    assert (image.name, image.shape, image.layout) == ("image", (1, 12, 12, 3), "NHWC")
    assert (logits.name, logits.shape, logits.layout) == ("logits", (1, 10), "as-is")


def test_a_plain_cnn_has_no_transpose(cnn) -> None:
    counts = flatbuffer.op_counts(flatbuffer.read(cnn[1]))
    assert counts.get("TRANSPOSE", 0) == 0
    assert counts["CONV_2D"] + counts["DEPTHWISE_CONV_2D"] == 3


def test_the_file_names_its_tensors_as_the_spine_does(cnn) -> None:
    assert {"r1", "r2", "sum", "r3", "w1", "w3", "logits"} <= set(tensors(cnn[1]))


def test_the_file_holds_no_paths_and_no_class_names(cnn) -> None:
    content = cnn[1].read_bytes()
    assert b"torch" not in content
    assert str(Path.cwd()).encode() not in content


def test_an_opened_file_knows_its_layouts(cnn) -> None:
    assert litert.RUNTIME.open(cnn[1]).signature == cnn[2].signature


def test_int8_stays_near_fp32(cnn_int8) -> None:
    assert sqnr_db(cnn_int8[0].expected(), outputs(cnn_int8)) > 20.0


def test_int8_with_float_io_keeps_float_signature(cnn_int8) -> None:
    specs = (*cnn_int8[2].signature.inputs, *cnn_int8[2].signature.outputs)
    assert [spec.dtype for spec in specs] == ["float32", "float32"]


def test_the_plans_numbers_are_found_in_the_file(cnn_int8) -> None:
    net, path, _ = cnn_int8
    plan, held = net.plan(), tensors(path)
    for name in ("r1", "r2", "sum", "r3", "mean"):
        assert held[name].quantization.scale[0] == pytest.approx(plan.activations[name].scale, rel=1e-6)
        assert held[name].quantization.zeroPoint[0] == plan.activations[name].zero_point
    np.testing.assert_allclose(held["w1"].quantization.scale, plan.weights["w1"].scales, rtol=1e-6)


def test_a_fused_clip_gets_the_range_after_the_clip(cnn_int8) -> None:
    net, path, _ = cnn_int8
    assert net.ranges.tensors["c2"].low < -1.0
    assert tensors(path)["r2"].quantization.zeroPoint[0] == -128


def test_every_tensor_of_the_cnn_takes_our_ranges(cnn_int8) -> None:
    assert len(cnn_int8[2].notes) == 1
    assert "took our ranges" in cnn_int8[2].notes[0]


def test_a_pair_holds_on_amplified_probes_too(cnn) -> None:
    net, path, converted = cnn
    ours = graph.signature(graph.load(net.path))
    feeds = pairing.with_amplified(net.samples[:2])
    assert len(feeds) == 4
    found = pairing.pair_activations(net.path, path, spine=ours, file=converted.signature, feeds=feeds)
    names = [flatbuffer.tensor_name(tensor) for tensor in flatbuffer.read(path).subgraphs[0].tensors]
    fits = {names[index]: others for index, others in found.items()}
    assert fits["r2"] == ("r2",)
    assert fits["image"] == ("image",)


def test_two_fits_with_different_ranges_are_not_guessed(cnn) -> None:
    net, path, _ = cnn
    model, plan = flatbuffer.read(path), cnn[0].plan()
    names = [flatbuffer.tensor_name(tensor) for tensor in flatbuffer.activations(model).values()]
    pairs = {"activations": {name: [name] for name in names} | {"sum": ["sum", "r1"]}, "weights": {}}
    numbers = assign(model, pairs, spine=graph.load(net.path), plan=plan, ranges=net.ranges)
    assert "sum" in numbers.leftovers
    assert "r1" not in numbers.leftovers


def test_a_tensor_without_a_range_is_calibrated_there_and_named(cnn, folder) -> None:
    net = cnn[0]
    known = {name: seen for name, seen in net.ranges.tensors.items() if name != "sum"}
    ranges = msgspec.structs.replace(net.ranges, tensors=known)
    plan = net.plan()
    plan = msgspec.structs.replace(plan, activations={n: p for n, p in plan.activations.items() if n != "sum"})
    out = folder / "leftover.tflite"
    converted = litert.RUNTIME.convert(net.job(plan, ranges=ranges), out)
    assert any("calibration samples: sum" in note for note in converted.notes)
    expected = net.plan().activations["sum"].scale
    assert tensors(out)["sum"].quantization.scale[0] == pytest.approx(expected, rel=1e-3)


def test_a_node_kept_in_float_is_float_in_the_file(cnn, folder) -> None:
    out = folder / "mixed.tflite"
    converted = litert.RUNTIME.convert(cnn[0].job(cnn[0].plan(keep={"conv3": "its SQNR"})), out)
    assert tensors(out)["w3"].type == 0
    assert tensors(out)["w1"].type != 0
    assert any(note.startswith("left in float: r3") for note in converted.notes)


def test_int8_io_says_its_scales(cnn, folder) -> None:
    net, out = cnn[0], folder / "cnn-int8-io.tflite"
    converted = litert.RUNTIME.convert(net.job(net.plan(), io="int8"), out)
    image = converted.signature.inputs[0]
    assert (image.dtype, image.layout) == ("int8", "NHWC")
    assert image.scale == pytest.approx(net.plan().activations["image"].scale, rel=1e-6)
    assert sqnr_db(net.expected(), outputs((net, out, converted))) > 20.0


def test_a_detector_with_resize_and_concat_converts(detector_int8) -> None:
    assert detector_int8[2].signature.outputs[0].shape == (1, 8, 8, 8)
    assert sqnr_db(detector_int8[0].expected(), outputs(detector_int8)) > 20.0


def test_an_mlp_converts(mlp_int8) -> None:
    assert sqnr_db(mlp_int8[0].expected(), outputs(mlp_int8)) > 20.0


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(mlp_int8, folder) -> None:
    net, first, _ = mlp_int8
    again = folder / "again.tflite"
    litert.LiteRT().convert(net.job(net.plan()), again)
    assert again.read_bytes() == first.read_bytes()


def test_an_operator_without_a_conversion_is_named(folder) -> None:
    net = nets.determinant(folder)
    with pytest.raises(UnsupportedOperator, match="Det"):
        litert.RUNTIME.convert(net.job(), folder / "never.tflite")
    assert not (folder / "never.tflite").exists()


def test_an_empty_calibration_set_is_refused(cnn, folder) -> None:
    net = nets.Net(path=cnn[0].path, samples=[], ranges=cnn[0].ranges)
    with pytest.raises(DataError, match="empty"):
        litert.RUNTIME.convert(net.job(), folder / "never.tflite")


def test_a_missing_package_names_the_extra(cnn, folder, monkeypatch) -> None:
    monkeypatch.setitem(litert._CONVERTERS, "no_such_package", "no-such-package")
    with pytest.raises(MissingExtra, match="no-such-package") as caught:
        litert.RUNTIME.convert(cnn[0].job(), folder / "never.tflite")
    assert "edgeexport[litert]" in caught.value.next_step


def test_wrong_feeds_are_refused_before_anything_runs(cnn) -> None:
    session = litert.RUNTIME.open(cnn[1])
    good = np.zeros((1, 12, 12, 3), np.float32)
    for feeds, word in (
        ({}, "inputs are"),
        ({"image": good, "more": good}, "more"),
        ({"image": good.astype(np.float64)}, "float64"),
        ({"image": good.transpose(0, 3, 1, 2)}, r"\(1, 3, 12, 12\)"),
    ):
        with pytest.raises(DataError, match=word):
            session.run(feeds)


def test_options_are_refused_by_name(cnn) -> None:
    with pytest.raises(ModelError, match="speed"):
        litert.RUNTIME.open(cnn[1], options={"speed": 11})
