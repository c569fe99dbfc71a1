"""A bundle has one form, is written whole or not at all, and any zip tool reads it."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeexport.bundles import Example, golden_tolerance, npy, pack
from edgeexport.bundles.instructions import run_lines
from edgeexport.bundles.pack import manifest_schema
from edgeexport.bundles.read import decode_manifest
from edgeexport.errors import CorruptFile, DataError, ModelError, NoSpace, RequestError
from edgeexport.records.artifact import Signature, TensorSpec
from edgeexport.records.manifest import FORMAT_VERSION
from edgeexport.records.target import Tolerance
from tests.bundles.making import draft, make, parts, without, write_model
from tests.needs import ROOT, need

SCHEMA = ROOT / "edgeexport" / "bundles" / "manifest.schema.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    need("ort")
    return write_model(tmp_path / "tiny.onnx")


def test_the_same_records_give_the_same_bytes_wherever_and_whenever_they_are_packed(tiny, tmp_path):
    code = "import sys, pathlib; from tests.bundles.making import make; make(pathlib.Path(sys.argv[1]))"
    elsewhere = tmp_path / "a" / "much" / "longer" / "path"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    before = os.umask(0o077)
    try:
        subprocess.run([sys.executable, "-c", code, str(elsewhere)], check=True, env=environment, cwd=ROOT)
    finally:
        os.umask(before)
    assert (elsewhere / "tiny.bundle").read_bytes() == tiny.read_bytes()


def test_any_zip_tool_reads_a_bundle_with_the_manifest_first_and_everything_plain(tiny):
    with zipfile.ZipFile(tiny) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names == ["manifest.json", *sorted(names[1:])]
        for info in archive.infolist():
            assert (info.compress_type, info.date_time) == (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0))
            assert (info.external_attr >> 16, info.flag_bits, info.extra) == (stat.S_IFREG | 0o644, 0, b"")


def test_a_bundle_holds_all_that_is_needed_to_use_and_check_the_model(tiny):
    with zipfile.ZipFile(tiny) as archive:
        assert set(archive.namelist()) == {
            "manifest.json", "README.txt", "LICENCES.txt", "labels.txt", "preprocess.json", "report.html",
            "model/tiny.onnx", "records/measurement.json",
            "golden/0/in-x.npy", "golden/0/out-y.npy", "golden/1/in-x.npy", "golden/1/out-y.npy",
        }  # fmt: skip
        manifest = decode_manifest(archive.read("manifest.json"), origin="tiny")
        assert archive.read("labels.txt") == b"cat\ndog\neel\n"
        golden = np.load(io.BytesIO(archive.read("golden/0/in-x.npy")))
    assert (manifest.format_version, manifest.model) == (FORMAT_VERSION, "model/tiny.onnx")
    np.testing.assert_array_equal(golden, [[1, 2, 3, 4]])


def test_the_lines_in_its_readme_run_the_model_and_give_the_golden_outputs(tiny, tmp_path):
    with zipfile.ZipFile(tiny) as archive:
        archive.extractall(tmp_path)
        readme = archive.read("README.txt").decode()
    code = run_lines("ort")
    assert code in readme
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout == "y largest difference 0.0\n"


def test_a_full_disk_is_told_as_such_and_leaves_the_old_bundle(model, tmp_path, monkeypatch):
    out = tmp_path / "out" / "tiny.bundle"
    out.parent.mkdir()
    out.write_bytes(b"the old one")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace):
        pack(out, draft(model), parts=parts(model))
    assert out.read_bytes() == b"the old one"
    assert [path.name for path in out.parent.iterdir()] == ["tiny.bundle"]


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"labels": ("a\nb",)}, "labels"),
        ({"signature": Signature((TensorSpec("x", "float32", ("batch", 5)),), ())}, "golden"),
        ({"signature": Signature((TensorSpec("other", "float32", ("batch", 4)),), ())}, "golden"),
    ],
)
def test_parts_that_contradict_each_other_are_not_packed(model, tmp_path, fields, part):
    changed = without(draft(model), **fields)
    out = tmp_path / "tiny.bundle"
    with pytest.raises(ModelError, match=part):
        pack(out, changed, parts=parts(model))
    assert not out.exists()


def test_a_lineage_that_ends_in_another_model_is_not_packed(model, tmp_path):
    manifest = draft(model)
    with pytest.raises(ModelError, match="lineage"):
        pack(tmp_path / "tiny.bundle", without(manifest, lineage=manifest.lineage[:1]), parts=parts(model))


def test_a_figure_that_is_no_number_is_not_packed(model, tmp_path):
    manifest = draft(model)
    drop = msgspec.structs.replace(manifest.drop, bound=float("nan"))
    with pytest.raises(ModelError, match="manifest"):
        pack(tmp_path / "tiny.bundle", without(manifest, drop=drop), parts=parts(model))


def test_a_missing_model_file_is_named(model, tmp_path):
    with pytest.raises(RequestError, match="nowhere"):
        pack(tmp_path / "b", draft(model), parts=parts_of(model, tmp_path / "nowhere.onnx"))


def parts_of(model: Path, other: Path):
    return dataclasses.replace(parts(model), model=other)


def test_tensor_names_that_no_file_may_have_are_still_packed(model, tmp_path):
    names = ("model/in:0", "model/in_0", "MODEL/in:0", "../up", "ä")
    specs = tuple(TensorSpec(name, "float32", (1, 4)) for name in names)
    manifest = without(draft(model), signature=Signature(specs, (TensorSpec("y", "float32", ("batch", 3)),)))
    row = np.ones((1, 4), np.float32)
    example = Example(dict.fromkeys(names, row), {"y": np.ones((1, 3), np.float32)}, {"y": 0.0})
    packed = pack(tmp_path / "b", manifest, parts=dataclasses.replace(parts(model), examples=[example]))
    assert len(set(packed.goldens[0].inputs.values())) == len(names)


def test_golden_tolerance_is_in_steps_of_what_the_output_is_made_of():
    floats = [TensorSpec(name, "float32", (2,)) for name in ("stepped", "float")]
    integers = [TensorSpec("int", "int8", (2,), scale=0.5, zero_point=3), TensorSpec("class", "int64", (1,))]
    signature = Signature((), (*integers, *floats, TensorSpec("found", "bool", (1,))))
    outputs = {
        "class": np.array([7], np.int64),
        "found": np.array([True]),
        "int": np.array([1, -128], np.int8),
        "stepped": np.array([0.5, 1.0], np.float32),
        "float": np.array([-20, 10.0], np.float32),
    }
    tolerance = Tolerance(float_error=1e-3, golden_steps=4)
    allowed = golden_tolerance(outputs, signature, tolerance=tolerance, steps={"stepped": 0.1})
    assert allowed == pytest.approx({"int": 4.0, "class": 0.0, "stepped": 0.4, "float": 0.08, "found": 0.0})


def test_the_published_schema_is_current():
    if os.environ.get("EDGEEXPORT_UPDATE_GOLDENS"):
        SCHEMA.write_bytes(manifest_schema())
    assert SCHEMA.read_bytes() == manifest_schema(), "run the tests with EDGEEXPORT_UPDATE_GOLDENS=1"


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3, 4)])
def test_arrays_come_back_as_they_were_and_numpy_reads_them_too(dtype, shape):
    array = (np.arange(np.prod(shape, dtype=int)) % 2).astype(dtype).reshape(shape)
    data = npy.dump(array)
    for back in (npy.load(data, origin="a"), np.load(io.BytesIO(data))):
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(back, array)


def test_arrays_of_objects_are_not_stored():
    with pytest.raises(DataError, match="object"):
        npy.dump(np.array([object()]))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<f4', 'fortran_order': True, 'shape': (1,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'shape': (1,), }",
        "__import__('os').abort()",
        "(" * 3000,
    ],
)
def test_a_hostile_array_header_is_refused(header):
    data = npy.MAGIC + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 4
    with pytest.raises(CorruptFile, match=r"a\.npy"):
        npy.load(data, origin="a.npy")


def test_packing_twice_over_the_same_file_replaces_it_whole(tmp_path):
    need("ort")
    first = make(tmp_path).read_bytes()
    assert make(tmp_path).read_bytes() == first
