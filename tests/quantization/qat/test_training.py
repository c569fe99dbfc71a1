"""Training for integers: what comes out is what was trained, it loses less, and what cannot be trained is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from edgeexport import graph
from edgeexport.errors import DataError, EdgeExportError, ModelError
from edgeexport.quantization import calibrate, plan_quantization, quantize
from edgeexport.quantization.qat import Lesson, simulate, train_quantized
from edgeexport.quantization.qdq import stored_points
from edgeexport.records.base import file_digest
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.recipe import Training, Tuning
from edgeexport.runtimes.ort import open_session
from edgeexport.training import TrainingData, resolve_loss, train
from tests.quantization.nets import FORMATS, Net, pictures, small_mobilenet, small_resnet
from tests.quantization.qat.making import noise, planned

SHORT = Tuning(epochs=4, batch_size=16)


@pytest.mark.parametrize("learn_steps", [False, True], ids=["following", "learned"])
def test_the_trained_weights_are_stored_on_the_plans_grid(learn_steps: bool, tmp_path: Path) -> None:
    path, out, int8 = small_resnet(tmp_path / "net.onnx"), tmp_path / "trained.onnx", tmp_path / "int8.onnx"
    plan = planned(path, FORMATS["per-channel"])
    trained = train_quantized(path, plan, data=noise(64), out=out, lesson=Lesson(SHORT, learn_steps=learn_steps))
    quantize(out, trained.plan, out=int8)
    real, stored = graph.initializers(graph.load(out)), graph.initializers(graph.load(int8))
    for name, point in trained.plan.weights.items():
        scales = np.array(point.scales, np.float32).reshape([-1] + [1] * (real[name].ndim - 1))
        assert np.array_equal(stored[f"{name}_quantized"] * scales, real[name]), name
    assert not np.array_equal(real["w0"], graph.initializers(graph.load(path))["w0"])
    moved = [name for name, point in plan.activations.items() if trained.plan.activations[name] != point]
    assert bool(moved) is learn_steps
    assert trained.plan.model_digest == file_digest(out)
    assert trained.agreement.startswith("simulation and onnxruntime: ")


def test_the_file_has_the_points_of_the_untrained_one(tmp_path: Path) -> None:
    path, out = small_mobilenet(tmp_path / "net.onnx"), tmp_path / "trained.onnx"
    plan = planned(path, FORMATS["per-tensor"])
    trained = train_quantized(path, plan, data=noise(32), out=out, lesson=Lesson(SHORT))
    for model, numbers in ((path, plan), (out, trained.plan)):
        quantize(model, numbers, out=model.with_suffix(".int8.onnx"))
    before, after = (stored_points(onnx.load(model.with_suffix(".int8.onnx"))) for model in (path, out))
    assert before.keys() == after.keys()


def test_the_same_training_gives_the_same_bytes(tmp_path: Path) -> None:
    path = small_mobilenet(tmp_path / "net.onnx")
    plan = planned(path, FORMATS["per-channel"])
    for name in ("first", "second"):
        train_quantized(path, plan, data=noise(32), out=tmp_path / name, lesson=Lesson(SHORT, learn_steps=True))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_plan_of_another_model_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path, other = small_resnet(tmp_path / "a.onnx"), small_mobilenet(tmp_path / "b.onnx")
    with pytest.raises(DataError, match="belongs to the model"):
        train_quantized(other, planned(path, FORMATS["per-channel"]), data=noise(8), out=tmp_path / "never.onnx")
    assert not (tmp_path / "never.onnx").exists()


def test_a_file_that_would_not_hold_what_was_trained_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeexport.quantization.qat.simulation import Simulation

    honest = Simulation.stored_weights

    def forgetful(self: Simulation) -> dict[str, NDArray[Any]]:
        return {name: value * np.float32(0.9) for name, value in honest(self).items()}

    monkeypatch.setattr(Simulation, "stored_weights", forgetful)
    path = small_resnet(tmp_path / "net.onnx")
    plan = planned(path, FORMATS["per-channel"])
    with pytest.raises(ModelError, match="other numbers than were trained"):
        train_quantized(path, plan, data=noise(16), out=tmp_path / "out.onnx", lesson=Lesson(SHORT))


def single(path: Path) -> Path:
    """Write a net with a batch of one built in."""
    net = Net(seed=3)
    x = net.put("Reshape", net.put("Relu", net.conv("image", 3, 4)), net.store(np.array([1, 1024], np.int64)))
    net.gemm(x, 1024, 10)
    return net.save(path)


def refused(kind: type[EdgeExportError], path: Path, *, data: TrainingData) -> EdgeExportError:
    """What training for integers says of this data."""
    ranges = calibrate(path, pictures(4), samples_digest="")
    plan = plan_quantization(path, ranges, numbers=FORMATS["per-channel"])
    with pytest.raises(kind) as caught:
        train_quantized(path, plan, data=data, out=path.with_name("never.onnx"), lesson=Lesson(SHORT))
    assert not path.with_name("never.onnx").exists()
    return caught.value


def test_a_model_that_takes_no_batch_of_two_is_refused_with_two_ways_out(tmp_path: Path) -> None:
    error = refused(ModelError, single(tmp_path / "net.onnx"), data=noise(16))
    assert "net.onnx: it cannot be trained, since it takes no batch of two: " in str(error)
    assert error.next_step == 'export the network with a free batch axis, or say qat = "never"'


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (np.zeros((16, 3, 16, 16), np.float64), "float64 [1, 3, 16, 16]"),
        ((np.zeros((16, 3, 16, 16), np.float32),) * 2, "float32 [1, 3, 16, 16], float32 [1, 3, 16, 16]"),
        (np.zeros((16, 16, 16, 3), np.float32), "float32 [1, 16, 16, 3]"),
    ],
    ids=["dtype", "one too many", "layout"],
)
def test_samples_that_a_model_fails_on_are_not_told_as_its_batch(inputs: Any, found: str, tmp_path: Path) -> None:
    error = refused(DataError, small_resnet(tmp_path / "net.onnx"), data=TrainingData(inputs))
    assert f"net.onnx: it fails on the first training sample, {found}: " in str(error)
    assert "batch of two" not in str(error)
    assert error.next_step.endswith("inputs, in this order: image float32 [batch, 3, 16, 16]")


def test_a_labelled_sample_is_learnt_from_its_label_too(tmp_path: Path) -> None:
    path = small_resnet(tmp_path / "net.onnx")
    plan = planned(path, FORMATS["per-channel"])
    plain = noise(32)
    labelled = dataclasses.replace(plain, labels=np.zeros(32, np.int64))
    found = []
    for data in (plain, labelled):
        train_quantized(path, plan, data=data, out=tmp_path / "out.onnx", lesson=Lesson(SHORT))
        (logits,) = open_session(tmp_path / "out.onnx").run({"image": plain.arrays[0]}).values()
        found.append(float(logits[:, 0].mean()))
    assert found[1] > found[0]


class Depthwise(nn.Module):
    """Depthwise separable blocks with batch norm and ReLU, ten classes."""

    def __init__(self, *, giant: float = 150.0) -> None:
        super().__init__()
        layers: list[nn.Module] = [*self._block(1, 16, 3, 1)]
        for _ in range(3):
            layers += [*self._block(16, 16, 3, 16), *self._block(16, 16, 1, 1)]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))
        for norm in layers[4::6]:
            # A dead channel of each depthwise layer with giant weights once folded: the layer's one scale is its.
            nn.init.constant_(norm.weight[:1], giant)
            nn.init.constant_(norm.bias[:1], -10 * giant)

    @staticmethod
    def _block(channels: int, into: int, size: int, groups: int) -> tuple[nn.Module, ...]:
        conv = nn.Conv2d(channels, into, size, padding=size // 2, groups=groups, bias=False)
        return conv, nn.BatchNorm2d(into), nn.ReLU()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(image)
        return found


def digits() -> tuple[TrainingData, TrainingData]:
    """The embedded digits, two thirds to learn from."""
    from edgeexport.data import open_samples

    pairs = list(open_samples("digits", Path()))
    pictures = np.stack([np.asarray(picture, np.float32).reshape(1, 8, 8) / 8 - 1 for picture, _ in pairs])
    labels = np.array([label for _, label in pairs], np.int64)
    late = np.arange(len(labels)) % 3 == 0
    return TrainingData(pictures[~late], labels[~late]), TrainingData(pictures[late], labels[late])


def score(path: Path, data: TrainingData) -> float:
    (logits,) = open_session(path).run({"image": data.arrays[0]}).values()
    return 100 * float((logits.argmax(axis=1) == data.labels).mean())


@pytest.mark.slow
def test_training_rescues_a_depthwise_net_that_one_scale_for_each_weight_breaks(tmp_path: Path) -> None:
    import edgeexport

    learnt, judged = digits()
    torch.manual_seed(0)
    net = Depthwise()
    train(net, learnt, loss=resolve_loss("cross_entropy"), settings=Training(epochs=8, batch_size=32))
    path, out = tmp_path / "net.onnx", tmp_path / "trained.onnx"
    edgeexport.export(net, {"image": (1, 1, 8, 8)}, out=path)
    samples = [{"image": learnt.arrays[0][index : index + 1]} for index in range(64)]
    ranges = calibrate(path, samples, samples_digest="")
    plan: QuantizationPlan = plan_quantization(path, ranges, numbers=FORMATS["per-tensor"])
    quantize(path, plan, out=tmp_path / "plain.int8.onnx")
    trained = train_quantized(path, plan, data=learnt, out=out, lesson=Lesson(Tuning(epochs=10, batch_size=32)))
    quantize(out, trained.plan, out=tmp_path / "trained.int8.onnx")
    real = score(path, judged)
    assert real >= 95
    assert score(tmp_path / "plain.int8.onnx", judged) < real - 5
    assert score(tmp_path / "trained.int8.onnx", judged) > real - 3


def test_weights_of_a_simulation_have_their_onnx_names(tmp_path: Path) -> None:
    path = small_resnet(tmp_path / "net.onnx")
    module = simulate(path, planned(path, FORMATS["per-channel"]))
    assert {"w0", "w1"} <= {name.removeprefix("lifted.") for name, _ in module.named_parameters()}


def test_float_targets_are_not_judged_as_classes(tmp_path: Path) -> None:
    """The loss by default is of classes: a network that is none is held to its float self alone."""
    path, pictures = small_resnet(tmp_path / "net.onnx"), noise(32).arrays[0]
    plan = planned(path, FORMATS["per-channel"])
    targets = np.full((32, 10), 0.5, np.float32)
    for name, data in (("bare", TrainingData(pictures)), ("labelled", TrainingData(pictures, targets))):
        train_quantized(path, plan, data=data, out=tmp_path / name, lesson=Lesson(SHORT, classes=False))
    assert (tmp_path / "bare").read_bytes() == (tmp_path / "labelled").read_bytes()
