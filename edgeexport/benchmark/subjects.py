"""What a user names, a bundle or a model file, as subjects with inputs; bundles bring goldens along.

The rule: the record says what the inputs were. Random ones are seeded, called random, and check nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import runtimes
from edgeexport.bundles import unpack
from edgeexport.errors import DataError, RequestError
from edgeexport.records.artifact import Signature, TensorSpec
from edgeexport.records.base import file_digest, listed
from edgeexport.records.manifest import Manifest
from edgeexport.validation.subjects import Subject

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgeexport.runtimes.protocol import Feeds

SEED, MOST_SAMPLES = 0, 32
RANDOM = "random inputs (seed 0)"


@contextmanager
def opened(
    models: Sequence[Path | str] | Path | str,
    *,
    threads: int | None = None,
    samples: Path | str | None = None,
    affinity: Sequence[int] = (),
    accelerator: str = "",
) -> Iterator[list[Subject]]:
    """Give subjects for bundles and model files (.onnx, .ort, .tflite) while their files are unpacked.

    threads: of the runtime; None: the bundle's own, 1 for a model file. samples: an .npz of inputs by name, batch
    first, for all; else a bundle's goldens, or seeded noise. affinity: processors to be confined to. accelerator: the
    execution provider to ask onnxruntime for. Raises RequestError, DataError and CorruptFile.
    """
    with tempfile.TemporaryDirectory(prefix="edgeexport-bench-") as folder:
        found = []
        samples = None if samples is None else Path(samples)
        for number, path in enumerate(map(Path, listed(models))):
            if path.suffix == ".bundle":
                found.append(_bundle(path, Path(folder) / str(number), threads=threads, samples=samples))
            else:
                found.append(_file(path, threads=threads or 1, samples=samples))
        placed = [replace(each, affinity=tuple(affinity), accelerator=accelerator) for each in found]
        yield _labelled(placed)


def _labelled(subjects: list[Subject]) -> list[Subject]:
    """Give files of one name in several folders their number as well."""
    labels = [subject.label for subject in subjects]
    return [
        replace(subject, label=f"{subject.label} ({number + 1})") if labels.count(subject.label) > 1 else subject
        for number, subject in enumerate(subjects)
    ]


def _bundle(path: Path, folder: Path, *, threads: int | None, samples: Path | None) -> Subject:
    manifest = unpack(path, folder)
    goldens = [golden_arrays(manifest, number, folder=folder) for number in range(len(manifest.goldens))]
    own = samples is None and bool(goldens)
    inputs = [feeds for feeds, _ in goldens] if own else _inputs(manifest.signature, samples, origin=str(path))
    tolerances = [golden.tolerance for golden in manifest.goldens]
    return Subject(
        label=path.name,
        path=folder / manifest.model,
        digest=manifest.model_digest,
        runtime=manifest.runtime,
        inputs=inputs,
        threads=threads or max(1, manifest.target.threads),
        options=manifest.session_options,
        goldens=[outputs for _, outputs in goldens] if own else (),
        tolerance={name: max(each[name] for each in tolerances) for name in tolerances[0]} if own else {},
        inputs_are="goldens" if own else _called(samples),
        target=manifest.target,
    )


def golden_arrays(manifest: Manifest, number: int, *, folder: Path) -> tuple[Feeds, Feeds]:
    """Return inputs and outputs of a golden from an unpacked bundle."""
    import numpy as np

    golden = manifest.goldens[number]
    inputs, outputs = (
        {name: np.load(folder / place, allow_pickle=False) for name, place in part.items()}
        for part in (golden.inputs, golden.outputs)
    )
    return inputs, outputs


def _file(path: Path, *, threads: int, samples: Path | None) -> Subject:
    runtime = runtimes.for_file(path)
    if not path.is_file():
        raise RequestError(f"{path}: no such file")
    signature = runtimes.get(runtime).open(path).signature
    inputs = _inputs(signature, samples, origin=str(path))
    return Subject(path.name, path, file_digest(path), runtime, inputs, threads=threads, inputs_are=_called(samples))


def _called(samples: Path | None) -> str:
    return RANDOM if samples is None else f"{samples.name} {file_digest(samples)}"


def _inputs(signature: Signature, samples: Path | None, *, origin: str) -> list[Feeds]:
    if samples is not None:
        return _stored(signature, samples, origin=origin)
    import numpy as np

    rng = np.random.default_rng(SEED)
    return [{spec.name: _noise(spec, rng) for spec in signature.inputs}]


def _noise(spec: TensorSpec, rng: Any) -> NDArray[Any]:
    """Seeded noise; integers are 0 or 1: indices that any table with two rows has."""
    import numpy as np

    shape = [size if isinstance(size, int) and size > 0 else 1 for size in spec.shape]
    kind = np.dtype(spec.dtype)
    if kind.kind == "f":
        values: NDArray[Any] = rng.standard_normal(shape).astype(kind)
        return values
    if spec.scale is not None:
        limits = np.iinfo(kind)
        return np.asarray(rng.integers(limits.min, limits.max + 1, shape), kind)
    return np.asarray(rng.integers(0, 2, shape), kind)


def _stored(signature: Signature, samples: Path, *, origin: str) -> list[Feeds]:
    """The samples of an .npz, one by one, at most 32; a lone array may have any name."""
    import numpy as np

    try:
        with np.load(samples, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise DataError(f"{samples}: cannot be read as an .npz of arrays: {error}") from error
    names = [spec.name for spec in signature.inputs]
    if len(arrays) == len(names) == 1:
        arrays = {names[0]: next(iter(arrays.values()))}
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(f"{samples}: has {sorted(arrays)}, and {origin} needs {missing} as well")
    count = min(MOST_SAMPLES, *(len(arrays[name]) for name in names))
    return [
        {spec.name: arrays[spec.name][index : index + 1].astype(spec.dtype) for spec in signature.inputs}
        for index in range(count)
    ]
