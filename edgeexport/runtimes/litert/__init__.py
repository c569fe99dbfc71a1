"""LiteRT: the spine → .tflite, through the lifted module, litert-torch and ai-edge-quantizer, and running the result.

The rule: converters run in a process of their own (`worker`), the numbers are ours (`assign`), and what could not be
paired with them is calibrated there and named in the notes. Nothing is imported before it is needed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeexport.errors import MissingExtra, ModelError
from edgeexport.progress import Progress, silent
from edgeexport.records.artifact import Signature
from edgeexport.records.base import digest, file_digest, to_json
from edgeexport.runtimes.litert import flatbuffer, session
from edgeexport.runtimes.litert.assign import Assignment, assign
from edgeexport.runtimes.litert.lower import FLOAT_FILE, PAIRS_FILE, write_samples
from edgeexport.runtimes.litert.pairing import real_probes
from edgeexport.runtimes.litert.process import run_worker
from edgeexport.runtimes.litert.quantize import INT8_FILE, NUMBERS_FILE, write_numbers
from edgeexport.runtimes.litert.session import LiteRTSession
from edgeexport.runtimes.litert.session import probe as probe
from edgeexport.runtimes.protocol import NO_OPTIONS, Conversion, Converted, Session

_CONVERTERS = {
    "litert_torch": "litert-torch",
    "ai_edge_quantizer": "ai-edge-quantizer",
    "ai_edge_litert": "ai-edge-litert",
    "torch": "torch",
    "onnxruntime": "onnxruntime",
}
_NAMED = 8


class LiteRT:
    """The LiteRT runtime: converts with litert-torch and ai-edge-quantizer, runs with ai-edge-litert on XNNPACK."""

    name = "litert"
    formats: tuple[str, ...] = ("tflite",)
    extra = "litert"
    packages: tuple[str, ...] = ("litert-torch", "ai-edge-quantizer", "ai-edge-litert", "torch", "onnxruntime")

    def __init__(self) -> None:
        self._last: tuple[str, dict[str, bytes]] | None = None

    def convert(self, job: Conversion, out: Path, *, progress: Progress = silent) -> Converted:
        """Write the .tflite of the spine to `out`: fp32 without a plan, static int8 with the plan's numbers otherwise.

        Batch is 1; pictures are NHWC. Raises UnsupportedOperator, ModelError or DataError about the model or the
        samples, MissingExtra for a package, MachineError for a converter that died or ran out of time or memory.
        """
        for module, package in _CONVERTERS.items():
            if importlib.util.find_spec(module) is None:
                raise MissingExtra(package, extra=self.extra, purpose="converting to LiteRT")
        with tempfile.TemporaryDirectory(prefix="edgeexport-litert-") as name:
            folder = Path(name)
            progress("lowering to LiteRT", None)
            self._lower(job, folder)
            notes = _float_notes(folder)
            if job.plan is None:
                return _publish(folder / FLOAT_FILE, out, notes=notes, floor=_float_floor(folder))
            progress("quantizing for LiteRT", 0.5)
            notes += _quantize(job, folder)
            # The converter's floor speaks of its fp32 operators; the int8 file was tried on this version.
            return _publish(folder / INT8_FILE, out, notes=notes, floor=f"ai-edge-litert {self.version()}")

    def open(self, path: Path, *, threads: int = 1, options: Mapping[str, Any] = NO_OPTIONS) -> Session:
        """Open a .tflite file on XNNPACK. There are no options.

        Raises CorruptFile for a damaged file, ModelError for one that this LiteRT cannot run or for an option. A file
        from a stranger should pass `probe` first: what passes the checks made here may still end the process.
        """
        if options:
            raise ModelError(f"LiteRT knows no session options, got {sorted(options)}")
        return LiteRTSession(path, threads=threads)

    def version(self) -> str:
        """Return the version of ai-edge-litert. Raises MissingExtra."""
        try:
            return importlib.metadata.version("ai-edge-litert")
        except importlib.metadata.PackageNotFoundError as error:
            raise MissingExtra("ai-edge-litert", extra=self.extra, purpose="running .tflite files") from error

    def _lower(self, job: Conversion, folder: Path) -> None:
        """Put the fp32 file and its pairs into `folder`.

        The last lowering is kept: the fp32 file and every int8 candidate of one spine share it.
        """
        write_samples(real_probes(job.samples()), folder)
        parts = [job.spine, *sorted(folder.glob("sample-*.npz"))]
        key = digest([file_digest(path) for path in parts])
        last = self._last
        if last is None or last[0] != key:
            run_worker(folder, "lower", settings={"spine": str(job.spine.resolve())})
            self._last = (key, {name: (folder / name).read_bytes() for name in (FLOAT_FILE, PAIRS_FILE)})
            return
        for name, content in last[1].items():
            (folder / name).write_bytes(content)


RUNTIME = LiteRT()


def _quantize(job: Conversion, folder: Path) -> tuple[str, ...]:
    """Quantize the fp32 file in `folder`; returns what is worth saying about it."""
    from edgeexport import graph

    plan, ranges = job.plan, job.ranges
    if plan is None or ranges is None:
        raise ModelError("int8 LiteRT needs the ranges together with the plan", next_step="calibrate first")
    spine = graph.load(job.spine)
    pairs = json.loads((folder / PAIRS_FILE).read_text(encoding="utf-8"))
    numbers = assign(flatbuffer.read(folder / FLOAT_FILE), pairs, spine=spine, plan=plan, ranges=ranges)
    write_numbers(numbers, folder / NUMBERS_FILE)
    if numbers.leftovers:
        for index, feeds in enumerate(job.samples()):
            write_samples([feeds], folder, start=index)
    settings = {
        "spine_signature": to_json(graph.signature(spine)).decode(),
        "per_channel": plan.numbers.per_channel,
        "float_io": job.target.io == "float32",
    }
    run_worker(folder, "quantize", settings=settings)
    return _int8_notes(numbers, len(pairs["activations"]))


def _publish(made: Path, out: Path, *, notes: tuple[str, ...], floor: str) -> Converted:
    """Store the final signature in the file, put it to `out` by rename, and say what it is."""
    like = made.with_name(FLOAT_FILE)
    stored = flatbuffer.stored_signature(flatbuffer.read(like), origin=like.name)
    final = session.describe(session.interpreter(made), stored)
    tree = flatbuffer.read(made)
    flatbuffer.put_signature(tree, final)
    partial = out.with_name(f".{out.name}.partial")
    try:
        flatbuffer.write(tree, partial)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return Converted(signature=_checked(final), notes=notes, floor=floor)


def _float_floor(folder: Path) -> str:
    """What the converter says of the operators it wrote."""
    stored = flatbuffer.metadata(flatbuffer.read(folder / FLOAT_FILE)).get(flatbuffer.MIN_VERSION, b"")
    oldest = stored.rstrip(b"\0").decode("ascii", "replace")
    return f"TensorFlow Lite {oldest}" if oldest else ""


def _checked(signature: Signature) -> Signature:
    free = [spec.name for spec in (*signature.inputs, *signature.outputs) if any(size == 0 for size in spec.shape)]
    if free:
        raise ModelError(f"LiteRT left the shapes of {free} open", next_step="fix all input shapes in the recipe")
    return signature


def _float_notes(folder: Path) -> tuple[str, ...]:
    transposes = flatbuffer.op_counts(flatbuffer.read(folder / FLOAT_FILE)).get("TRANSPOSE", 0)
    return (f"{transposes} TRANSPOSE operators",) if transposes > 1 else ()


def _int8_notes(numbers: Assignment, total: int) -> tuple[str, ...]:
    notes = [f"{len(numbers.ranges)} of {total} LiteRT tensors took our ranges"]
    if numbers.leftovers:
        shown = ", ".join(numbers.leftovers[:_NAMED])
        more = f" and {len(numbers.leftovers) - _NAMED} more" if len(numbers.leftovers) > _NAMED else ""
        notes.append(f"calibrated by LiteRT's own min/max over the calibration samples: {shown}{more}")
    if numbers.float_outputs:
        notes.append(f"left in float: {', '.join(numbers.float_outputs)}")
    return tuple(notes)
