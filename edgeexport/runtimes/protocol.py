"""What every runtime is to the rest of the house: convert the spine, open a file, run it.

The rule: callers see only these types. A runtime is code and knows nothing of recipes, gates or devices; it turns a
`Conversion` into one file that runs on its target, and says which signature that file has and how it must be opened.
Feeds and outputs are `{name: array}` with the batch axis first; `adapt_feeds` and `adapt_outputs` translate between
the spine's own signature and an artifact's (names, NCHW or NHWC, float32 or int8 with scale and zero point).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from edgeexport.errors import DataError
from edgeexport.progress import Progress, silent
from edgeexport.records.artifact import Signature, TensorSpec
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.ranges import Ranges
from edgeexport.records.target import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Strings, so that numpy is not loaded to say them.
Feeds: TypeAlias = "dict[str, NDArray[Any]]"
Outputs: TypeAlias = "dict[str, NDArray[Any]]"
NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


class Session(Protocol):
    """One opened file, ready to run."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs of the file itself, in its own order."""
        ...

    def run(self, feeds: Feeds) -> Outputs:
        """Run once. Feeds and outputs are in this file's own signature. Raises DataError for wrong feeds."""
        ...


@dataclass(frozen=True)
class Conversion:
    """What a runtime is given to convert.

    spine: the cleaned fp32 ONNX file. quantized: the same in int8 QDQ form, None to convert fp32. ranges and plan:
    set with `quantized`. samples: a fresh iterator of feeds of batch 1 in the spine's signature at each call.
    """

    spine: Path
    quantized: Path | None
    ranges: Ranges | None
    plan: QuantizationPlan | None
    samples: Callable[[], Iterator[Feeds]]
    target: Target


@dataclass(frozen=True)
class Converted:
    """What came out: the file's signature, remarks, how it must be opened, and the oldest version that runs it.

    session_options: plain JSON values, handed to `Runtime.open(options=...)`, to the device and into the manifest.
    """

    signature: Signature
    notes: tuple[str, ...] = ()
    session_options: dict[str, Any] = field(default_factory=dict)
    floor: str = ""


class Runtime(Protocol):
    """A runtime. Its module holds one, under the name `RUNTIME`; `edgeexport.runtimes.get` finds it."""

    @property
    def name(self) -> str:
        """The name that targets use."""
        ...

    @property
    def formats(self) -> tuple[str, ...]:
        """File formats it converts to and opens, such as `("onnx", "ort")`."""
        ...

    @property
    def extra(self) -> str:
        """The extra of edgeexport that installs it."""
        ...

    @property
    def packages(self) -> tuple[str, ...]:
        """Distribution names whose versions enter cache keys."""
        ...

    def convert(self, job: Conversion, out: Path, *, progress: Progress = silent) -> Converted:
        """Write the file that runs on `job.target` to `out`. The bytes depend on the job and the versions only."""
        ...

    def open(self, path: Path, *, threads: int = 1, options: Mapping[str, Any] = NO_OPTIONS) -> Session:
        """Open a file. Raises CorruptFile for a damaged one, ModelError for one that this version cannot run."""
        ...

    def version(self) -> str:
        """The installed version. Raises MissingExtra."""
        ...


def adapt_feeds(feeds: Feeds, source: Signature, *, to: Signature) -> Feeds:
    """Turn feeds of signature `source` (the spine) into feeds of signature `to` (an artifact).

    Tensors are paired by name when both sides have the same names, else by position. Pictures are permuted between
    NCHW and NHWC, numbers quantized when `to` has a scale. Raises DataError naming what is missing or does not fit.
    """
    missing = [spec.name for spec in source.inputs if spec.name not in feeds]
    if missing or len(feeds) != len(source.inputs):
        raise DataError(f"feeds are {sorted(feeds)}, the model's inputs are {[spec.name for spec in source.inputs]}")
    pairs = _paired(source.inputs, to.inputs, what="inputs")
    return {other.name: _adapted(feeds[spec.name], spec, to=other) for spec, other in pairs}


