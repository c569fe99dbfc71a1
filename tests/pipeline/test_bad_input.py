"""Wrong requests: the right exit code, a message that names the thing, no traceback, and nothing half written."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.needs import need


def _lines(capsys) -> str:
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.count("error:") == 1
    return text


def _nothing_published(desk) -> None:
    assert not desk.bundle().exists()
    work = desk.folder / "work"
    assert not list((work / "tmp").iterdir()) if work.exists() else True


def test_a_missing_recipe_is_named(desk, capsys):
    (desk.folder / "recipe.toml").unlink()
    assert desk.run() == 2
    assert "recipe.toml: no such recipe" in _lines(capsys)


def test_a_recipe_that_is_no_toml_says_where(desk, capsys):
    desk.write("recipe.toml", "[model\n")
    assert desk.run() == 2
    assert "line 1" in _lines(capsys)


def test_an_unknown_key_gets_the_nearest_known_one(desk, capsys):
    desk.edit("recipe.toml", "metric =", "metrik =")
    assert desk.run() == 2
    text = _lines(capsys)
    assert "unknown key `data.metrik`" in text
    assert "did you mean `metric`?" in text


def test_an_unknown_target_lists_the_known_ones(desk, capsys):
    assert desk.run(target="linux-arm46") == 2
    assert "raspberry-pi-5" in _lines(capsys)


def test_an_unknown_device_is_refused(desk, capsys):
    assert desk.run("--device", "locl") == 2
    assert "locl" in _lines(capsys)


def test_inputs_of_another_shape_than_the_samples_name_both(desk, capsys):
    desk.edit("recipe.toml", "[1, 1, 8, 8]", "[1, 3, 8, 8]")
    assert desk.run() == 2
    text = _lines(capsys)
    assert "3" in text
    assert "(1, 1, 8, 8)" in text or "(1, 8, 8)" in text
    _nothing_published(desk)


def test_inputs_that_the_network_does_not_take_are_refused(desk, capsys):
    desk.edit("models.py", "nn.Conv2d(1, 32", "nn.Conv2d(2, 32")
    assert desk.run() == 2
    _lines(capsys)
    _nothing_published(desk)


def test_a_factory_that_fails_is_the_users_error_with_file_and_line(desk, capsys):
    desk.edit("models.py", "torch.manual_seed(0)", "raise KeyError('weights')")
    assert desk.run() == 2
    assert "models.py" in _lines(capsys)


def test_samples_of_another_dtype_are_refused(desk, capsys):
    _store(desk, np.array([["a"] * 64] * 40).reshape(40, 8, 8, 1))
    assert desk.run() == 2
    _lines(capsys)


def test_an_empty_data_set_is_refused(desk, capsys):
    _store(desk, np.zeros((0, 8, 8, 1), np.float32))
    assert desk.run() == 2
    assert "samples.npz" in _lines(capsys)


def test_nan_in_a_sample_is_refused_by_name(desk, capsys):
    pictures = np.random.default_rng(0).random((60, 8, 8, 1), np.float32)
    pictures[7, 2, 3, 0] = np.nan
    _store(desk, pictures)
    assert desk.run() == 2
    text = _lines(capsys)
    assert "nan" in text.lower() or "not finite" in text
    assert "7" in text
    _nothing_published(desk)


def test_nan_weights_are_refused_by_name(desk, capsys):
    desk.edit("models.py", "torch.manual_seed(0)\n    return", "torch.manual_seed(0)\n    made =")
    desk.write(
        "models.py",
        (desk.folder / "models.py").read_text()
        + "    with torch.no_grad():\n        made[2].weight[3] = float('nan')\n    return made\n",
    )
    assert desk.run() == 2
    assert "2.weight" in _lines(capsys)
    _nothing_published(desk)


def test_a_pickle_that_holds_more_than_weights_is_refused_and_not_run(desk, capsys):
    canary = desk.folder / "canary"

    class Attack:
        def __reduce__(self):
            return (Path.touch, (canary,))

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("weights/data.pkl", pickle.dumps({"state_dict": Attack()}))
        archive.writestr("weights/version", "3\n")
        archive.writestr("weights/byteorder", "little")
    (desk.folder / "weights.pth").write_bytes(content.getvalue())
    desk.edit("recipe.toml", '"models:net"', '"models:net"\nweights = "weights.pth"')
    assert desk.run() == 2
    assert "weights.pth" in _lines(capsys)
    assert not canary.exists()


def test_a_checkpoint_that_does_not_fit_lists_the_keys(desk, capsys):
    import torch

    torch.save({"state_dict": {"module.0.weight": torch.zeros(32, 1, 3, 3)}}, desk.folder / "weights.pth")
    desk.edit("recipe.toml", '"models:net"', '"models:net"\nweights = "weights.pth"')
    assert desk.run() == 2
    assert "2.weight" in _lines(capsys)


def test_a_corrupt_onnx_file_is_refused(desk, capsys):
    (desk.folder / "model.onnx").write_bytes(b"\x08\x07" + struct.pack("<20Q", *range(20)))
    desk.edit("recipe.toml", 'factory = "models:net"', 'onnx = "model.onnx"')
    assert desk.run() == 2
    assert "model.onnx" in _lines(capsys)


def test_a_missing_file_is_named(desk, capsys):
    desk.edit("recipe.toml", '"digits"', '"elsewhere.npz"')
    assert desk.run() == 2
    assert "elsewhere.npz" in _lines(capsys)


def test_a_missing_extra_names_the_command_that_adds_it(desk, capsys, monkeypatch):
    for name in ("litert_torch", "ai_edge_quantizer", "ai_edge_litert"):
        monkeypatch.setitem(sys.modules, name, None)
    assert desk.run(target="raspberry-pi-5-litert") == 3
    assert "pip install 'edgeexport[litert]'" in _lines(capsys)


def test_a_workspace_in_use_is_refused_with_its_owner(desk, capsys):
    from edgeexport.workspace import Workspace

    with Workspace(desk.folder / "work"):
        assert desk.run() == 3
    assert "in use by pid" in _lines(capsys)


@pytest.mark.faults
@pytest.mark.parametrize("call", ["fsync", "mkdir", "rename"])
def test_a_failing_call_on_a_full_disk_is_told_as_such_and_nothing_is_left(desk, call):
    need("strace")
    inject = (
        "strace",
        "-f",
        "-qq",
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:error=ENOSPC:when=6+",
        "-o",
        "/dev/null",
    )
    _full(desk, desk.start(before=inject))


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("size", ["64k", "256k", "600k"])
def test_a_disk_that_really_fills_up_is_told_as_such(desk, size):
    need("unshare")
    (desk.folder / "work").mkdir()
    mount = f'mount -t tmpfs -o size={size} tmpfs work && exec "$@"'
    _full(desk, desk.start(before=("unshare", "-rm", "sh", "-c", mount, "sh")))
    assert desk.start().returncode == 0


def _full(desk, done) -> None:
    assert done.returncode == 3, done.stderr
    assert "no space" in done.stderr
    assert "Traceback" not in done.stderr
    assert not desk.bundle().exists()


def test_a_bug_of_ours_says_so(capsys, monkeypatch):
    from edgeexport import cli

    def broken(_path: object) -> None:
        raise ZeroDivisionError("oops")

    import edgeexport.bundles.verify as _  # noqa: F401 # so that the module is there to be broken

    monkeypatch.setattr(sys.modules["edgeexport.bundles.verify"], "verify", broken)
    assert cli.main(["verify", "x.bundle"]) == 70
    text = _lines(capsys)
    assert "bug in edgeexport: ZeroDivisionError: oops" in text


def _store(desk, pictures: np.ndarray) -> None:
    labels = np.arange(len(pictures)) % 10
    np.savez(desk.folder / "samples.npz", images=pictures, labels=labels)
    desk.edit("recipe.toml", '"digits"', '"samples.npz"')
    desk.edit("recipe.toml", "[model]", 'preprocess = { layout = "CHW" }\n[model]')
