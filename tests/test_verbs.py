"""The Python API: every verb on live objects, and the whole road on a live network and live samples."""

from __future__ import annotations

import numpy as np
import pytest

import edgeexport
from tests.needs import need

INPUTS = {"image": (1, 3, 16, 16)}


def _net():
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 48, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 4),
    ).eval()


class Samples:
    """Live samples: noise, brighter in the channels that tell the class."""

    def __init__(self, count: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.labels = generator.integers(0, 4, count)
        self.pictures = generator.standard_normal((count, 3, 16, 16)).astype(np.float32)
        for picture, label in zip(self.pictures, self.labels, strict=True):
            picture[0] += 1.5 * (label // 2)
            picture[1] += 1.5 * (label % 2)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.pictures[index], int(self.labels[index])


def _feeds(count: int = 16):
    return [{"image": picture[None]} for picture in Samples(count, seed=3).pictures]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One network as fp32 and int8 ONNX, with its ranges and plan."""
    need("ort")
    folder = tmp_path_factory.mktemp("verbs")
    edgeexport.export(_net(), INPUTS, out=folder / "fp32.onnx", samples=_feeds(4))
    ranges = edgeexport.calibrate(folder / "fp32.onnx", _feeds())
    plan = edgeexport.quantize(folder / "fp32.onnx", ranges, target="linux-x86_64-vnni", out=folder / "int8.onnx")
    return folder, ranges, plan


def test_every_public_name_is_there():
    for name in dir(edgeexport):
        assert getattr(edgeexport, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="quantise"):
        _ = edgeexport.quantise


def test_a_pruned_copy_is_smaller_and_the_original_stays():
    module = _net()
    before = sum(weight.numel() for weight in module.parameters())
    pruned, plan = edgeexport.prune(module, INPUTS, step=edgeexport.Prune(macs=1.5))
    assert plan.macs_after * 1.5 <= plan.macs_before
    assert sum(weight.numel() for weight in pruned.parameters()) < before
    assert sum(weight.numel() for weight in module.parameters()) == before


def test_distilling_brings_a_student_closer_to_its_teacher():
    import torch

    pictures = Samples(128, seed=1).pictures
    teacher, student = _net(), _net()
    with torch.no_grad():
        for weight in student.parameters():
            weight.mul_(0.5)

    def gap() -> float:
        with torch.no_grad():
            return float((teacher(torch.tensor(pictures)) - student(torch.tensor(pictures))).abs().mean())

    before = gap()
    step = edgeexport.Distill(training=edgeexport.Training(epochs=4, batch_size=32, learning_rate=0.02))
    edgeexport.distill(student, teacher, data=edgeexport.TrainingData(pictures), step=step)
    assert gap() < before


def test_int8_is_close_to_float_but_not_equal(files):
    folder, _, plan = files
    assert plan.activations
    near = edgeexport.compare(folder / "fp32.onnx", folder / "int8.onnx", samples=_feeds(8), sqnr_db=15)
    assert near.holds, near.reason
    assert not edgeexport.compare(folder / "fp32.onnx", folder / "int8.onnx", samples=_feeds(8)).holds


def test_weights_are_trained_for_their_integers(files):
    folder, ranges, plain = files
    out = folder / "qat.onnx"
    data = edgeexport.TrainingData(Samples(64, seed=5).pictures)
    step = edgeexport.Quantize(training=edgeexport.Tuning(epochs=10, batch_size=16), learn_steps=True)
    plan = edgeexport.qat(folder / "fp32.onnx", ranges, data=data, target="linux-x86_64-vnni", out=out, step=step)
    assert plan.activations.keys() == plain.activations.keys()
    assert plan.weights != plain.weights
    near = edgeexport.compare(folder / "fp32.onnx", out, samples=_feeds(8), sqnr_db=30)
    assert near.holds, near.reason


def test_labels_of_values_are_no_classes_to_train_for(files):
    folder, ranges, plain = files
    pictures = Samples(16, seed=5).pictures
    data = edgeexport.TrainingData(pictures, np.full(16, 9), answers="values")
    step = edgeexport.Quantize(training=edgeexport.Tuning(steps=1, batch_size=16))
    out = folder / "values.onnx"
    plan = edgeexport.qat(folder / "fp32.onnx", ranges, data=data, target="linux-x86_64-vnni", out=out, step=step)
    assert plan.activations.keys() == plain.activations.keys()


def test_a_converted_int8_file_runs_in_its_runtime(files):
    need("litert")
    folder, ranges, _ = files
    out = folder / "int8.tflite"
    edgeexport.convert(folder / "fp32.onnx", target="raspberry-pi-5-litert", out=out, samples=_feeds(), ranges=ranges)
    parity = edgeexport.compare(folder / "fp32.onnx", out, samples=_feeds(8), sqnr_db=15)
    assert parity.holds, parity.reason


def test_files_are_measured_beside_the_first(files):
    folder, _, _ = files
    paths = [folder / "fp32.onnx", folder / "int8.onnx"]
    measured, _ = edgeexport.measure(paths, samples=_feeds(2), mode="smoke")
    assert [found.label for found in measured] == ["fp32.onnx", "int8.onnx"]
    assert all(found.memory or found.reasons for found in measured)


def test_the_whole_road_takes_a_live_network_and_live_samples(tmp_path):
    need("ort")
    recipe = edgeexport.Recipe(
        model=edgeexport.ModelSpec(factory=_net(), inputs=INPUTS),
        data=edgeexport.DataSpec(train=Samples(300, seed=1), evaluate=Samples(200, seed=2), calibration_count=32),
        limits=edgeexport.Limits(max_drop=5.0),
        step=(
            edgeexport.Train(training=edgeexport.Training(epochs=3, batch_size=32)),
            edgeexport.Quantize(),
        ),
        name="live",
    )
    folders = {"out": tmp_path / "out", "workspace": tmp_path / "work"}
    record = edgeexport.run(recipe, ["linux-arm64"], **folders)
    assert record.targets[0].bundle == "linux-arm64.bundle"
    assert record.targets[0].score.value > 60
    assert edgeexport.verify(tmp_path / "out" / "linux-arm64.bundle").holds
    again = edgeexport.run(recipe, ["linux-arm64"], **folders)
    assert again == record


def test_a_size_to_prune_to_is_counted_in_int8_for_a_target():
    module, step = _net(), edgeexport.Prune(max_size_mb=0.01, round_to=8)
    _, alone = edgeexport.prune(module, INPUTS, step=step)
    _, meant = edgeexport.prune(module, INPUTS, step=step, target="linux-arm64")
    assert [plan.goals[0].goal for plan in (alone, meant)] == ["max_size_mb"] * 2
    assert alone.goals[0].before == pytest.approx(4 * meant.goals[0].before, rel=0.3)
    assert meant.macs_after > alone.macs_after