def adapt_outputs(outputs: Outputs, source: Signature, *, to: Signature) -> Outputs:
    """Turn outputs of signature `source` (an artifact) into those of signature `to` (the spine): real numbers, NCHW."""
    missing = [spec.name for spec in source.outputs if spec.name not in outputs]
    if missing:
        raise DataError(f"outputs {missing} are missing; there are {sorted(outputs)}")
    pairs = _paired(source.outputs, to.outputs, what="outputs")
    return {other.name: _adapted(outputs[spec.name], spec, to=other) for spec, other in pairs}


def quantize_values(values: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """Quantize real numbers as `spec` says: round half to even, then saturate (ONNX QuantizeLinear)."""
    import numpy as np

    if spec.scale is None:
        raise DataError(f"{spec.name!r} has no scale to quantize with")
    limits = np.iinfo(spec.dtype)
    steps = np.rint(np.asarray(values, np.float32) / np.float32(spec.scale)) + (spec.zero_point or 0)
    saturated: NDArray[Any] = np.clip(steps, limits.min, limits.max).astype(spec.dtype)
    return saturated


def dequantize_values(values: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """Return the real numbers, float32, that the integers of `spec` stand for."""
    import numpy as np

    if spec.scale is None:
        raise DataError(f"{spec.name!r} has no scale to dequantize with")
    steps: NDArray[Any] = (values.astype(np.int32) - (spec.zero_point or 0)).astype(np.float32)
    return steps * np.float32(spec.scale)


def _paired(
    ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec], *, what: str
) -> list[tuple[TensorSpec, TensorSpec]]:
    if len(ours) != len(theirs):
        raise DataError(f"{what} differ in number: {[s.name for s in ours]} against {[s.name for s in theirs]}")
    by_name = {spec.name: spec for spec in ours}
    if by_name.keys() == {spec.name for spec in theirs}:
        return [(by_name[spec.name], spec) for spec in theirs]
    return list(zip(ours, theirs, strict=True))


def _adapted(values: NDArray[Any], source: TensorSpec, *, to: TensorSpec) -> NDArray[Any]:
    import numpy as np

    moved = _permuted(np.asarray(values), source, to=to)
    same_steps = (source.dtype, source.scale, source.zero_point) == (to.dtype, to.scale, to.zero_point)
    if source.scale is not None and not same_steps:
        moved = dequantize_values(moved, source)
    if to.scale is not None and not same_steps:
        moved = quantize_values(moved, to)
    return np.ascontiguousarray(_cast(moved, to))


def _permuted(values: NDArray[Any], source: TensorSpec, *, to: TensorSpec) -> NDArray[Any]:
    """Move the channel axis of a picture; `as-is` on either side means: leave the axes alone."""
    axes = {("NCHW", "NHWC"): (0, 2, 3, 1), ("NHWC", "NCHW"): (0, 3, 1, 2)}.get((source.layout, to.layout))
    if axes is None:
        return values
    if values.ndim != 4:
        raise DataError(f"{source.name!r} has shape {values.shape}, expected 4 axes ({source.layout})")
    return values.transpose(axes)


def _cast(values: NDArray[Any], to: TensorSpec) -> NDArray[Any]:
    """Change the dtype within its kind (int64 to int32, say) when no value is lost; refuse otherwise."""
    import numpy as np

    kind = np.dtype(to.dtype)
    if values.dtype == kind:
        return values
    if values.dtype.kind != kind.kind and {values.dtype.kind, kind.kind} != {"i", "u"}:
        raise DataError(f"{to.name!r} has dtype {values.dtype}, expected {kind}")
    changed = values.astype(kind)
    if kind.kind in "iu" and not np.array_equal(changed, values):
        raise DataError(f"{to.name!r} has {values.dtype} values that {kind} cannot hold")
    return changed
