"""Channels that are zero in all samples: their weights are taken out before the training, those of others are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edgeexport import graph
from edgeexport.quantization.qat import simulate
from edgeexport.quantization.qat.silent import rest_silent
from edgeexport.quantization.qat.simulation import Simulation
from edgeexport.runtimes.ort import open_session
from tests.quantization.nets import FORMATS, Net
from tests.quantization.qat.making import SAMPLES, planned

DEAD, GIANT = 2, 300.0


def deadened(path: Path, *, channel: int | None = DEAD, shared: bool = False, giant: float = GIANT) -> Path:
    """Write a depthwise net in which a channel before a depthwise layer is dead, as a folded batch norm leaves it.

    shared: a branch whose channels all live is convolved with the same weights.
    """
    net = Net(seed=4)
    x = net.put("Relu", net.conv("image", 3, 8))
    y = net.put("Relu", net.conv(x, 8, 8, group=8))
    if shared:
        lively = net.put("Relu", net.conv("image", 3, 8))
        more = net.put("Conv", lively, "w2", "w3", pads=[1] * 4, group=8, kernel_shape=[3, 3])
        y = net.put("Add", y, net.put("Relu", more))
    y = net.put("Relu", net.conv(y, 8, 16, size=1))
    net.gemm(net.put("Flatten", net.put("GlobalAveragePool", y)), 16, 10)
    net.save(path)
    if channel is None:
        return path
    model = graph.load(path)
    values = {name: value.copy() for name, value in graph.initializers(model).items()}
    values["w1"][channel] = -100.0
    values["w2"][channel] *= giant
    graph.save(graph.with_initializers(model, {name: values[name] for name in ("w1", "w2")}), path)
    return path


def listened(module: Simulation, path: Path) -> int:
    real = graph.lift(graph.load(path))
    batches = [tuple(torch.from_numpy(array) for array in feeds.values()) for feeds in SAMPLES]
    return rest_silent(module, real, batches=batches)


def error(module: Simulation, path: Path) -> float:
    """The mean square of what the simulation is off from float."""
    feeds = SAMPLES[0]
    (meant,) = open_session(path).run(feeds).values()
    with torch.no_grad():
        found = module(torch.from_numpy(feeds["image"])).numpy()
    return float(np.square(found - meant).mean())


def test_giant_weights_of_a_dead_channel_take_no_more_part_in_the_scale(tmp_path: Path) -> None:
    path = deadened(tmp_path / "net.onnx")
    for learn_steps in (False, True):
        module = simulate(path, planned(path, FORMATS["per-tensor"]), learn_steps=learn_steps)
        before, wide = error(module, path), module.plan("").weights["w2"].scales[0]
        assert listened(module, path) == 9
        assert not module.value("w2")[DEAD].any()
        assert module.value("w2")[DEAD - 1].all()
        assert module.plan("").weights["w2"].scales[0] < wide / 50
        assert error(module, path) < before / 10


def test_a_giant_whose_output_is_never_heard_goes_with_its_bias(tmp_path: Path) -> None:
    path = deadened(tmp_path / "net.onnx")
    model = graph.load(path)
    values = {name: value.copy() for name, value in graph.initializers(model).items()}
    values["w0"][DEAD] *= GIANT
    values["w1"][DEAD] = -1e5
    graph.save(graph.with_initializers(model, {name: values[name] for name in ("w0", "w1")}), path)
    module = simulate(path, planned(path, FORMATS["per-tensor"]))
    before = error(module, path)
    assert listened(module, path) == 9 + 27
    assert not module.value("w0")[DEAD].any()
    assert module.value("w1")[DEAD] == 0.0
    assert (module.value("w1") != 0).sum() == 7
    assert error(module, path) < before / 10


def test_an_output_without_bias_is_not_woken_by_taking_its_giant_alone(tmp_path: Path) -> None:
    net = Net(seed=5)
    x = net.put("Relu", net.conv("image", 3, 8))
    weight = (net.random.standard_normal((8, 8, 1, 1)) / 4).astype(np.float32)
    weight[DEAD] = np.abs(weight[DEAD])
    weight[DEAD, 0] = -300.0  # what comes before is never negative: a little of channel 0 silences this output
    y = net.put("Relu", net.put("Conv", x, net.store(weight), kernel_shape=[1, 1]))
    net.gemm(net.put("Flatten", net.put("GlobalAveragePool", y)), 8, 10)
    path = net.save(tmp_path / "net.onnx")
    model = graph.load(path)
    lively = {name: value.copy() for name, value in graph.initializers(model).items()}
    lively["w1"][0] = 50.0
    graph.save(graph.with_initializers(model, {"w1": lively["w1"]}), path)
    module = simulate(path, planned(path, FORMATS["per-tensor"]))
    before = error(module, path)
    assert listened(module, path) == 8
    assert not module.value("w2")[DEAD].any()
    assert error(module, path) < before / 10


def test_a_weight_of_common_size_stays_though_no_sample_hears_it(tmp_path: Path) -> None:
    path = deadened(tmp_path / "net.onnx", giant=1.0)
    module = simulate(path, planned(path, FORMATS["per-tensor"]))
    before = {name: value.copy() for name, value in module.stored_weights().items()}
    assert listened(module, path) == 0
    assert all(np.array_equal(value, before[name]) for name, value in module.stored_weights().items())


def test_what_is_heard_stays(tmp_path: Path) -> None:
    path = deadened(tmp_path / "net.onnx", channel=None)
    module = simulate(path, planned(path, FORMATS["per-tensor"]))
    before = {name: value.copy() for name, value in module.stored_weights().items()}
    assert listened(module, path) == 0
    assert all(np.array_equal(value, before[name]) for name, value in module.stored_weights().items())


def test_a_weight_that_another_layer_hears_stays(tmp_path: Path) -> None:
    path = deadened(tmp_path / "net.onnx", shared=True)
    module = simulate(path, planned(path, FORMATS["per-tensor"]))
    assert listened(module, path) == 0
    assert module.value("w2")[DEAD].all()
