"""Checkpoints: as users have them, complete and finite; nothing that could run code is run, nothing damaged loads."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from edgeexport.compression.checkpoint import check_finite, fit_state, load_checkpoint, load_weights, save_weights
from edgeexport.compression.prune import apply_pruning, plan_pruning
from edgeexport.compression.source import example_feeds, load_torch
from edgeexport.errors import CorruptFile, ModelError, NoSpace, RequestError
from edgeexport.records.recipe import InputSpec, ModelSpec, Prune
from tests.compression import nets


class Canary:
    """Its unpickling would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("suffix", ["pt", "pth", "th", "bin", "ckpt"])
@pytest.mark.parametrize("legacy", [True, False])
def test_what_torch_saves_is_read(tmp_path, suffix, legacy):
    path = tmp_path / f"w.{suffix}"
    torch.save(net().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    assert same(load_checkpoint(path), net().state_dict())


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "ema"])
def test_a_dict_around_the_weights_is_opened(tmp_path, key):
    path = tmp_path / "w.pt"
    torch.save({"epoch": 3, key: net().state_dict(), "optimizer": {"state": {0: {"m": torch.zeros(3)}}}}, path)
    assert same(load_checkpoint(path), net().state_dict())


def test_weights_come_before_their_moving_average(tmp_path):
    path = tmp_path / "w.pt"
    averaged = {name: value * 0 for name, value in net().state_dict().items()}
    torch.save({"state_dict_ema": averaged, "state_dict": net().state_dict()}, path)
    assert same(load_checkpoint(path), net().state_dict())


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.model."])
def test_prefixes_of_wrappers_are_taken_off(prefix):
    state = {prefix + name: value for name, value in net().state_dict().items()}
    assert same(fit_state(state, net(), origin="w"), net().state_dict())


def test_a_prefix_that_belongs_to_the_model_stays():
    module = nn.Module()
    module.model = net()
    assert same(fit_state(module.state_dict(), module, origin="w"), module.state_dict())


def test_counters_of_batch_norm_may_be_missing():
    state = {name: value for name, value in net().state_dict().items() if "num_batches" not in name}
    assert fit_state(state, net(), origin="w").keys() == state.keys()


def test_what_does_not_fit_is_listed():
    state = net().state_dict()
    state["extra"] = state.pop("0.bias")
    state["2.weight"] = torch.zeros(3, 8)
    with pytest.raises(ModelError) as caught:
        fit_state(state, net(), origin="w.pt")
    text = str(caught.value)
    assert text.startswith("w.pt")
    assert "1 missing: 0.bias" in text
    assert "1 unexpected: extra" in text
    assert "2.weight (3, 8) in the file, (2, 8) in the model" in text


@pytest.mark.parametrize(("bad", "said"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_named_with_their_place(bad, said, dtype):
    state = {"a": torch.zeros(2, dtype=dtype), "b": torch.zeros(3, 4, dtype=dtype)}
    state["b"][1, 2:] = bad
    with pytest.raises(ModelError, match=rf"`b` holds 2 .* out of 12, the first one {said} at \[1, 2\]"):
        check_finite(state, origin="w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.th", "w.bin", "w.ckpt"])
@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_pickle_that_asks_for_code_is_refused_by_name_and_not_run(tmp_path, name, form):
    canary, path = tmp_path / "canary", tmp_path / name
    content = {"state_dict": net().state_dict(), "hook": Canary(canary)}
    if form == "plain":
        path.write_bytes(pickle.dumps(Canary(canary), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(RequestError, match=r"mkdir") as caught:
        load_checkpoint(path)
    assert "safetensors" in caught.value.next_step
    assert not canary.exists()


def test_a_pickle_of_a_newer_protocol_is_not_run_either(tmp_path):
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Canary(tmp_path / "canary"), protocol=5))
    with pytest.warns(UserWarning, match="protocol"), pytest.raises(RequestError):
        load_checkpoint(tmp_path / "w.pt")
    assert not (tmp_path / "canary").exists()


def test_a_whole_pickled_module_is_refused_with_the_way_out(tmp_path):
    torch.save(net(), tmp_path / "w.pt")
    with pytest.raises(RequestError, match="Sequential") as caught:
        load_checkpoint(tmp_path / "w.pt")
    assert "state_dict" in caught.value.next_step


def test_the_environment_cannot_switch_the_safe_reader_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Canary(tmp_path / "canary"), tmp_path / "w.pt")
    with pytest.raises(RequestError):
        load_checkpoint(tmp_path / "w.pt")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["w.pt2", "w.pkl", "w.npz", "w.onnx", "w.txt", "weights"])
