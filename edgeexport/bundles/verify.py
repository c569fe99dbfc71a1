"""Verify: is this bundle what was packed, and does its model still give the stored answers.

The rule: every byte is accounted for. Needs neither torch, onnx nor the model's runtime; without the runtime the
goldens are listed as skipped, with the command that adds it. Who packed it is another question: that takes a signature.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from edgeexport import runtimes
from edgeexport.bundles import npy
from edgeexport.bundles.container import Mismatch
from edgeexport.bundles.read import LARGEST_KEPT, Contents, demand_bundle, open_regular, read_bundle
from edgeexport.errors import CorruptFile, EdgeExportError, MachineError
from edgeexport.progress import Progress, silent
from edgeexport.records.artifact import TensorSpec
from edgeexport.records.base import from_json
from edgeexport.records.manifest import Difference, Golden, Manifest, Verification
from edgeexport.records.recipe import Preprocess

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgeexport.runtimes.protocol import Feeds, Outputs, Session


@dataclass(frozen=True)
class Found:
    """What a check without the runtime found: the contents (None if it is no bundle), the goldens, the differences."""

    contents: Contents | None
    goldens: tuple[tuple[Feeds, Outputs], ...]
    differences: tuple[Difference, ...]


def verify(path: Path, *, goldens: bool = True, progress: Progress = silent) -> Verification:
    """Check every byte of a bundle against its manifest and re-run its goldens where its runtime is installed.

    A damaged or altered bundle is a result (`holds` is False, with the differences). Raises RequestError when there is
    no such file, or when it was written in a newer format; CorruptFile for a file that never was a bundle.
    """
    with tempfile.TemporaryDirectory(prefix="edgeexport-verify-") as name, open_regular(path) as stream:
        progress("reading", None)
        demand_bundle(stream, origin=str(path))
        found = check(stream, origin=str(path), folder=Path(name) if goldens else None)
        if found.contents is None or found.differences:
            return Verification(str(path), False, found.differences, (), ("goldens: not run on a changed bundle",))
        manifest = found.contents.manifest
        checked = [f"{len(manifest.files) + 1} files: names, sizes, headers, digests", "manifest"]
        if not goldens:
            return Verification(str(path), True, (), tuple(checked), ("goldens: not asked for",))
        progress("goldens", None)
        differences, more, skipped = _run_goldens(manifest, Path(name) / manifest.model, goldens=found.goldens)
    return Verification(str(path), not differences, tuple(differences), (*checked, *more), skipped)


def check(stream: BinaryIO, *, origin: str, folder: Path | None = None) -> Found:
    """Check a bundle's bytes and that its manifest fits them; write the model below `folder`, if given."""
    try:
        contents = read_bundle(stream, origin=origin, keep=_small, folder=folder, only="model")
    except Mismatch as error:
        return Found(None, (), (error.difference,))
    differences = [*contents.differences]
    if not differences:
        differences += _manifest_differences(contents)
    arrays: list[tuple[Feeds, Outputs]] = []
    if not differences:
        for number, golden in enumerate(contents.manifest.goldens):
            arrays.append(_load_golden(golden, contents, what=f"golden {number}", differences=differences))
    return Found(contents, tuple(arrays), tuple(differences))


def _small(name: str) -> bool:
    return name.startswith("golden/") or name in ("labels.txt", "preprocess.json")


def _manifest_differences(contents: Contents) -> list[Difference]:
    """Where the manifest contradicts the files or itself."""
    manifest, files = contents.manifest, contents.manifest.files
    found: list[Difference] = []

    def same(what: str, pair: tuple[object, object]) -> None:
        if pair[0] != pair[1]:
            found.append(Difference(what, str(pair[0]), str(pair[1])))

    if manifest.model not in files:
        return [Difference("model", "a file of the bundle", manifest.model)]
    same("model_digest", (files[manifest.model].digest, manifest.model_digest))
    if manifest.lineage:
        same("lineage, last digest", (manifest.model_digest, manifest.lineage[-1].digest))
    labels = contents.kept.get("labels.txt", b"").decode("utf-8", "replace").split("\n")[:-1]
    same("labels.txt", (list(manifest.labels), labels))
    stored = contents.kept.get("preprocess.json")
    same("preprocess.json", (manifest.preprocess, stored and _preprocess(stored, found)))
    named = {path for golden in manifest.goldens for part in (golden.inputs, golden.outputs) for path in part.values()}
    same("golden files", (sorted(named), sorted(name for name in files if name.startswith("golden/"))))
    large = [name for name in sorted(named) if name in files and files[name].bytes > LARGEST_KEPT]
    same(f"golden files above {LARGEST_KEPT} bytes", ([], large))
    return found


