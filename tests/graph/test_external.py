"""External data: read from the model's own folder, and from nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeexport.errors import CorruptFile
from edgeexport.graph import initializers, load

SECRET = b"s3cret! " * 6


def outside(mlp: onnx.ModelProto, folder: Path, **fields: str) -> Path:
    """Write the model with weight `w` (48 bytes) in external data described by `fields`."""
    model = onnx.ModelProto()
    model.CopyFrom(mlp)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in fields.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path, mlp: onnx.ModelProto) -> Path:
    """A folder with a good data file, beside a secret one that no model may reach."""
    (tmp_path / "secret.bin").write_bytes(SECRET)
    inner = tmp_path / "model"
    (inner / "sub").mkdir(parents=True)
    data = mlp.graph.initializer[0].raw_data
    (inner / "w.bin").write_bytes(b"12345678" + data)
    (inner / "sub" / "w.bin").write_bytes(data)
    return inner


def test_data_in_the_own_folder_is_read(mlp: onnx.ModelProto, folder: Path) -> None:
    expected = initializers(mlp)["w"]
    for fields in ({"location": "w.bin", "offset": "8", "length": "48"}, {"location": "sub/w.bin"}):
        np.testing.assert_array_equal(initializers(load(outside(mlp, folder, **fields)))["w"], expected)


@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin", "sub/../../secret.bin", "./w.bin", "", "/etc/passwd", "/dev/zero", "/proc/self/environ",
        "..\\secret.bin", "C:secret.bin", "C:\\secret.bin", "\\\\host\\share", "w.bin\0.png", "sub//w.bin", "nowhere",
        "sub", "sub/", "model.onnx",
    ],
)  # fmt: skip
def test_a_location_elsewhere_is_refused(location: str, mlp: onnx.ModelProto, folder: Path) -> None:
    with pytest.raises(CorruptFile, match="initializer 'w'"):
        load(outside(mlp, folder, location=location))


@pytest.mark.parametrize("kind", ["link", "link in a folder", "linked folder", "hard link", "fifo"])
def test_a_file_that_leads_elsewhere_is_refused(kind: str, mlp: onnx.ModelProto, folder: Path) -> None:
    secret = folder.parent / "secret.bin"
    trap = folder / "sub" / "trap" if kind == "link in a folder" else folder / "trap"
    location = {"link in a folder": "sub/trap", "linked folder": "trap/secret.bin"}.get(kind, "trap")
    match kind:
        case "hard link":
            trap.hardlink_to(secret)
        case "fifo":
            os.mkfifo(trap)
        case "linked folder":
            trap.symlink_to(folder.parent)
        case _:
            trap.symlink_to(secret)
    with pytest.raises(CorruptFile, match="external data"):
        load(outside(mlp, folder, location=location))


@pytest.mark.parametrize(
    "fields",
    [
        {"offset": "-8"}, {"offset": "9"}, {"offset": "99999999999999999"}, {"offset": "1e3"}, {"offset": "0x8"},
        {"length": "-1"}, {"length": "47"}, {"length": "9" * 30}, {"offset": ""}, {"basepath": "/etc"},
        {"__dict__": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_a_range_that_lies_is_refused(fields: dict[str, str], mlp: onnx.ModelProto, folder: Path) -> None:
    with pytest.raises(CorruptFile, match="external data"):
        load(outside(mlp, folder, location="w.bin", **fields))


def test_external_data_without_a_location_is_refused(mlp: onnx.ModelProto, folder: Path) -> None:
    with pytest.raises(CorruptFile, match="location"):
        load(outside(mlp, folder, offset="0"))


def test_a_key_given_twice_is_refused(mlp: onnx.ModelProto, folder: Path) -> None:
    path = outside(mlp, folder, location="w.bin")
    model = onnx.ModelProto.FromString(path.read_bytes())
    model.graph.initializer[0].external_data.append(model.graph.initializer[0].external_data[0])
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CorruptFile, match="keys"):
        load(path)


def test_one_file_read_a_thousand_times_hits_the_limit(
    mlp: onnx.ModelProto, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeexport.graph.external.MAX_BYTES", 47)
    with pytest.raises(CorruptFile, match="48 bytes in all"):
        load(outside(mlp, folder, location="w.bin", offset="8"))
