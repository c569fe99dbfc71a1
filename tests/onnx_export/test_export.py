"""An exported file computes what the network computes, or there is no file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from edgeexport import graph, runtimes
from edgeexport.errors import DataError, ModelError
from edgeexport.onnx_export import clean, export_module, routes
from edgeexport.records.export import ExportRecord
from edgeexport.records.recipe import ModelSpec
from tests.needs import ROOT
from tests.onnx_export.networks import SPEC, Branches, BuiltIn, Net, TwoInputs, pictures, seeded


def export(module: nn.Module, path: Path, *, spec: ModelSpec = SPEC, samples: Any = None) -> ExportRecord:
    return export_module(module, spec, path=path, samples=samples or pictures(), tolerance=1e-4)


def perturbed(route: routes.Route) -> routes.Route:
    """The same route, with the last weights a little off: what a wrong exporter looks like."""

    def wrong(module: nn.Module, call: routes.Call) -> Any:
        model = route(module, call)
        values = {name: value + 0.01 for name, value in graph.initializers(model).items() if name == "head.weight"}
        assert values
        return graph.with_initializers(model, values)

    return wrong


def broken(module: nn.Module, call: routes.Call) -> Any:
    raise torch.onnx.errors.OnnxExporterError("operator `frobnicate` is unknown\nwith much advice")


def test_a_network_passes_on_the_first_route_and_its_numbers_are_recorded(tmp_path: Path) -> None:
    record = export(seeded(Net()), tmp_path / "net.onnx")
    assert (record.exporter, record.opset, record.notes) == ("dynamo", 20, ())
    assert record.parity.holds
    assert record.parity.samples == 4  # three samples and a batch of two
    assert record.parity.outputs[0].relative_error < 1e-5


@pytest.mark.parametrize("name", ["dynamo", "torchscript"])
def test_both_routes_leave_the_batch_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(routes, "ROUTES", tuple(row for row in routes.ROUTES if row[0] == name))
    module = seeded(Net())
    assert export(module, tmp_path / "net.onnx").exporter == name
    batch = np.concatenate([feeds["image"] for feeds in pictures(5)])
    found = runtimes.get("ort").open(tmp_path / "net.onnx").run({"image": batch})["output"]
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    signature = graph.signature(graph.load(tmp_path / "net.onnx"))
    assert [spec.shape for spec in (*signature.inputs, *signature.outputs)] == [("batch", 3, 8, 8), ("batch", 5)]


def test_a_wrong_first_exporter_gives_way_to_the_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, dynamo), second = routes.ROUTES
    monkeypatch.setattr(routes, "ROUTES", ((first, perturbed(dynamo)), second))
    record = export(seeded(Net()), tmp_path / "net.onnx")
    assert record.exporter == "torchscript"
    assert "dynamo disagrees with the network: output 'output': relative error" in record.notes[0]


def test_an_exporter_that_fails_gives_way_to_the_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "ROUTES", (("dynamo", broken), routes.ROUTES[1]))
    record = export(seeded(Net()), tmp_path / "net.onnx")
    assert record.exporter == "torchscript"
    assert "`frobnicate` is unknown" in record.notes[0]


def test_two_wrong_exporters_are_both_named_and_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, dynamo), _ = routes.ROUTES
    monkeypatch.setattr(routes, "ROUTES", (("dynamo", perturbed(dynamo)), ("torchscript", broken)))
    with pytest.raises(ModelError) as caught:
        export(seeded(Net()), tmp_path / "net.onnx")
    assert "dynamo disagrees" in str(caught.value)
    assert "torchscript failed: OnnxExporterError: operator `frobnicate`" in str(caught.value)
    assert caught.value.next_step
    assert not list(tmp_path.iterdir())


def test_control_flow_that_depends_on_data_is_caught_by_the_samples(tmp_path: Path) -> None:
    spec = ModelSpec(factory="networks:Branches", inputs={"x": (1, 3)})
    samples = [{"x": np.full((1, 3), value, np.float32)} for value in (1, -1, 2)]
    with pytest.raises(ModelError, match="torchscript disagrees"):
        export(seeded(Branches()), tmp_path / "net.onnx", spec=spec, samples=samples)


@pytest.mark.parametrize(("name", "count"), [("dynamo", 3), ("torchscript", 3), ("dynamo", 1)])
def test_a_network_with_its_batch_built_in_is_exported_with_a_batch_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    monkeypatch.setattr(routes, "ROUTES", tuple(row for row in routes.ROUTES if row[0] == name))
    record = export(seeded(BuiltIn()), tmp_path / "net.onnx", samples=pictures(count))
    assert record.exporter == name
    assert record.parity.holds
    assert record.parity.samples == max(count, 2)
    assert len(record.notes) == 1
    assert record.notes[0].startswith("the batch is fixed at 1: the network fails on a sample with the shapes")
    signature = graph.signature(graph.load(tmp_path / "net.onnx"))
    assert [spec.shape for spec in (*signature.inputs, *signature.outputs)] == [(1, 3, 8, 8), (1, 5)]


def test_a_free_batch_that_no_exporter_gets_right_is_given_up_with_the_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_alone(module: nn.Module, call: routes.Call) -> Any:
        return broken(module, call) if call.free else routes.export_with_dynamo(module, call)

    monkeypatch.setattr(routes, "ROUTES", (("dynamo", only_alone),))
    record = export(seeded(Net()), tmp_path / "net.onnx")
    assert record.notes[0].startswith("the batch is fixed at 1: dynamo failed: OnnxExporterError")


def test_inputs_go_by_name_and_outputs_by_the_keys_of_the_dict(tmp_path: Path) -> None:
    spec = ModelSpec(factory="networks:TwoInputs", inputs={"mask": (1, 7), "ids": (1, 7)})
    ids = np.arange(7).reshape(1, 7)
    samples = [{"ids": ids, "mask": np.linspace(0, 1, 7, dtype=np.float32).reshape(1, 7)}]
    export(seeded(TwoInputs()), tmp_path / "net.onnx", spec=spec, samples=samples)
    signature = graph.signature(graph.load(tmp_path / "net.onnx"))
    assert {item.name: item.dtype for item in signature.inputs} == {"ids": "int64", "mask": "float32"}
    assert [item.name for item in signature.outputs] == ["mean", "peak"]


def test_inputs_that_are_no_parameters_go_by_order_and_outputs_get_their_names(tmp_path: Path) -> None:
    spec = ModelSpec(factory="networks:Net", inputs={"photo": (1, 3, 8, 8)}, outputs=("logits",))
    export(seeded(Net()), tmp_path / "net.onnx", spec=spec, samples=[{"photo": pictures(1)[0]["image"]}])
    signature = graph.signature(graph.load(tmp_path / "net.onnx"))
    assert (signature.inputs[0].name, signature.outputs[0].name) == ("photo", "logits")


def test_the_module_keeps_its_modes(tmp_path: Path) -> None:
    module = seeded(Net()).train()
    module.norm.eval()
    export(module, tmp_path / "net.onnx")
    assert (module.training, module.norm.training, module.drop.training) == (True, False, True)


def test_weights_that_are_not_finite_are_refused_before_any_export(tmp_path: Path) -> None:
    module = seeded(Net())
    module.head.weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match="NaN or Inf"):
        export(module, tmp_path / "net.onnx")


def test_a_network_that_fails_on_its_sample_says_on_what(tmp_path: Path) -> None:
    spec = ModelSpec(factory="networks:Net", inputs={"image": (1, 1, 8, 8)})
    samples = [{"image": np.zeros((1, 1, 8, 8), np.float32)}]
    with pytest.raises(ModelError, match=r"fails on a sample with the shapes .*\[1, 1, 8, 8\]"):
        export(Net(), tmp_path / "net.onnx", spec=spec, samples=samples)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([{"picture": np.zeros((1, 3, 8, 8), np.float32)}], "picture"),
        ([{"image": np.zeros((1, 3, 9, 8), np.float32)}], r"\(1, 3, 9, 8\), not \(1, 3, 8, 8\)"),
    ],
)
def test_samples_that_do_not_fit_are_refused(tmp_path: Path, samples: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        export(Net(), tmp_path / "net.onnx", samples=samples)


def test_no_samples_is_an_error_not_agreement(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no samples"):
        export_module(Net(), SPEC, path=tmp_path / "net.onnx", samples=[], tolerance=1.0)


def test_output_names_must_be_as_many_as_outputs(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="names 2 outputs, the network returns 1"):
        export(Net(), tmp_path / "net.onnx", spec=msgspec.structs.replace(SPEC, outputs=("a", "b")))


def test_two_processes_in_two_folders_write_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from tests.onnx_export.networks import *\n"
        "from edgeexport import graph\n"
        "from edgeexport.onnx_export import clean, export_module\n"
        "export_module(seeded(Net()), SPEC, path=Path('raw.onnx'), samples=pictures(), tolerance=1e-4)\n"
        "graph.save(clean(graph.load(Path('raw.onnx')))[0], Path('spine.onnx'))\n"
    )
    for number, name in enumerate(["a", "another/much longer one"]):
        (tmp_path / name).mkdir(parents=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(number)}
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path / name, env=environment, check=True)
    for file in ("raw.onnx", "spine.onnx"):
        first, second = (path.read_bytes() for path in sorted(tmp_path.rglob(file)))
        assert first == second
        assert str(ROOT).encode() not in first


def test_both_routes_come_out_as_the_same_operators_after_cleaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for row in routes.ROUTES:
        monkeypatch.setattr(routes, "ROUTES", (row,))
        export(seeded(Net()), tmp_path / "net.onnx")
        counts.append(graph.op_counts(clean(graph.load(tmp_path / "net.onnx"))[0]))
    assert counts[0] == counts[1] == {"Conv": 2, "Clip": 1, "Relu": 1, "Reshape": 1, "Gemm": 1}


class Tanh(nn.Module):
    """The exporter calls the inner tensor `tanh`, as its operator."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.tanh(image).mean(dim=1) + 1.0


def test_an_output_may_be_called_as_the_exporter_calls_an_inner_tensor(tmp_path: Path) -> None:
    spec = ModelSpec(factory=Tanh(), inputs=SPEC.inputs, outputs=("tanh",))
    assert export(Tanh(), tmp_path / "net.onnx", spec=spec).exporter == "dynamo"
    assert [value.name for value in graph.load(tmp_path / "net.onnx").graph.output] == ["tanh"]