def _preprocess(text: bytes, found: list[Difference]) -> Preprocess | None:
    try:
        return from_json(text, Preprocess, origin="preprocess.json")
    except CorruptFile as error:
        found.append(Difference("preprocess.json", "a preprocessing record", str(error)))
        return None


def _load_golden(
    golden: Golden, contents: Contents, *, what: str, differences: list[Difference]
) -> tuple[Feeds, Outputs]:
    """Read a golden's arrays and compare them with the signature; what does not fit is added to `differences`."""
    signature = contents.manifest.signature
    feeds = _load_arrays(golden.inputs, contents, differences=differences)
    outputs = _load_arrays(golden.outputs, contents, differences=differences)
    for arrays, specs in ((feeds, signature.inputs), (outputs, signature.outputs)):
        if arrays.keys() != {spec.name for spec in specs}:
            differences.append(Difference(what, str(sorted(spec.name for spec in specs)), str(sorted(arrays))))
        for spec in specs:
            if spec.name in arrays and not _fits(arrays[spec.name], spec):
                actual = f"{arrays[spec.name].dtype} {arrays[spec.name].shape}"
                differences.append(Difference(f"{what}, {spec.name!r}", f"{spec.dtype} {spec.shape}", actual))
    if golden.tolerance.keys() != golden.outputs.keys() or min(golden.tolerance.values(), default=0.0) < 0:
        differences.append(Difference(f"{what}, tolerance", "0 or more for each output", str(golden.tolerance)))
    return feeds, outputs


def _load_arrays(
    paths: dict[str, str], contents: Contents, *, differences: list[Difference]
) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for name, path in paths.items():
        try:
            arrays[name] = npy.load(contents.kept[path], origin=path)
        except CorruptFile as error:
            differences.append(Difference(path, "an array", str(error)))
    return arrays


def _fits(array: NDArray[Any], spec: TensorSpec) -> bool:
    """Whether an array is one of this name: its dtype, its rank, and every fixed length."""
    lengths = zip(spec.shape, array.shape, strict=False)
    fixed = all(wanted == length for wanted, length in lengths if isinstance(wanted, int))
    return str(array.dtype) == spec.dtype and array.ndim == len(spec.shape) and fixed


def _run_goldens(
    manifest: Manifest, model: Path, *, goldens: tuple[tuple[Feeds, Outputs], ...]
) -> tuple[list[Difference], tuple[str, ...], tuple[str, ...]]:
    """Return (differences, what was checked, what was skipped and why)."""
    if not goldens:
        return [], (), ("goldens: the bundle has none",)
    differences: list[Difference] = []
    checked: list[str] = []
    try:
        session = _open(manifest, model)
        for number, (feeds, expected) in enumerate(goldens):
            rows = _compare_golden(expected, session.run(feeds), tolerance=manifest.goldens[number].tolerance)
            checked += [f"golden {number}, {line}" for line, missed in rows if missed is None]
            differences += [
                msgspec.structs.replace(missed, what=f"golden {number}, {missed.what}")
                for _, missed in rows
                if missed is not None
            ]
    except MachineError as error:
        return [], (), (f"goldens: {error}; {error.next_step}".rstrip("; "),)
    except EdgeExportError as error:
        differences.append(Difference("goldens", f"the model runs in {manifest.runtime}", str(error)))
    return differences, tuple(checked), ()


def _compare_golden(
    expected: Outputs, actual: Outputs, *, tolerance: dict[str, float]
) -> list[tuple[str, Difference | None]]:
    """Rows of (what was found, the difference if it is more than allowed), one for each output."""
    rows: list[tuple[str, Difference | None]] = []
    for name, values in expected.items():
        worst, allowed = _largest_difference(values, actual.get(name)), tolerance[name]
        found = f"off by {worst:.3g}"
        wanted = f"within {allowed:.3g} of what is stored" if allowed else "exactly what is stored (tolerance 0)"
        missed = None if worst <= allowed else Difference(repr(name), wanted, found)
        rows.append((f"{name!r}: {found}, allowed {allowed:.3g}", missed))
    return rows


def _open(manifest: Manifest, model: Path) -> Session:
    if manifest.runtime not in runtimes.names():
        known = ", ".join(runtimes.names())
        raise MachineError(f"this edgeexport has no runtime {manifest.runtime!r}, only {known}")
    threads = max(1, manifest.target.threads)
    return runtimes.get(manifest.runtime).open(model, threads=threads, options=manifest.session_options)


def _largest_difference(expected: NDArray[Any], actual: NDArray[Any] | None) -> float:
    """Largest |difference|; infinite for a missing output, another shape, or a NaN or Inf that is not stored so."""
    import numpy as np

    if actual is None or actual.shape != expected.shape or actual.dtype != expected.dtype:
        return float("inf")
    left, right = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(left) & np.isfinite(right)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return float("inf")
    return float(np.abs(left[finite] - right[finite]).max(initial=0.0))
