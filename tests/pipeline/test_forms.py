"""Forms beyond static int8: those of linear layers, float16, and what the ladder says of them."""

from __future__ import annotations

import platform

from edgeexport.errors import DeviceError
from edgeexport.pipeline import encoders
from edgeexport.validation.subjects import PLANS

ENCODER = """
import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 64)
        self.norm = nn.LayerNorm(64)
        self.wide, self.narrow, self.head = nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 10)

    def forward(self, image):
        x = self.embed(image.squeeze(1))
        x = x + self.narrow(torch.relu(self.wide(self.norm(x))))
        return self.head(x.mean(dim=1))


def net():
    torch.manual_seed(0)
    return Encoder()
"""


def _rows(desk, target="linux-arm64"):
    return {row["name"]: row for row in desk.record()["rungs"] if row["target"] == target}


def test_an_encoder_ships_the_form_of_its_linear_layers_that_numbers_chose(desk):
    desk.write("models.py", ENCODER)
    assert desk.run() == 0
    rows = _rows(desk)
    shipped = next(row for row in rows.values() if row["status"] == "shipped")
    assert shipped["name"].split()[1:3] in (["int8", "static"], ["int8", "dynamic"], ["int8", "blockwise"])
    assert any("cosine" in note for note in shipped["notes"])
    assert not any("minmax" in name for name in rows)


def _here(desk):
    target = f'title = "here"\nruntime = "ort"\nformat = "onnx"\narch = "{platform.machine()}"\n'
    return str(desk.write("here.toml", target))


def test_an_encoder_ships_first_what_the_device_runs_fastest_of_what_holds(desk, monkeypatch):
    def share(road, target, *, files, feeds, machine):
        return 0.2 if "blockwise" in files[1].path.name else 0.6

    monkeypatch.setattr(encoders, "ratio", share)
    monkeypatch.setitem(PLANS, "brief", PLANS["smoke"])  # what ships is measured too
    desk.write("models.py", ENCODER)
    assert desk.run(target=_here(desk)) == 0
    first = next(row for row in _rows(desk, "here").values() if row["form"] == "int8")
    assert first["name"] == "source int8 blockwise"
    assert any("at 0.20 of its time" in note for note in first["notes"])


def test_a_form_that_cannot_be_timed_lets_the_usual_order_stand_and_is_not_kept(desk, monkeypatch):
    asked = []

    def share(road, target, *, files, feeds, machine):
        asked.append(files[1].path.name)
        raise DeviceError("the machine was too noisy")

    monkeypatch.setattr(encoders, "ratio", share)
    monkeypatch.setitem(PLANS, "brief", PLANS["smoke"])  # what ships is measured too
    desk.write("models.py", ENCODER)
    assert desk.run(target=_here(desk)) == 0
    rows = [name for name, row in _rows(desk, "here").items() if row["form"] == "int8"]
    assert rows[0].split()[2] in {"static", "dynamic"}
    assert asked
    assert list((desk.folder / "work" / "stages").glob("encoder-*"))
    assert not list((desk.folder / "work" / "stages").glob("encoder times-*"))


def test_one_calibration_sample_is_too_few_for_linear_forms_and_does_not_end_the_target(desk):
    desk.write("models.py", ENCODER)
    desk.edit("recipe.toml", 'metric = "agreement"', 'metric = "agreement"\ncalibration_count = 1')
    desk.edit("recipe.toml", 'do = "quantize"', 'do = "quantize"\nmethods = ["minmax"]\nimprove = "never"')
    assert desk.run() == 0
    rows = _rows(desk)
    told = rows["source int8 linear layers"]["reason"]
    assert "int8 cannot be built: 1 samples cannot both calibrate and compare; give at least two" in told
    assert any(row["status"] == "shipped" for row in rows.values())


def test_a_node_to_keep_that_is_not_there_ends_the_run(desk, capsys):
    desk.edit("recipe.toml", 'do = "quantize"', 'do = "quantize"\nkeep_float = ["conv_00"]')
    assert desk.run() == 2
    assert "no node 'conv_00'" in capsys.readouterr().err


def test_what_int8_cannot_hold_ships_in_float16_where_the_cpu_computes_it(desk):
    desk.edit("recipe.toml", 'do = "quantize"', 'do = "quantize"\nmethods = ["minmax"]\nkeep_float = []')
    desk.edit("recipe.toml", "[[step]]", "[limits]\nmax_drop = 0.0\nmax_size_mb = 0.07\n\n[[step]]")
    target = 'title = "board"\nruntime = "ort"\nformat = "onnx"\narch = "aarch64"\nfeatures = ["asimdhp", "fphp"]\n'
    assert desk.run(target=str(desk.write("half.toml", target))) == 0
    rows = _rows(desk, "half")
    assert rows["source fp16"]["status"] == "shipped"
    assert rows["source fp16"]["form"] == "fp16"
    assert rows["source fp16"]["artifact"]["bytes"] < 0.6 * 121_000
    plain = f'title = "here"\nruntime = "ort"\nformat = "onnx"\narch = "{platform.machine()}"\n'
    assert desk.run("--device", "none", target=str(desk.write("plain.toml", plain))) in {0, 1}
    assert "source fp16" not in _rows(desk, "plain")


def test_when_plain_int8_loses_too_much_weights_are_changed_to_suit_it(desk):
    desk.edit("recipe.toml", 'do = "quantize"', 'do = "quantize"\nmethods = ["minmax"]')
    desk.edit("recipe.toml", "[[step]]", "[limits]\nmax_drop = 0.0\n\n[[step]]")
    assert desk.run() == 0
    names = list(_rows(desk))
    tried = ["source int8 minmax", "source int8 rounded minmax", "source int8 equalized rounded minmax"]
    assert names[: len(tried)] == tried[: len(names)]
    assert tried[1] in names


def test_always_improving_ships_the_form_that_loses_least(desk):
    desk.edit("recipe.toml", 'do = "quantize"', 'do = "quantize"\nmethods = ["minmax", "mse"]\nimprove = "always"')
    desk.edit("recipe.toml", "[[step]]", "[limits]\nmax_drop = 100.0\n\n[[step]]")
    assert desk.run() == 0
    shipped = next(row for row in _rows(desk).values() if row["status"] == "shipped")
    assert shipped["name"].startswith("source int8")
    stages = [path.name.split("-")[0] for path in (desk.folder / "work" / "stages").iterdir()]
    assert stages.count("refine") == 3
    assert stages.count("convert") == 6


FRONT = """
import torch
from torch import nn


class Front(nn.Module):
    def __init__(self):
        super().__init__()
        self.power = nn.Conv2d(1, 16, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, 10))

    def forward(self, image):
        wide = self.power(image)
        return self.body(torch.pow(wide * wide * wide * wide + 1e-6, 0.05))


def net():
    torch.manual_seed(0)
    return Front()
"""


def test_layers_that_int8_ruins_are_left_in_float_and_the_rest_ships_in_int8(desk):
    desk.write("models.py", FRONT)
    desk.edit("recipe.toml", 'do = "quantize"', 'do = "quantize"\nmethods = ["minmax"]\nimprove = "never"')
    desk.edit("recipe.toml", "[[step]]", "[limits]\nmax_drop = 5.0\n\n[[step]]")
    assert desk.run() == 0
    rows = _rows(desk)
    shipped = next(row for row in rows.values() if row["status"] == "shipped")
    assert shipped["name"].endswith("in float")
    assert rows["source int8 minmax"]["status"] == "rolled back"
    assert shipped["drop"]["value"] <= 5.0
