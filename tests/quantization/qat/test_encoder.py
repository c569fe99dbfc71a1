"""Encoders: their linear layers and tables, simulated and trained in the static form."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeexport import graph
from edgeexport.errors import ModelError
from edgeexport.quantization import encoder_spines, quantize_dynamic, quantize_static_encoder
from edgeexport.quantization.qat import Lesson, simulate, train_quantized, twin_of
from edgeexport.quantization.qat.agreement import agreement, prove_stored
from edgeexport.quantization.qat.simulation import Simulation
from edgeexport.quantization.qat.twin import qdq_twin
from edgeexport.records.recipe import Tuning
from edgeexport.runtimes.ort import open_session
from edgeexport.training import TrainingData
from tests.quantization.encoder_nets import sentences, small_encoder
from tests.quantization.qat.making import ENCODERS, planned_encoder


@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize("learn_steps", [False, True], ids=["following", "learned"])
def test_an_encoder_is_simulated_to_the_bit_and_within_one_step(
    reduce_range: bool, learn_steps: bool, tmp_path: Path
) -> None:
    path, int8 = small_encoder(tmp_path / "net.onnx"), tmp_path / "int8.onnx"
    plan = planned_encoder(path, numbers=msgspec.structs.replace(ENCODERS, reduce_range=reduce_range))
    module = simulate(path, plan, form="encoder", learn_steps=learn_steps)
    twin = twin_of(path, plan, form="encoder", int8=int8)
    prove_stored(module, twin)
    found = agreement(module, twin, int8=int8, samples=sentences(4))
    assert (len(twin.weights), len(twin.biases)) == (11, 0)
    assert found.worst <= 1
    assert found.equal >= 0.999 * found.values


def test_a_smoothed_encoder_with_its_outliers_split_is_simulated_too(tmp_path: Path) -> None:
    spines = encoder_spines(small_encoder(tmp_path / "net.onnx"), sentences(8), folder=tmp_path)
    plan, int8 = planned_encoder(spines.split), tmp_path / "int8.onnx"
    module, twin = simulate(spines.split, plan, form="encoder"), twin_of(spines.split, plan, form="encoder", int8=int8)
    prove_stored(module, twin)
    assert agreement(module, twin, int8=int8, samples=sentences(4)).worst <= 1


def words(count: int) -> TrainingData:
    return TrainingData(np.concatenate([feeds["ids"] for feeds in sentences(count, seed=8)]))


def test_training_brings_an_encoder_nearer_to_float_and_the_same_file_is_written_again(tmp_path: Path) -> None:
    path, out = small_encoder(tmp_path / "net.onnx", giant=60.0), tmp_path / "trained.onnx"
    plan = planned_encoder(path)
    training = Tuning(epochs=3, batch_size=16, learning_rate=0.0003, optimizer="adamw")
    trained = train_quantized(
        path, plan, data=words(512), out=out, lesson=Lesson(training, classes=False, form="encoder", learn_steps=True)
    )
    files = {"plain": (path, plan), "trained": (out, trained.plan)}
    judged = sentences(40, seed=9)
    meant = [open_session(path).run(feeds) for feeds in judged]
    errors = {}
    for name, (model, numbers) in files.items():
        quantize_static_encoder(model, numbers, out=tmp_path / "int8.onnx")
        session = open_session(tmp_path / "int8.onnx")
        gaps = [np.square(session.run(feeds)[key] - value) for feeds, real in zip(judged, meant, strict=True)
                for key, value in real.items()]  # fmt: skip
        errors[name] = float(np.mean(gaps))
    assert errors["trained"] < 0.7 * errors["plain"]


def test_a_plan_with_one_scale_a_weight_starts_from_those_for_each_column_as_its_file_does(tmp_path: Path) -> None:
    path, int8 = small_encoder(tmp_path / "net.onnx"), tmp_path / "int8.onnx"
    plan = planned_encoder(path, numbers=msgspec.structs.replace(ENCODERS, per_channel=False))
    prove_stored(simulate(path, plan, form="encoder"), twin_of(path, plan, form="encoder", int8=int8))


def test_scales_of_the_plan_stand_in_the_file_of_an_encoder(tmp_path: Path) -> None:
    path, int8 = small_encoder(tmp_path / "net.onnx"), tmp_path / "int8.onnx"
    plan = planned_encoder(path)
    name = next(iter(plan.weights))
    scales = tuple(2.0 * scale for scale in plan.weights[name].scales)
    wider = msgspec.structs.replace(plan.weights[name], scales=scales)
    quantize_static_encoder(path, msgspec.structs.replace(plan, weights={**plan.weights, name: wider}), out=int8)
    stored = graph.initializers(graph.load(int8))
    assert np.array_equal(stored[f"{name}_scale"], np.array(scales, np.float32))
    assert np.abs(stored[f"{name}_quantized"]).max() <= 64


def test_a_form_whose_ranges_are_found_at_run_time_is_refused_with_the_reason(tmp_path: Path) -> None:
    path, int8 = small_encoder(tmp_path / "net.onnx"), tmp_path / "int8.onnx"
    quantize_dynamic(path, out=int8)
    with pytest.raises(ModelError, match="DynamicQuantizeLinear: its ranges are those of each input"):
        qdq_twin(graph.load(path), graph.load(int8), plan=planned_encoder(path))


def test_a_weight_that_two_places_store_differently_is_refused(tmp_path: Path) -> None:
    path = small_encoder(tmp_path / "net.onnx")
    plan = planned_encoder(path)
    twin = twin_of(path, plan, form="encoder", int8=tmp_path / "int8.onnx")
    twin.weights.append(dataclasses.replace(twin.weights[0], axis=None))
    with pytest.raises(ModelError, match="stored in two ways"):
        Simulation(twin, plan)


@pytest.mark.slow
def test_bert_as_transformers_has_it_is_simulated_within_one_step(tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel

    import edgeexport
    from tests.real.minilm import SentenceEncoder

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = BertConfig(vocab_size=300, max_position_embeddings=16, attn_implementation="eager", **sizes)
    path, int8 = tmp_path / "net.onnx", tmp_path / "int8.onnx"
    random = np.random.default_rng(0)
    feeds = [
        {"ids": random.integers(0, 300, (1, 16)).astype(np.int64), "mask": np.ones((1, 16), np.int64)} for _ in range(8)
    ]
    integers = edgeexport.InputSpec(shape=(1, 16), dtype="int64")
    encoder = SentenceEncoder(BertModel(config, add_pooling_layer=False).eval())
    edgeexport.export(encoder, {"ids": integers, "mask": integers}, out=path, samples=feeds[:2])
    plan = planned_encoder(path, samples=feeds)
    module, twin = simulate(path, plan, form="encoder"), twin_of(path, plan, form="encoder", int8=int8)
    prove_stored(module, twin)
    found = agreement(module, twin, int8=int8, samples=feeds[:4])
    assert len(twin.weights) >= 12
    assert found.worst <= 1
    assert found.equal >= 0.999 * found.values
