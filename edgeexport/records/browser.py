"""What the page in a browser may tell, and what of onnxruntime-web is installed.

The rule: a page is a stranger. Every field has a type and a limit, fields that nobody asked for are refused, and text
is printable ASCII.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edgeexport.records.base import Record

Text = Annotated[str, msgspec.Meta(pattern=r"^[ -~]*\Z", max_length=600)]
Name = Annotated[str, msgspec.Meta(max_length=400)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]
Milliseconds = Annotated[float, msgspec.Meta(gt=0, le=86_400_000)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Nanoseconds = Annotated[int, msgspec.Meta(gt=0, le=86_400_000_000_000)]


class InstalledWeb(Record):
    """One installation of onnxruntime-web. wanted: what npm was asked for. packages, files: name -> digest."""

    wanted: str
    version: str
    packages: dict[str, str]
    files: dict[str, str]


class PageFacts(Record, forbid_unknown_fields=True):
    """What a browser is. agent: its user agent. resolution_ms: the smallest step of performance.now seen."""

    agent: Text
    cores: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    secure: bool
    isolated: bool
    simd: bool
    threads: bool
    webgpu: bool
    resolution_ms: Annotated[float, msgspec.Meta(gt=0, le=1000)]
    version: Text


class PageTensor(Record, forbid_unknown_fields=True):
    """An output whose bytes were sent before the answer, under `blob`."""

    name: Name
    blob: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
    dtype: Literal[
        "float32",
        "float64",
        "float16",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "bool",
    ]
    shape: Annotated[tuple[Size, ...], msgspec.Meta(max_length=16)]


class PageTimes(Record, forbid_unknown_fields=True):
    """Raw times of one page load. batch: inferences between two readings of the clock."""

    first_ms: Milliseconds
    warmup: Count
    warmup_seconds: Seconds
    warmup_ns: Annotated[tuple[Nanoseconds, ...], msgspec.Meta(max_length=100)]
    iterations_ns: Annotated[tuple[Nanoseconds, ...], msgspec.Meta(min_length=1, max_length=1_000_000)]
    batch: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    seconds: Seconds


class PageError(Record, forbid_unknown_fields=True):
    """What went wrong in the page, in the words of the device program (`load`, `run`, ...)."""

    kind: Literal["job", "digest", "runtime_missing", "load", "run"]
    message: Annotated[str, msgspec.Meta(max_length=4000)]


class PageAnswer(Record, forbid_unknown_fields=True):
    """The one answer to one job. outputs, before, after: tensors of each sample; after: once all was timed.

    hidden: how often the page was hidden. digest: of the model, empty where the browser computes none.
    """

    job: Annotated[str, msgspec.Meta(max_length=64)]
    facts: PageFacts | None = None
    error: PageError | None = None
    load_ms: Milliseconds | None = None
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    digest: Annotated[str, msgspec.Meta(pattern=r"^(sha256:[0-9a-f]{64})?\Z")] = ""
    hidden: Count = 0
    outputs: tuple[tuple[PageTensor, ...], ...] = ()
    after: tuple[tuple[PageTensor, ...], ...] = ()
    times: PageTimes | None = None
    sentinel_before_ns: tuple[Nanoseconds, ...] = ()
    sentinel_after_ns: tuple[Nanoseconds, ...] = ()
    memory_before: Size | None = None
    memory_loaded: Size | None = None
    memory_after: Size | None = None
    iterations: Count = 0
