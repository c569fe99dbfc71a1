"""An opened .tflite file: checked before it is opened, fed by name, run on XNNPACK.

The rule: wrong feeds are refused before anything is invoked, and a damaged file before an interpreter sees it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.errors import CorruptFile, DataError, MissingExtra, ModelError
from edgeexport.records.artifact import Signature, TensorSpec
from edgeexport.runtimes.litert import flatbuffer

if TYPE_CHECKING:
    from edgeexport.runtimes.protocol import Feeds, Outputs

PROBE_SECONDS = 60.0
_PROBE = (
    "import sys; from ai_edge_litert.interpreter import Interpreter as I; i = I(model_path=sys.argv[1]);"
    "i.allocate_tensors(); i.invoke()"
)
_STDERR = 2
_quiet = threading.Lock()


class LiteRTSession:
    """One open file. `run` takes and gives arrays in the file's own names, layout and dtypes."""

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        model = flatbuffer.read(path)
        self._interpreter = interpreter(path, threads=threads)
        stored = flatbuffer.stored_signature(model, origin=str(path))
        self.signature = describe(self._interpreter, stored)
        self._inputs = input_indices(self._interpreter)
        self._outputs = _indices(self._interpreter, "outputs")

    def run(self, feeds: Feeds) -> Outputs:
        """Run once. Raises DataError naming the input whose name, dtype or shape is not the signature's."""
        check_feeds(feeds, self.signature)
        for name, index in self._inputs.items():
            self._interpreter.set_tensor(index, feeds[name])
        self._interpreter.invoke()
        return {spec.name: self._interpreter.get_tensor(self._outputs[spec.name]) for spec in self.signature.outputs}


def interpreter(path: Path, *, threads: int = 1, keep_all: bool = False) -> Any:
    """Open a checked file and allocate its tensors; `keep_all` keeps every tensor readable and uses no delegate."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise MissingExtra("ai-edge-litert", extra="litert", purpose="running .tflite files") from error
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        with _without_chatter():
            opened = Interpreter(
                model_path=str(path),
                num_threads=threads,
                experimental_preserve_all_tensors=keep_all,
                experimental_op_resolver_type=plain if keep_all else OpResolverType.AUTO,
            )
            opened.allocate_tensors()
    except ValueError as error:
        raise CorruptFile(f"{path}: LiteRT does not open it: {error}") from error
    except RuntimeError as error:
        raise ModelError(f"{path}: this LiteRT cannot run it: {error}") from error
    return opened


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep what LiteRT logs while it opens a file off the user's terminal; what goes wrong is raised, not logged.

    Its logger has no switch that Python reaches, nor an environment variable (LiteRT issue 7420), so the process's
    stderr itself is turned away for the moment, by one thread at a time.
    """
    with _quiet:
        sys.stderr.flush()
        kept = os.dup(_STDERR)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, _STDERR)
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
            os.close(nowhere)


def describe(opened: Any, stored: Signature | None) -> Signature:
    """Return the signature of an open interpreter: what it says itself, order and layouts as stored in the file.

    Names come from the file's signature; a file without one is described by its tensors' names.
    """
    inputs = _specs(*_details(opened, "inputs"))
    outputs = _specs(*_details(opened, "outputs"))
    if stored is None:
        return Signature(inputs=tuple(inputs.values()), outputs=tuple(outputs.values()))
    return Signature(inputs=_ordered(inputs, stored.inputs), outputs=_ordered(outputs, stored.outputs))


def check_feeds(feeds: Feeds, signature: Signature) -> None:
    """Raise DataError unless the feeds are exactly the signature's inputs: names, dtypes, shapes."""
    import numpy as np

    names = [spec.name for spec in signature.inputs]
    if set(feeds) != set(names):
        raise DataError(f"feeds are {sorted(feeds)}, the file's inputs are {names}")
    for spec in signature.inputs:
        value = feeds[spec.name]
        if value.dtype != np.dtype(spec.dtype):
            raise DataError(f"input {spec.name!r} has dtype {value.dtype}, expected {spec.dtype}")
        if value.shape != spec.shape:
            raise DataError(f"input {spec.name!r} has shape {value.shape}, expected {spec.shape} ({spec.layout})")


def probe(path: Path) -> None:
    """Open the file and run it on zeros in a process of its own, so that a hostile file ends that one only.

    Raises CorruptFile naming the signal or what LiteRT said. Costs about a quarter of a second.
    """
    flatbuffer.read(path)
    command = [sys.executable, "-c", _PROBE, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise CorruptFile(f"{path}: LiteRT did not finish one inference in {PROBE_SECONDS:.0f} s") from error
    if done.returncode < 0:
        raise CorruptFile(f"{path}: LiteRT died of signal {-done.returncode} on it")
    if done.returncode:
        raise CorruptFile(f"{path}: LiteRT refuses it: {done.stderr.strip().splitlines()[-1:]}")


def input_indices(opened: Any) -> dict[str, int]:
    """Return the name of each input -> its tensor index, of an open interpreter."""
    return _indices(opened, "inputs")


def _details(opened: Any, side: str) -> tuple[list[str], list[dict[str, Any]]]:
    plain = opened.get_input_details() if side == "inputs" else opened.get_output_details()
    signatures = opened.get_signature_list()
    if not signatures:
        return [detail["name"] for detail in plain], plain
    key = flatbuffer.SIGNATURE_KEY if flatbuffer.SIGNATURE_KEY in signatures else next(iter(signatures))
    runner = opened.get_signature_runner(key)
    named = runner.get_input_details() if side == "inputs" else runner.get_output_details()
    return list(named), list(named.values())


def _specs(names: list[str], details: list[dict[str, Any]]) -> dict[str, TensorSpec]:
    return {name: _spec(name, detail) for name, detail in zip(names, details, strict=True)}


def _spec(name: str, detail: dict[str, Any]) -> TensorSpec:
    import numpy as np

    scales = detail["quantization_parameters"]["scales"]
    zero_points = detail["quantization_parameters"]["zero_points"]
    return TensorSpec(
        name=name,
        dtype=np.dtype(detail["dtype"]).name,
        shape=tuple(int(size) for size in detail["shape"]),
        scale=float(scales[0]) if len(scales) else None,
        zero_point=int(zero_points[0]) if len(zero_points) else None,
    )


def _ordered(found: dict[str, TensorSpec], stored: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    import msgspec

    if set(found) != {spec.name for spec in stored}:
        raise CorruptFile(f"the stored signature has {[s.name for s in stored]}, the file itself {sorted(found)}")
    return tuple(msgspec.structs.replace(found[spec.name], layout=spec.layout) for spec in stored)


def _indices(opened: Any, side: str) -> dict[str, int]:
    names, details = _details(opened, side)
    return {name: int(detail["index"]) for name, detail in zip(names, details, strict=True)}
