"""Reading and writing .onnx files.

The rule: `load` either returns a model that passed every check or raises one of our errors with the reason;
`save` either publishes the whole file or leaves what was there.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgeexport.errors import CorruptFile, MissingExtra, ModelError
from edgeexport.graph.external import read_external_data, regular_stream
from edgeexport.graph.structure import MAX_BYTES, check_scales, check_structure
from edgeexport.workspace import publish

if TYPE_CHECKING:
    from onnx import ModelProto


def need(package: str, *, purpose: str) -> None:
    """Raise MissingExtra unless `package` can be imported."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingExtra(package, extra="export", purpose=purpose) from error


def load(path: Path, *, external_root: Path | None = None) -> ModelProto:
    """Read an .onnx file that may be hostile: checked, external data inside, model-local functions inlined.

    external_root: the folder external data must lie in; the model's own by default.
    Raises CorruptFile or ModelError (UnsupportedOperator for an unknown domain) with path and reason.
    """
    need("onnx", purpose="reading an ONNX model")
    data, identity = _read_regular(path)
    model = parse(data, origin=str(path))
    del data
    check_structure(model, origin=str(path))
    read_external_data(model, external_root or path.parent, origin=str(path), model_file=identity)
    check_scales(model, origin=str(path))
    return _checked(model, origin=str(path))


def parse(data: bytes, *, origin: str) -> ModelProto:
    """Decode the bytes of a model without any check of what they say."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import ModelProto

    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise CorruptFile(f"{origin}: not an ONNX model, or a damaged one ({error})") from error
    return model


def save(model: ModelProto, path: Path) -> None:
    """Write the model, all data inside: private temporary file, fsync, rename. The same model gives the same bytes.

    Raises ModelError if it is 2 GiB or more, NoSpace if the disk is full, MachineError if the folder refuses.
    """
    size = model.ByteSize()
    if size >= MAX_BYTES:
        raise ModelError(f"{path}: the model has {size} bytes, an .onnx file holds less than {MAX_BYTES}")
    publish(path, model.SerializeToString(deterministic=True))


def _read_regular(path: Path) -> tuple[bytes, tuple[int, int]]:
    """Return the bytes and the (device, inode) of a regular file of at most MAX_BYTES; never blocks on a FIFO."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise CorruptFile(f"{path}: cannot be opened ({error})") from error
    with regular_stream(descriptor, where=str(path)) as stream:
        facts = os.fstat(stream.fileno())
        if facts.st_size > MAX_BYTES:
            raise CorruptFile(f"{path}: {facts.st_size} bytes, the limit is {MAX_BYTES}")
        return stream.read(MAX_BYTES), (facts.st_dev, facts.st_ino)


def _checked(model: ModelProto, *, origin: str) -> ModelProto:
    """Run ONNX's own checker and inline model-local functions."""
    import onnx
    from onnx import checker, inliner

    try:
        if not all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
            model = onnx.shape_inference.infer_shapes(model)
        checker.check_model(model)
        return inliner.inline_local_functions(model) if model.functions else model
    except (checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise ModelError(f"{origin}: not a valid ONNX model: {_first_lines(str(error))}") from error


def _first_lines(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:3])[:500]
