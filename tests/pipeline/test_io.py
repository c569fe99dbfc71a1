"""What a target asks of a file's format, inputs and outputs is kept or refused with the reason."""

from __future__ import annotations

import pytest

from edgeexport.bundles import unpack
from edgeexport.cli import main
from tests.needs import need

INT8_IO = """
title = "A microcontroller-like phone"
runtime = "litert"
format = "tflite"
arch = "aarch64"
io = "int8"

[number_format]
activations = "int8"

[limits]
max_drop = 20.0  # the network is untrained: its classes lie close together
"""


def _rows(desk, target: str):
    return [row for row in desk.record()["rungs"] if row["target"] == target]


def test_a_target_with_int8_inputs_gets_a_bundle_with_int8_inputs_that_verifies(desk, capsys):
    need("litert")
    target = desk.write("bytes.toml", INT8_IO)
    assert desk.run(target=str(target)) == 0
    assert main(["verify", str(desk.bundle("bytes"))]) == 0
    signature = unpack(desk.bundle("bytes"), desk.folder / "unpacked").signature
    assert {spec.dtype for spec in (*signature.inputs, *signature.outputs)} == {"int8"}
    assert "golden 2" in capsys.readouterr().out


def test_a_float_file_never_ships_to_a_target_with_int8_inputs(desk):
    need("litert")
    target = desk.write("bytes.toml", INT8_IO)
    desk.edit("recipe.toml", '[[step]]\ndo = "quantize"\n', "")
    assert desk.run(target=str(target)) == 1
    assert not desk.bundle("bytes").exists()
    assert [row["reason"] for row in _rows(desk, "bytes")] == ["its inputs are float32, the target asks for int8"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('runtime = "litert"\nformat = "tflite"', 'runtime = "ort"\nformat = "onnx"', "io = int8 is for litert"),
        ('format = "tflite"', 'format = "onnx"', "litert has no format 'onnx'"),
        ('runtime = "litert"', 'runtime = "ort"', "ort has no format 'tflite'"),
    ],
)
def test_what_a_runtime_has_not_is_refused_before_any_work(desk, capsys, before, after, said):
    assert before in INT8_IO
    target = desk.write("odd.toml", INT8_IO.replace(before, after))
    assert desk.run(target=str(target)) == 2
    assert said in capsys.readouterr().err
    assert not (desk.folder / "work").exists()