def test_other_kinds_of_file_are_refused_with_a_reason_and_a_next_step(tmp_path, name):
    torch.save(net().state_dict(), tmp_path / name)
    with pytest.raises(RequestError) as caught:
        load_checkpoint(tmp_path / name)
    assert name in str(caught.value)
    assert caught.value.next_step


@pytest.mark.parametrize("entries", [("code/x.py", "constants.pkl"), ("archive_format", "models/model.json")])
def test_programs_under_the_name_of_a_checkpoint_are_refused(tmp_path, entries):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for entry in ("data.pkl", *entries):
            archive.writestr(f"w/{entry}", b"x")
    with pytest.raises(RequestError, match=r"program"):
        load_checkpoint(tmp_path / "w.pt")


def test_a_compressed_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"0" * 10_000)
    with pytest.raises(CorruptFile, match="compressed"):
        load_checkpoint(tmp_path / "w.pt")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(RequestError, match="no such file"):
        load_checkpoint(tmp_path / "w.pt")


def test_a_file_without_weights_is_an_error(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="no weights"):
        load_checkpoint(tmp_path / "w.pt")


def damage(content, seed):
    """Cut the file, flip bits, or overwrite a stretch: by the seed."""
    random = np.random.default_rng(seed)
    content = bytearray(content)
    place = int(random.integers(0, len(content)))
    if seed % 3 == 0:
        return bytes(content[:place])
    if seed % 3 == 1:
        content[place] ^= 1 << int(random.integers(0, 8))
        return bytes(content)
    content[place : place + 16] = random.bytes(min(16, len(content) - place))
    return bytes(content)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_damaged_file_is_an_error_of_ours_or_loads_what_fits(tmp_path, form):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_weights(net(), path)
    else:
        torch.save(net().state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    good, refused = path.read_bytes(), 0
    for seed in range(60):
        path.write_bytes(damage(good, seed))
        try:
            load_weights(net(), path)
        except RequestError:
            refused += 1
    assert refused >= 20


def test_a_flipped_bit_in_the_weights_of_an_archive_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(net().state_dict(), path)
    content = bytearray(path.read_bytes())
    place = content.find(net()[0].weight.detach().numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match="checksum"):
        load_checkpoint(path)


def test_saved_weights_come_back_and_the_same_weights_have_the_same_bytes(tmp_path):
    one, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_weights(net(), one)
    save_weights(load_weights(net(), one), other)
    assert one.read_bytes() == other.read_bytes()
    assert same(safetensors.torch.load_file(one), net().state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_tied_weights_are_saved_under_both_names(tmp_path):
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    save_weights(module, tmp_path / "w.safetensors")
    assert same(load_checkpoint(tmp_path / "w.safetensors"), module.state_dict())


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    module = net()
    with torch.no_grad():
        module[2].bias[1] = float("nan")
    with pytest.raises(ModelError, match=r"2\.bias"):
        save_weights(module, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace, match="bytes"):
        save_weights(net(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


SPEC = ModelSpec(factory=nets.mlp, inputs={"row": (1, 12)})


def test_a_pruned_network_is_rebuilt_from_factory_plan_and_weights(tmp_path):
    module = nets.settled(nets.mlp)
    example = example_feeds(SPEC.inputs)
    plan = plan_pruning(module, example, step=Prune(macs=2.0))
    save_weights(apply_pruning(module, plan, example=example), tmp_path / "w.safetensors")
    rebuilt = load_torch(SPEC, tmp_path, plans=(plan,), weights=tmp_path / "w.safetensors")
    assert same(rebuilt.state_dict(), module.state_dict())
    assert not rebuilt.training


def test_plans_are_applied_to_the_weights_of_the_source(tmp_path):
    module = nets.settled(nets.mlp)
    save_weights(module, tmp_path / "w.safetensors")
    example = example_feeds(SPEC.inputs)
    plan = plan_pruning(module, example, step=Prune(macs=2.0))
    spec = ModelSpec(factory=nets.mlp, weights="w.safetensors", inputs=SPEC.inputs)
    rebuilt = load_torch(spec, tmp_path, plans=(plan,))
    assert same(rebuilt.state_dict(), apply_pruning(module, plan, example=example).state_dict())


def test_a_factory_is_found_by_reference(tmp_path):
    (tmp_path / "mine.py").write_text("from torch import nn\n\n\ndef tiny():\n    return nn.Linear(2, 1)\n")
    assert isinstance(load_torch(ModelSpec(factory="mine:tiny", inputs={"x": (1, 2)}), tmp_path), nn.Module)


def test_a_live_module_is_copied():
    module = net().train()
    loaded = load_torch(ModelSpec(factory=module, inputs={"x": (1, 4)}), Path())
    assert same(loaded.state_dict(), module.state_dict())
    assert loaded is not module
    assert module.training


def test_a_factory_that_gives_no_module_is_an_error():
    with pytest.raises(ModelError, match="OrderedDict"):
        load_torch(ModelSpec(factory=OrderedDict, inputs={"x": (1, 4)}), Path())


def test_a_factory_that_raises_is_an_error_of_the_request():
    def broken():
        raise KeyError("depth")

    with pytest.raises(RequestError, match="depth"):
        load_torch(ModelSpec(factory=broken, inputs={"x": (1, 4)}), Path())


@pytest.mark.real
def test_the_released_cifar_checkpoint_loads_as_users_have_it(real_data):
    recipes = Path(__file__).parents[1] / "real"
    weights = real_data / "checkpoints" / "resnet20-12fca82f.th"
    spec = ModelSpec(factory="models:resnet20", weights=str(weights), inputs={"image": (1, 3, 32, 32)})
    assert sum(value.numel() for value in load_torch(spec, recipes).parameters()) == 269_722


def test_example_feeds_have_the_declared_types():
    feeds = example_feeds({"ids": InputSpec((8, 6), "int64"), "row": (8, 3)})
    assert [(value.dtype.name, value.shape) for value in feeds.values()] == [("int64", (1, 6)), ("float32", (1, 3))]
    assert set(feeds["ids"].ravel()) <= {0, 1}


def test_a_checkpoint_that_holds_itself_is_told(tmp_path):
    content = {"epoch": 3}
    content["model"] = content
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(RequestError) as caught:
        load_checkpoint(tmp_path / "x.pt")
    assert "x.pt" in str(caught.value)


class Random(nn.Module):
    """Random Fourier features, which no weights file holds, and a layer that reads them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("directions", torch.randn(4, 8), persistent=False)
        self.last = nn.Linear(8, 2)

    def forward(self, rows):
        return self.last(torch.cos(rows @ self.directions))


def test_a_network_is_rebuilt_with_the_random_numbers_it_had_and_takes_none_of_others(tmp_path):
    spec = ModelSpec(factory=Random, inputs={"rows": (1, 4)})
    trained = load_torch(spec, tmp_path, seed=3)
    save_weights(trained, tmp_path / "w.safetensors")
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    rebuilt, other = (load_torch(spec, tmp_path, weights=tmp_path / "w.safetensors", seed=seed) for seed in (3, 4))
    assert torch.equal(torch.rand(3), wanted)
    assert same(rebuilt.state_dict(), trained.state_dict())
    assert torch.equal(rebuilt.directions, trained.directions)
    assert not torch.equal(other.directions, trained.directions)
