"""Pack: a model and everything that is known of it into one file, byte-identical for the same records.

The rule: a bundle is written whole or not at all, and passes its own check before it gets its name.
"""

from __future__ import annotations

import inspect
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeexport.bundles import npy
from edgeexport.bundles.container import write
from edgeexport.bundles.instructions import instructions
from edgeexport.bundles.read import MANIFEST, unpack
from edgeexport.bundles.verify import check
from edgeexport.errors import CorruptFile, ModelError, RequestError
from edgeexport.records.artifact import Signature
from edgeexport.records.base import digest, to_json
from edgeexport.records.manifest import FORMAT_VERSION, FileEntry, Golden, Manifest
from edgeexport.records.measurement import Measurement
from edgeexport.records.target import Tolerance
from edgeexport.workspace import publish

if TYPE_CHECKING:
    from edgeexport.runtimes.protocol import Feeds, Outputs


@dataclass(frozen=True)
class Example:
    """A golden: real inputs and the outputs they gave, in the model file's own signature; tolerance by output name."""

    inputs: Feeds
    outputs: Outputs
    tolerance: Mapping[str, float]


@dataclass(frozen=True)
class Parts:
    """The files of a bundle: model, goldens, records by name ("run", "parity", ...), the report's HTML."""

    model: Path
    examples: Sequence[Example]
    records: Mapping[str, Any] = field(default_factory=dict)
    report: str = ""


def pack(out: Path | str, draft: Manifest, *, parts: Parts) -> Manifest:
    """Write the bundle `out` and return its manifest.

    draft: everything that is known; its format_version, model, model_digest, files and goldens are filled in here.
    Raises RequestError for parts that do not fit together, NoSpace when the disk is full; `out` is then untouched.
    """
    out = Path(out)
    try:
        model = parts.model.read_bytes()
    except OSError as error:
        raise RequestError(f"{parts.model}: cannot be read: {error.strerror}") from error
    place = f"model/{_safe(parts.model.name)}"
    goldens, files = _golden_files(parts.examples)
    files |= {f"records/{_safe(name)}.json": to_json(record) for name, record in parts.records.items()}
    files[place] = model
    filled = msgspec.structs.replace(
        draft, format_version=FORMAT_VERSION, model=place, model_digest=digest(model), goldens=goldens
    )
    files |= _texts(filled, parts.report)
    return _written(filled, files, out=out)


def _written(draft: Manifest, files: Mapping[str, bytes], *, out: Path) -> Manifest:
    """Complete a manifest with its files, check the whole as a reader would, and give it its name."""
    entries = {name: FileEntry(digest(data), len(data)) for name, data in sorted(files.items())}
    manifest = msgspec.structs.replace(draft, files=entries)
    content = write({MANIFEST: to_json(manifest), **dict(sorted(files.items()))})
    _check_own(content, out)
    publish(out, content)
    return manifest


def reopened(
    path: Path,
    out: Path,
    *,
    threads: int,
    options: Mapping[str, Any],
    measurement: Measurement | None,
    record: Any,
) -> Manifest:
    """Write a bundle as `out` with other threads and session options; model, goldens and records stay as they are.

    measurement: with the new settings; those with the old ones are dropped, the verdict stays that of the old ones.
    record: why, kept as records/tuning.json. Raises CorruptFile when `path` is not what was packed.
    """
    with tempfile.TemporaryDirectory(prefix="edgeexport-reopen-") as name:
        folder = Path(name) / "bundle"
        old = unpack(path, folder)
        files = {entry: (folder / entry).read_bytes() for entry in old.files}
    changed = msgspec.structs.replace(
        old,
        target=msgspec.structs.replace(old.target, threads=threads),
        session_options=dict(options),
        measurement=measurement,
        source_measurement=None,
        comparison=None,
    )
    files |= {"records/tuning.json": to_json(record), "README.txt": instructions(changed).encode()}
    return _written(changed, files, out=out)


def golden_tolerance(
    outputs: Outputs, signature: Signature, *, tolerance: Tolerance, steps: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return how far each golden output may be off elsewhere, in the output's own numbers.

    Quantized outputs (those with a scale): `golden_steps` steps. Other integers are answers, such as a class: exact.
    Float outputs of an int8 model: that many of `steps` (output name -> size of one quantization step). Other floats:
    that many times `float_error` of the largest value.
    """
    import numpy as np

    allowed: dict[str, float] = {}
    for spec in signature.outputs:
        values = outputs[spec.name]
        if values.dtype.kind in "biu":
            step = 1.0 if spec.scale is not None else 0.0
        elif steps is not None and spec.name in steps:
            step = steps[spec.name]
        else:
            step = tolerance.float_error * float(np.abs(values).max(initial=0.0))
        allowed[spec.name] = tolerance.golden_steps * step
    return allowed


def manifest_schema() -> bytes:
    """Return the JSON schema of the manifest, as published in `manifest.schema.json` beside this file."""
    schema = msgspec.json.schema(Manifest)
    for definition in schema["$defs"].values():
        # Python 3.13 strips the indentation of docstrings, older ones do not.
        definition["description"] = inspect.cleandoc(definition.get("description", ""))
    return msgspec.json.format(msgspec.json.encode(schema, order="sorted"), indent=2) + b"\n"


def _golden_files(examples: Sequence[Example]) -> tuple[tuple[Golden, ...], dict[str, bytes]]:
    files: dict[str, bytes] = {}
    goldens = []
    for number, example in enumerate(examples):
        inputs = _place(f"golden/{number}/in", example.inputs, files=files)
        outputs = _place(f"golden/{number}/out", example.outputs, files=files)
        goldens.append(Golden(inputs=inputs, outputs=outputs, tolerance=dict(example.tolerance)))
    return tuple(goldens), files


def _place(start: str, arrays: Mapping[str, Any], *, files: dict[str, bytes]) -> dict[str, str]:
    """Add arrays to `files`; return tensor name -> path. Names that differ only in odd characters get a number."""
    paths: dict[str, str] = {}
    taken = {name.lower() for name in files}
    for index, (name, array) in enumerate(arrays.items()):
        path = f"{start}-{_safe(name)}.npy"
        if path.lower() in taken:
            path = f"{start}-{_safe(name)}-{index}.npy"
        taken.add(path.lower())
        files[path] = npy.dump(array)
        paths[name] = path
    return paths


def _texts(manifest: Manifest, report: str) -> dict[str, bytes]:
    files = {"README.txt": instructions(manifest).encode()}
    if manifest.licences:
        files["LICENCES.txt"] = "\n\n".join(manifest.licences).encode() + b"\n"
    if manifest.labels:
        files["labels.txt"] = "\n".join(manifest.labels).encode() + b"\n"
    if manifest.preprocess is not None:
        files["preprocess.json"] = to_json(manifest.preprocess)
    if report:
        files["report.html"] = report.encode()
    return files


def _check_own(content: bytes, out: Path) -> None:
    """Refuse parts that would make a bundle which fails its own check, before it exists."""
    try:
        found = check(BytesIO(content), origin=str(out))
    except CorruptFile as error:
        raise ModelError(f"{out}: would not verify: {error}") from error
    if found.differences:
        first = found.differences[0]
        raise ModelError(f"{out}: would not verify: {first.what}: expected {first.expected}, found {first.actual}")


def _safe(name: str) -> str:
    """A tensor or file name in letters that every file system has."""
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "_", name)[:80]
    return plain if re.match(r"[A-Za-z0-9_]", plain) else f"_{plain}"
