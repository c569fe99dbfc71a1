"""Verify answers for every byte, with a reason, and never calls a changed bundle whole."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeexport.bundles import container, pack, unpack, verify
from edgeexport.bundles.read import MANIFEST, decode_manifest
from edgeexport.bundles.verify import check
from edgeexport.errors import CorruptFile, MissingExtra, RequestError
from edgeexport.records.base import to_json
from edgeexport.records.manifest import FORMAT_VERSION
from tests.bundles.making import draft, parts, without, write_model
from tests.needs import ROOT

RELEASED = sorted((Path(__file__).parent / "released").glob("*/*.bundle"))


def found(content: bytes) -> tuple[str, ...]:
    return tuple(difference.what for difference in check(io.BytesIO(content), origin="b").differences)


def entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_manifest(content: bytes, **fields: object) -> bytes:
    """The bundle, well formed, with other fields in its manifest."""
    files = entries(content)
    manifest = {**json.loads(files[MANIFEST]), **fields}
    text = msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"
    return container.write({**files, MANIFEST: text})


def test_a_bundle_as_packed_holds_and_its_goldens_run(tiny):
    result = verify(tiny)
    assert (result.holds, result.differences, result.skipped) == (True, (), ())
    assert any("golden 1" in line for line in result.checked)


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.parent.name)
def test_bundles_of_every_release_stay_readable(path):
    result = verify(path)
    assert result.holds, result


def test_there_is_a_released_bundle_of_every_format_version():
    assert {path.parent.name for path in RELEASED} == {f"v{number}" for number in range(1, FORMAT_VERSION + 1)}


def test_a_flipped_bit_in_any_byte_is_found(content):
    chooser = np.random.default_rng(1)
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << int(chooser.integers(8))
        assert found(bytes(changed)), place


def test_ten_thousand_sampled_byte_changes_are_found(content):
    chooser = np.random.default_rng(2)
    for _ in range(10_000):
        changed = bytearray(content)
        changed[chooser.integers(len(content))] ^= int(chooser.integers(1, 256))
        assert found(bytes(changed))


def test_every_truncation_is_found(content):
    for length in range(0, len(content), 7):
        assert found(content[:length])


def edit_file(name: str, data: bytes):
    return lambda content: container.write({**entries(content), name: data})


def drop_file(name: str):
    return lambda content: container.write({key: data for key, data in entries(content).items() if key != name})


def rename(old: str, new: str):
    return lambda content: container.write({new if k == old else k: d for k, d in entries(content).items()})


def swap(first: str, second: str):
    def edit(content: bytes) -> bytes:
        files = entries(content)
        files[first], files[second] = files[second], files[first]
        return container.write(files)

    return edit


def reverse(content: bytes) -> bytes:
    return container.write(dict(reversed(entries(content).items())))


def local_start(content: bytes, name: str) -> int:
    start = content.index(b"PK\x03\x04")
    while content[start + container.LOCAL.size :][: len(name)] != name.encode():
        start = content.index(b"PK\x03\x04", start + 1)
    return start


def patch_local(field: int, value: int, *, name: str = "README.txt"):
    """Change a field of a local header, leaving the directory as it was."""

    def edit(content: bytes) -> bytes:
        start = local_start(content, name)
        fields = list(container.LOCAL.unpack_from(content, start))
        fields[field] = value
        return content[:start] + container.LOCAL.pack(*fields) + content[start + container.LOCAL.size :]

    return edit


def patch_end(field: int, value: int):
    def edit(content: bytes) -> bytes:
        fields = list(container.END.unpack(content[-container.END.size :]))
        fields[field] = value
        return content[: -container.END.size] + container.END.pack(*fields)

    return edit


def patch_directory(field: int, value: int):
    def edit(content: bytes) -> bytes:
        start = content.index(b"PK\x01\x02")
        fields = list(container.CENTRAL.unpack_from(content, start))
        fields[field] = value
        return content[:start] + container.CENTRAL.pack(*fields) + content[start + container.CENTRAL.size :]

    return edit


def repack(**options: object):
    """Write all entries with Python's zipfile, as an attacker would."""

    def edit(content: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", options.get("method", zipfile.ZIP_STORED)) as archive:
            for name, data in entries(content).items():
                archive.writestr(name, data)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for name in options.get("extra", ()):
                    archive.writestr(name, b"extra")
        return buffer.getvalue()

    return edit


STRUCTURAL = {
    "empty": lambda content: content[:0],
    "not a zip": lambda content: b"\x89PNG" + content[4:],
    "leading bytes": lambda content: b"#!/bin/sh\n" + content,
    "trailing byte": lambda content: content + b"\0",
    "zip comment": lambda content: content[:-2] + b"\x02\x00hi",
    "two bundles": lambda content: content + content,
    "second end record": lambda content: content + content[-22:],
    "no directory": lambda content: content[: content.index(b"PK\x01\x02")],
    "file removed": drop_file("LICENCES.txt"),
    "model removed": drop_file("model/tiny.onnx"),
    "manifest removed": drop_file("manifest.json"),
    "file added at the end": edit_file("zzz.txt", b""),
    "file added in the middle": lambda content: container.write(
        dict(sorted({**entries(content), "model/other.onnx": b"x"}.items(), key=lambda item: item[0] != MANIFEST))
    ),
    "file emptied": edit_file("labels.txt", b""),
    "file of the same length": edit_file("labels.txt", b"dog\ncat\neel\n"),
    "file renamed": rename("labels.txt", "labelz.txt"),
    "file renamed in case": rename("labels.txt", "LABELS.txt"),
    "goldens swapped": swap("golden/0/in-x.npy", "golden/1/in-x.npy"),
    "order reversed": reverse,
    "rewritten by another zip tool": repack(),
    "compressed": repack(method=8),
    "name twice": repack(extra=("labels.txt",)),
    "climbing name": repack(extra=("../../etc/passwd",)),
    "absolute name": repack(extra=("/etc/passwd",)),
    "backslash name": repack(extra=("..\\evil",)),
    "encrypted flag": patch_local(2, 1),
    "data descriptor flag": patch_local(2, 8),
    "deflated method": patch_local(3, 8),
    "another time": patch_local(4, 7),
    "another checksum": patch_local(6, 0),
    "size that lies": patch_local(8, 2**32 - 1),
    "both sizes lie": lambda content: patch_local(7, 5)(patch_local(8, 5)(content)),
    "extra field": patch_local(10, 4),
    "symbolic link in the directory": patch_directory(15, 0o120777 << 16),
    "executable in the directory": patch_directory(15, 0o100755 << 16),
    "directory points elsewhere": patch_directory(16, 99),
    "directory name length": patch_directory(10, 5),
    "another disk": patch_end(1, 1),
    "count that lies": patch_end(4, 3),
    "directory size that lies": patch_end(5, 1),
    "directory offset that lies": patch_end(6, 0),
}


@pytest.mark.parametrize("name", STRUCTURAL)
def test_a_structural_edit_is_found(content, name):
    changed = STRUCTURAL[name](content)
    assert changed != content
    assert found(changed)


WRONG_MANIFESTS = {
    "unknown field": {"extra": 1},
    "climbing name": {"files": {"../up": {"bytes": 1, "digest": "sha256:0"}}},
    "absolute name": {"files": {"/etc/passwd": {"bytes": 1, "digest": "sha256:0"}}},
    "backslash name": {"files": {"a\\b": {"bytes": 1, "digest": "sha256:0"}}},
    "drive name": {"files": {"c:/b": {"bytes": 1, "digest": "sha256:0"}}},
    "NUL in a name": {"files": {"a\0b": {"bytes": 1, "digest": "sha256:0"}}},
    "unicode name": {"files": {"é": {"bytes": 1, "digest": "sha256:0"}}},
    "names that differ in case": {"files": {key: {"bytes": 1, "digest": "sha256:0"} for key in ("a", "A")}},
    "file that is a folder": {"files": {key: {"bytes": 1, "digest": "sha256:0"} for key in ("a", "a/b")}},
    "itself": {"files": {"manifest.json": {"bytes": 1, "digest": "sha256:0"}}},
    "negative size": {"files": {"a": {"bytes": -1, "digest": "sha256:0"}}},
    "huge size": {"files": {"a": {"bytes": 2**62, "digest": "sha256:0"}}},
    "model that is not there": {"model": "model/other.onnx"},
    "another model digest": {"model_digest": "sha256:00"},
    "labels that differ": {"labels": ["a", "b", "c"]},
    "preprocess left out": {"preprocess": None},
    "golden left out": {"goldens": []},
    "runtime of another type": {"runtime": 5},
    "version of another type": {"format_version": "1"},
    "version zero": {"format_version": 0},
}


@pytest.mark.parametrize("name", WRONG_MANIFESTS)
def test_a_well_formed_bundle_whose_manifest_is_wrong_is_found(content, name):
    assert found(with_manifest(content, **WRONG_MANIFESTS[name]))


@pytest.mark.parametrize("text", [b"", b"[]", b"nul", b"[" * 100_000, b'{"a": 1, "a": 2}', b"\xff"])
def test_a_manifest_that_is_none_is_found(content, text):
    assert found(container.write({**entries(content), MANIFEST: text})) == (MANIFEST,)


def test_the_message_names_the_file_and_both_values(content):
    changed = edit_file("labels.txt", b"dog\ncat\neel\n")(content)
    (difference,) = check(io.BytesIO(changed), origin="b").differences
    assert difference.what == "labels.txt"
    assert difference.expected.startswith("sha256:")
    assert difference.actual.startswith("sha256:")


def test_a_newer_format_is_refused_with_what_to_do(content, tmp_path):
    path = tmp_path / "new.bundle"
    path.write_bytes(with_manifest(content, format_version=FORMAT_VERSION + 1, brand_new_field={}))
    with pytest.raises(RequestError, match=f"format {FORMAT_VERSION + 1}.*reads up to {FORMAT_VERSION}") as caught:
        verify(path)
    assert "upgrade" in caught.value.next_step


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_a_wrong_request(tmp_path, kind):
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(RequestError, match=kind):
        verify(path)


def test_another_models_answers_are_a_difference(tmp_path):
    model = write_model(tmp_path / "tiny.onnx")
    good = parts(model)
    off = [dataclasses.replace(e, outputs={"y": e.outputs["y"] + np.float32(0.01)}) for e in good.examples]
    pack(tmp_path / "b", draft(model), parts=dataclasses.replace(good, examples=off))
    result = verify(tmp_path / "b")
    assert not result.holds
    assert [d.what for d in result.differences] == ["golden 0, 'y'", "golden 1, 'y'"]
    assert result.differences[0].actual == "off by 0.01"
    assert not any(line.startswith("golden ") for line in result.checked)


def test_a_file_its_runtime_cannot_open_is_a_difference(tmp_path):
    model = tmp_path / "tiny.onnx"
    model.write_bytes(b"not a model")
    pack(tmp_path / "b", draft(model), parts=parts(model))
    result = verify(tmp_path / "b")
    assert (result.holds, result.differences[0].what) == (False, "goldens")


def test_without_the_runtime_goldens_are_skipped_with_the_command_that_adds_it(tiny, monkeypatch):
    module = importlib.import_module("edgeexport.bundles.verify")

    def absent(*_: object, **__: object) -> None:
        raise MissingExtra("onnxruntime", extra="ort", purpose="running the model")

    monkeypatch.setattr(module, "_open", absent)
    result = verify(tiny)
    assert result.holds
    assert "pip install 'edgeexport[ort]'" in result.skipped[0]


def test_a_runtime_that_this_version_does_not_know_is_skipped_by_name(tmp_path):
    model = write_model(tmp_path / "tiny.onnx")
    pack(tmp_path / "b", without(draft(model), runtime="abacus"), parts=parts(model))
    result = verify(tmp_path / "b")
    assert result.holds
    assert "abacus" in result.skipped[0]


def test_verify_needs_neither_torch_nor_onnx_nor_the_runtime(tiny):
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'PIL', 'click'): sys.modules[name] = None\n"
        "from edgeexport.bundles import verify\n"
        "from pathlib import Path\n"
        "result = verify(Path(sys.argv[1]))\n"
        "assert result.holds and not result.differences and len(result.skipped) == 1, result\n"
        "print(result.skipped[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'edgeexport[" in done.stdout


def test_unpack_gives_the_files_and_the_manifest(tiny, tmp_path, content):
    manifest = unpack(tiny, tmp_path / "out")
    written = {
        str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()
    }
    assert written == entries(content)
    assert to_json(manifest) == written[MANIFEST]
    assert decode_manifest(written[MANIFEST], origin="b") == manifest


def test_unpack_of_a_changed_bundle_leaves_nothing(content, tmp_path):
    changed = bytearray(content)
    changed[content.index(b"cat\n")] ^= 1
    (tmp_path / "b").write_bytes(bytes(changed))
    with pytest.raises(CorruptFile):
        unpack(tmp_path / "b", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_the_container_layout_is_what_the_specification_says():
    assert container.write({"a": b"hi"}) == (
        b"PK\x03\x04\x14\x00\x00\x00\x00\x00\x00\x00\x21\x00" + struct.pack("<III", 0xD8932AAC, 2, 2)
        + b"\x01\x00\x00\x00ahi"
        + b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x00\x00\x00\x00\x21\x00" + struct.pack("<III", 0xD8932AAC, 2, 2)
        + b"\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xa4\x81\x00\x00\x00\x00a"
        + b"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00" + struct.pack("<II", 47, 33) + b"\x00\x00"
    )  # fmt: skip
