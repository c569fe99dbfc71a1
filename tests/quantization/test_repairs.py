"""Repairs: every edit keeps the numbers, brings operators into integers, and stays only if measured faster."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeexport import graph
from edgeexport.errors import DeviceError
from edgeexport.quantization import calibrate, plan_quantization, quantize
from edgeexport.quantization.audit import audit
from edgeexport.quantization.placement import prepared
from edgeexport.quantization.repairs import Bench, Repaired, loop, repair
from edgeexport.quantization.repairs.planned import plan_edits, restricted
from edgeexport.quantization.repairs.sketch import Sketch
from edgeexport.quantization.repairs.spine import SPINE_EDITS, SpineEdit, all_of, edited
from edgeexport.records.audit import Audit
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.target import NumberFormat
from edgeexport.runtimes.ort import open_session
from tests.quantization.nets import Net, pictures, small_resnet
from tests.quantization.test_qdq import sqnr_db

U8 = NumberFormat(activations="uint8")
EDITS = {edit.name: edit for edit in SPINE_EDITS}


def planned(path: Path) -> QuantizationPlan:
    return plan_quantization(path, calibrate(path, pictures(4), samples_digest="sha256:0"), numbers=U8)


def written(path: Path, plan: QuantizationPlan, out: Path) -> None:
    quantize(path, plan, out=out)


def running(path: Path) -> Audit:
    return audit(path, profile=False)


def head(net: Net, x: str, channels: int) -> None:
    """Two more convolutions, so that all before stands between integers."""
    net.conv(net.put("Relu", net.conv(x, channels, 8)), 8, 8)


def scaled_by_channels(net: Net) -> None:
    factors, terms = (net.random.standard_normal((8, 1, 1)).astype(np.float32) for _ in range(2))
    x = net.put("Add", net.put("Mul", net.conv("image", 3, 8), net.store(factors)), net.store(terms))
    x = net.put("Div", net.put("Relu", x), net.store(np.float32(3.0)))
    head(net, net.conv(x, 8, 8, group=8), 8)


@pytest.mark.parametrize("transposed", [0, 1])
def test_constants_before_and_after_a_linear_layer_fold_into_it(transposed: int, tmp_path: Path) -> None:
    net = Net()
    x = net.put("Flatten", net.put("GlobalAveragePool", net.conv("image", 3, 8)))
    factors, terms = (net.store(net.random.standard_normal(8).astype(np.float32)) for _ in range(2))
    x = net.put("Add", net.put("Mul", net.put("Relu", x), factors), terms)
    shape = (4, 8) if transposed else (8, 4)
    x = net.put("Gemm", x, net.store(net.random.standard_normal(shape).astype(np.float32)), transB=transposed)
    net.put("Relu", net.put("Sub", x, net.store(net.random.standard_normal(4).astype(np.float32))))
    path = net.save(tmp_path / "net.onnx")
    model, places = edited(graph.load(path), EDITS["fold-affine"])
    assert places == 3
    batch = pictures(1, shape=(3, 3, 16, 16))[0]
    (left,) = open_session(path).run(batch).values()
    (right,) = open_session(model.SerializeToString()).run(batch).values()
    assert np.abs(left - right).max() <= 1e-5 * np.abs(left).max()


def squeezed(net: Net) -> None:
    x = net.put("Relu", net.conv("image", 3, 8))
    gate = net.conv(net.put("GlobalAveragePool", x), 8, 8, size=1)
    head(net, net.put("Mul", x, net.put("HardSigmoid", gate, alpha=1 / 6, beta=0.5)), 8)


def swished(net: Net) -> None:
    x = net.put("HardSwish", net.conv("image", 3, 8))
    x = net.conv(x, 8, 8, group=8)
    head(net, net.put("Mul", x, net.put("HardSigmoid", x, alpha=1 / 6, beta=0.5)), 8)


def averaged(net: Net) -> None:
    x = net.put("ReduceMean", net.conv("image", 3, 8), net.store(np.array([2, 3])), keepdims=0)
    net.gemm(x, 8, 4)


def shortcut(net: Net) -> None:
    x = net.put("Relu", net.conv("image", 3, 8))
    ends, two = (net.store(np.array([value])) for value in (2**31, 2))
    zero, rows, columns = (net.store(np.array([value])) for value in (0, 2, 3))
    half = net.put("Slice", net.put("Slice", x, zero, ends, rows, two), zero, ends, columns, two)
    wide = net.put("Pad", half, net.store(np.array([0, 4, 0, 0, 0, 4, 0, 0])))
    head(net, net.put("Add", net.conv(x, 8, 16, stride=2), wide), 16)


def linear(net: Net) -> None:
    x = net.put("Flatten", net.put("GlobalAveragePool", net.conv("image", 3, 8)))
    weight, bias = (net.store(net.random.standard_normal(shape).astype(np.float32)) for shape in ((8, 4), (4,)))
    net.put("Add", net.put("MatMul", x, weight), bias)


# edit → (a net that has its pattern, operators that are gone afterwards, integer kernels of the edited net)
PATTERNS: dict[str, tuple[Callable[[Net], None], set[str], int]] = {
    "fold-affine": (scaled_by_channels, {"Add", "Mul", "Div"}, 4),
    "hardsigmoid-as-clip": (squeezed, {"HardSigmoid"}, 6),
    "hardswish-in-steps": (swished, {"HardSwish", "HardSigmoid"}, 8),
    "mean-as-pool": (averaged, {"ReduceMean"}, 3),
    "shortcut-as-convolution": (shortcut, {"Pad", "Slice"}, 6),
    "matmul-as-gemm": (linear, {"MatMul", "Add"}, 3),
}


def built(pattern: Callable[[Net], None], path: Path) -> Path:
    net = Net()
    pattern(net)
    return net.save(path)


def test_every_edit_has_a_net_here() -> None:
    assert PATTERNS.keys() == EDITS.keys()


@pytest.mark.parametrize("name", PATTERNS)
def test_an_edit_keeps_the_numbers_and_brings_all_into_integers(name: str, tmp_path: Path) -> None:
    pattern, gone, kernels = PATTERNS[name]
    path = built(pattern, tmp_path / "net.onnx")
    model, places = edited(graph.load(path), EDITS[name])
    after = tmp_path / "edited.onnx"
    graph.save(model, after)
    assert places > 0
    assert not gone & graph.op_counts(model).keys()
    batch = pictures(1, shape=(3, 3, 16, 16))[0]
    (left,), (right,) = (open_session(file).run(batch).values() for file in (path, after))
    assert np.abs(left - right).max() <= 1e-5 * np.abs(left).max()
    written(after, planned(after), tmp_path / "int8.onnx")
    found = running(tmp_path / "int8.onnx")
    assert not found.lost, found.lost
    assert sum(found.counts.values()) == kernels, found.counts
    assert sqnr_db(after, tmp_path / "int8.onnx") > 15


def test_an_edit_without_its_pattern_changes_nothing(tmp_path: Path) -> None:
    model = graph.load(small_resnet(tmp_path / "net.onnx"))
    for edit in SPINE_EDITS:
        same, places = edited(model, edit)
        assert same is model, edit.name
        assert places == 0


def test_a_term_before_padding_and_a_result_with_two_readers_are_not_folded(tmp_path: Path) -> None:
    net = Net()
    x = net.put("Add", net.put("Relu", net.conv("image", 3, 8)), net.store(np.float32(1.0)))
    y = net.conv(x, 8, 8)
    head(net, net.put("Add", net.put("Mul", y, net.store(np.float32(2.0))), y), 8)
    model, places = edited(graph.load(net.save(tmp_path / "net.onnx")), EDITS["fold-affine"])
    assert places == 0
    assert graph.op_counts(model)["Add"] == 2


def test_a_constant_that_raises_the_rank_is_not_folded(tmp_path: Path) -> None:
    net = Net()
    net.put("Relu", net.put("Mul", net.conv("image", 3, 8), net.store(np.full((1, 1, 1, 1, 1), 2.0, np.float32))))
    assert edited(graph.load(net.save(tmp_path / "net.onnx")), EDITS["fold-affine"])[1] == 0


def test_a_shared_weight_is_scaled_for_one_reader_only(tmp_path: Path) -> None:
    net = Net()
    first = net.conv("image", 3, 3)
    again = net.put("Conv", first, net.stored[0].name, net.stored[1].name, pads=[1] * 4, kernel_shape=[3, 3])
    net.put("Relu", net.put("Mul", again, net.store(np.float32(2.0))))
    path = net.save(tmp_path / "net.onnx")
    model, places = edited(graph.load(path), EDITS["fold-affine"])
    assert places == 1
    batch = pictures(1)[0]
    (left,) = open_session(path).run(batch).values()
    (right,) = open_session(model.SerializeToString()).run(batch).values()
    assert np.allclose(left, right, rtol=1e-5, atol=1e-6)


def joined(net: Net) -> None:
    """A Concat of unlike ranges."""
    x = net.put("Relu", net.conv("image", 3, 8))
    head(net, net.put("Concat", net.conv(x, 8, 8), net.conv(x, 8, 8), axis=1), 16)


def edit_of(path: Path, plan: QuantizationPlan, name: str) -> QuantizationPlan:
    return next(edit.changed() for edit in plan_edits(path, plan) if edit.name == name)


def test_one_scale_gives_a_concat_and_its_inputs_the_same_point(tmp_path: Path) -> None:
    path = built(joined, tmp_path / "net.onnx")
    plan = planned(path)
    points = edit_of(path, plan, "one-scale-concat").activations
    concat = next(node for node in graph.load(path).graph.node if node.op_type == "Concat")
    names = [*concat.input, *concat.output]
    assert len({points[name] for name in names}) == 1
    assert len({plan.activations[name] for name in names}) > 1
    written(path, edit_of(path, plan, "one-scale-concat"), tmp_path / "int8.onnx")
    assert sqnr_db(path, tmp_path / "int8.onnx") > 15


def test_a_relu_before_a_concat_keeps_its_own_point(tmp_path: Path) -> None:
    """Nothing but that point holds negative numbers back: the file has no Relu any more."""
    net = Net()
    x = net.conv("image", 3, 8)
    head(net, net.put("Concat", net.put("Relu", net.conv(x, 8, 8)), net.conv(x, 8, 8), axis=1), 16)
    path = net.save(tmp_path / "net.onnx")
    assert not [edit for edit in plan_edits(path, planned(path)) if edit.name == "one-scale-concat"]


def test_leaving_more_in_float_keeps_every_other_number(tmp_path: Path) -> None:
    path = built(squeezed, tmp_path / "net.onnx")
    plan = planned(path)
    fewer = restricted(prepared(graph.load(path)), plan, keep_float={"mul_5": "slower"})
    assert fewer.keep_float["mul_5"] == "slower"
    assert fewer.activations.items() < plan.activations.items()
    assert fewer.weights == plan.weights
    written(path, fewer, tmp_path / "int8.onnx")
    assert "Mul" in {kernel.op for kernel in running(tmp_path / "int8.onnx").kernels if kernel.kind == "float"}


def scripted(timed: Callable[[Path, Path], float]) -> Bench:
    return Bench(replan=planned, build=written, timed=timed, feeds=pictures(2))


def repaired(path: Path, timed: Callable[[Path, Path], float]) -> Repaired:
    folder = path.parent / "repair"
    folder.mkdir()
    return repair(path, planned(path), bench=scripted(timed), folder=folder)


def test_what_is_not_faster_is_dropped(tmp_path: Path) -> None:
    path = built(swished, tmp_path / "net.onnx")
    before = path.read_bytes()
    found = repaired(path, lambda _now, _candidate: 1.01)
    assert {step.name for step in found.steps} >= {"hardswish-in-steps"}
    assert not any(step.kept for step in found.steps)
    assert all("not faster: 1.010" in step.outcome for step in found.steps)
    assert (found.spine, found.plan) == (path, planned(path))
    assert path.read_bytes() == before


def test_what_is_faster_stays_and_is_what_the_next_edit_starts_from(tmp_path: Path) -> None:
    path = built(swished, tmp_path / "net.onnx")
    raced: list[tuple[Path, Path]] = []

    def timed(now: Path, candidate: Path) -> float:
        raced.append((now, candidate))
        return 0.5 if len(raced) == 1 else 1.0

    found = repaired(path, timed)
    assert [step.kept for step in found.steps] == [True, *[False] * (len(raced) - 1)]
    assert found.spine != path
    assert found.file == raced[0][1] == raced[1][0]
    assert not running(found.file).lost
    assert found.plan.model_digest != planned(path).model_digest


def test_where_all_together_does_not_pay_each_edit_has_its_own_turn(tmp_path: Path) -> None:
    def pattern(net: Net) -> None:
        swished(net)
        net.gemm(net.put("ReduceMean", net.nodes[-1].output[0], net.store(np.array([2, 3])), keepdims=0), 8, 4)

    found = repaired(built(pattern, tmp_path / "net.onnx"), lambda _now, _candidate: 1.0)
    names = [step.name for step in found.steps if step.level == "spine"]
    assert names == ["hardswish-in-steps + mean-as-pool", "hardswish-in-steps", "mean-as-pool"]


def test_an_edit_that_changes_the_numbers_never_gets_to_the_clock(tmp_path: Path, monkeypatch: Any) -> None:
    def spoil(sketch: Sketch) -> int:
        bias = next(tensor for tensor in sketch.model.graph.initializer if len(tensor.dims) == 1)
        bias.raw_data = np.full(bias.dims[0], 9.0, np.float32).tobytes()
        return 1

    bad = SpineEdit("spoil", "for this test", spoil)
    monkeypatch.setattr(loop, "SPINE_EDITS", (bad,))
    raced: list[Path] = []
    found = repaired(small_resnet(tmp_path / "net.onnx"), lambda _, candidate: raced.append(candidate) or 1.0)
    assert "changes the numbers" in found.steps[0].outcome
    assert not found.steps[0].kept
    assert found.steps[0].ratio is None
    assert len(raced) == len(found.steps) - 1


def test_an_edit_that_cannot_be_timed_is_a_step_with_its_reason(tmp_path: Path) -> None:
    def lost(_now: Path, _candidate: Path) -> float:
        raise DeviceError("the phone was unplugged")

    found = repaired(built(averaged, tmp_path / "net.onnx"), lost)
    assert found.steps
    assert all(step.outcome == "not measured: the phone was unplugged" for step in found.steps)


def test_a_real_clock_gives_a_file_that_runs_and_agrees(tmp_path: Path) -> None:
    """The times are this machine's own; what must hold is that the result is whole, whatever they say."""
    feeds = pictures(1)[0]

    def timed(now: Path, candidate: Path) -> float:
        sessions = [open_session(path) for path in (now, candidate)]
        rounds = [[_seconds(session.run, feeds) for session in sessions] for _ in range(9)]
        return statistics.median(second / first for first, second in rounds)

    path = built(swished, tmp_path / "net.onnx")
    found = repaired(path, timed)
    assert all(step.ratio is not None and step.kept == (step.ratio < loop.FASTER) for step in found.steps)
    assert sqnr_db(path, found.file) > 15


def _seconds(run: Callable[[Any], object], feeds: Any) -> float:
    began = time.perf_counter()
    run(feeds)
    return time.perf_counter() - began


def test_all_of_does_nothing_where_no_edit_fits(tmp_path: Path) -> None:
    model = graph.load(small_resnet(tmp_path / "net.onnx"))
    assert edited(model, all_of(model, SPINE_EDITS)) == (model, 0)
