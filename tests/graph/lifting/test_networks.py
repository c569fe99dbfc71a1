"""Whole networks: exported by torch, lifted, compared with onnxruntime, exported again with a free batch."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper

from edgeexport.errors import ModelError, UnsupportedOperator
from edgeexport.graph import initializers, lift, lift_operators, with_initializers
from tests.graph.lifting import nets
from tests.graph.models import make_model
from tests.needs import need

ROUTES = pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "legacy"])
NETS = pytest.mark.parametrize("name", nets.NETS)


@functools.cache
def exported(name: str, dynamo: bool) -> onnx.ModelProto:
    return nets.export(name, dynamo=dynamo)


def on_ort(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString())
    return list(session.run(None, {session.get_inputs()[0].name: x}))


def as_list(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    return [value.detach().numpy() for value in (outputs if isinstance(outputs, tuple) else (outputs,))]


def agree(got: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@ROUTES
@NETS
def test_a_lifted_network_computes_what_onnxruntime_computes(name: str, dynamo: bool) -> None:
    model = exported(name, dynamo)
    x = torch.randn(5, *nets.NETS[name][1])
    agree(as_list(lift(model)(x)), on_ort(model, x.numpy()))


@ROUTES
@NETS
def test_a_lifted_network_passes_torch_export_with_a_free_batch(name: str, dynamo: bool) -> None:
    model = exported(name, dynamo)
    lifted = lift(model).eval()
    x = torch.randn(4, *nets.NETS[name][1])
    program = torch.export.export(lifted, (x,), dynamic_shapes=lifted.dynamic_batch())
    for count in (1, 3, 7):
        other = torch.randn(count, *nets.NETS[name][1])
        agree(as_list(program.module()(other)), on_ort(model, other.numpy()))


@NETS
def test_weights_are_parameters_under_their_onnx_names(name: str) -> None:
    net, _ = nets.build(name)
    lifted = lift(exported(name, True))
    trained = {key for key, _ in net.named_parameters()}
    kept = {key for key, _ in lifted.named_parameters()}
    assert {key for key in trained if key in initializers(exported(name, True))} <= kept


def test_statistics_of_batch_normalization_are_not_trained() -> None:
    lifted = lift(exported("perceptron", False))
    assert not [name for name, _ in lifted.named_parameters() if "running" in name]


def test_a_changed_weight_changes_both_worlds_alike() -> None:
    model = exported("mobilenet", True)
    lifted = lift(model)
    with torch.no_grad():
        for parameter in lifted.parameters():
            parameter.mul_(1.1)
    x = torch.randn(2, 3, 16, 16)
    changed = with_initializers(model, lifted.export_weights())
    agree(as_list(lifted(x)), on_ort(changed, x.numpy()))
    again = lift(model)
    again.load_weights(lifted.export_weights())
    agree(as_list(again(x)), as_list(lifted(x)))


def test_a_lifted_network_can_be_trained() -> None:
    lifted = lift(exported("perceptron", True))
    lifted(torch.randn(8, 12)).pow(2).sum().backward()
    assert all(parameter.grad is not None for parameter in lifted.parameters())


def test_a_tap_sees_and_changes_a_tensor() -> None:
    model = make_model([helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"])],
                       inputs={"x": ["n", 3]}, outputs=["y"])  # fmt: skip
    lifted = lift(model)
    lifted.tap("h", torch.nn.Threshold(1.5, 0.0))
    assert lifted(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[0.0, -2.0, -3.0]]
    with pytest.raises(ModelError, match="'nobody'"):
        lifted.tap("nobody", torch.nn.Identity())


def test_a_step_may_be_computed_otherwise() -> None:
    model = make_model([helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"])],
                       inputs={"x": ["n", 3]}, outputs=["y"])  # fmt: skip
    lifted = lift(model)
    lifted.compute("h", lambda run: lambda value: 2 * run(value))
    assert lifted(torch.tensor([[-1.0, 2.0, 3.0]])).tolist() == [[0.0, -4.0, -6.0]]
    with pytest.raises(ModelError, match="does not compute a tensor 'x'"):
        lifted.compute("x", lambda run: run)


def test_unknown_operators_are_refused_by_name_all_at_once() -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["d"], name="first"),
        helper.make_node("NonZero", ["x"], ["z"], name="second"),
    ]
    model = make_model(nodes, inputs={"x": [3, 3]}, outputs=["d"])
    with pytest.raises(UnsupportedOperator, match=r"Det \(Det node 'first'\); NonZero"):
        lift(model)


def test_an_attribute_torch_cannot_express_is_refused_by_name_and_value() -> None:
    node = helper.make_node("AveragePool", ["x"], ["y"], name="pool", kernel_shape=[2, 2], dilations=[2, 2])
    with pytest.raises(UnsupportedOperator, match=r"'pool'.*dilations = \[2, 2\]"):
        lift(make_model([node], inputs={"x": ["n", 1, 8, 8]}, outputs=["y"]))


def test_the_table_names_its_operators() -> None:
    assert {"Conv", "Gemm", "Resize", "Constant"} <= set(lift_operators())


CONVERT = """
import sys, collections, pathlib, numpy as np, torch, litert_torch
from edgeexport.graph import lift, load
from ai_edge_litert.interpreter import Interpreter
lifted = lift(load(pathlib.Path(sys.argv[1]))).eval()
x = torch.randn(1, 3, 16, 16)
litert_torch.convert(lifted, (x,)).export(sys.argv[2])
runner = Interpreter(sys.argv[2])
runner.allocate_tensors()
runner.set_tensor(runner.get_input_details()[0]["index"], x.numpy())
runner.invoke()
got = runner.get_tensor(runner.get_output_details()[0]["index"])
ops = collections.Counter(op["op_name"] for op in runner._get_ops_details())
print("RESULT", float(np.abs(got - lifted(x).detach().numpy()).max()), ops["TRANSPOSE"], dict(ops))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_a_lifted_network_converts_to_litert_with_few_transposes(name: str, tmp_path: Path) -> None:
    need("litert")
    (tmp_path / "m.onnx").write_bytes(exported(name, True).SerializeToString())
    command = [sys.executable, "-c", CONVERT, str(tmp_path / "m.onnx"), str(tmp_path / "m.tflite")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    result = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert result, done.stderr[-2000:]
    _, difference, transposes, *_ = result[0].split()
    assert float(difference) < 1e-4
    assert int(transposes) <= 3
