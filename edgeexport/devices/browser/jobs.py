"""Jobs and answers: from the device program's job to what the page is told, and from what it tells to that answer.

The rule: the page computes, and this side checks: digests, files, shapes, byte counts and goldens. What does not fit
is a DeviceError, never a result.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.devices.browser.desk import Work
from edgeexport.devices.protocol import BenchFailed, place
from edgeexport.errors import DeviceError
from edgeexport.records.browser import PageAnswer, PageTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

MODES = ("describe", "outputs", "time", "sentinel", "memory")
NO_MODEL = ("describe", "sentinel")
PROVIDER = "CPUExecutionProvider"
NO_FIXED = "no times of the fixed workload"
DTYPES = (
    "float32", "float64", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool",
)  # fmt: skip
LEVELS = {"disable": "disabled", "basic": "basic", "extended": "extended", "layout": "layout", "all": "all"}
NAMED = {"enable_cpu_mem_arena": "enableCpuMemArena", "enable_mem_pattern": "enableMemPattern"}
# The job's own `threads` decides, as in the device program.
OVERRIDDEN = ("intra_op_num_threads", "inter_op_num_threads")
WARMUP = {"iterations": 10, "seconds": 0.0, "cap_seconds": 60.0}
TIMED = {"iterations": 64, "seconds": 0.0, "cap_seconds": 60.0, "cap_iterations": 1_000_000}


@dataclass(frozen=True)
class Prepared:
    """A job as the page gets it, and what its answer is checked against."""

    work: Work
    mode: str
    job: Mapping[str, Any]
    digest: str
    goldens: Sequence[tuple[Arrays, Mapping[str, float]]]


def prepare(job: Mapping[str, Any], files: Mapping[str, Path], *, device: str) -> Prepared:
    """Read what a job names and give every file an unguessable id. Raises DeviceError for what no page can do."""
    mode = str(job.get("mode"))
    if mode not in MODES:
        raise DeviceError(f"{device}: a browser has no {mode!r}", next_step="it runs " + ", ".join(MODES))
    if mode in NO_MODEL:
        return Prepared(Work({"mode": mode}, {}), mode, job, "", ())
    placed = place(job, {name: str(Path(path).absolute()) for name, path in files.items()})
    model, digest = _model(placed, device)
    contents: dict[str, bytes] = {}
    goldens = [(_arrays(each["outputs"]), each.get("tolerance", {})) for each in placed.get("goldens") or []]
    inputs = [_offered(_arrays(sample), contents, device=device) for sample in placed.get("inputs") or [{}]]
    told = {
        "mode": mode,
        "model": _offer(model, contents),
        "inputs": inputs,
        "threads": int(job.get("threads", 1)),
        "options": _options(dict(job.get("options") or {}), device),
        "goldens": min(len(goldens), len(inputs)),
        "warmup": {**WARMUP, **(job.get("warmup") or {})},
        "timed": {**TIMED, **(job.get("timed") or {})},
    }
    return Prepared(Work(told, contents), mode, job, digest, goldens[: len(inputs)])


def _model(placed: Mapping[str, Any], device: str) -> tuple[bytes, str]:
    runtime, path = str(placed.get("runtime")), Path(str(placed.get("model")))
    if runtime != "onnxruntime":
        raise DeviceError(f"{device}: a browser runs onnxruntime-web, the model is for {runtime}")
    accelerator = placed.get("accelerator") or PROVIDER
    if accelerator != PROVIDER:
        raise DeviceError(f"{device}: models run on {PROVIDER} (wasm) there, {accelerator!r} was asked for")
    if placed.get("affinity"):
        raise DeviceError(f"{device}: a browser cannot be confined to processors {placed['affinity']}")
    if path.suffix != ".onnx":
        raise DeviceError(f"{device}: a browser gets .onnx files only, not {path.name}")
    content = path.read_bytes()
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    expected = str(placed.get("sha256") or digest)
    if digest != "sha256:" + expected.rpartition(":")[2]:
        raise DeviceError(f"{path} is not the model asked for: expected {expected}, is {digest}")
    return content, digest


def _options(options: dict[str, Any], device: str) -> dict[str, Any]:
    """Session options as onnxruntime-web spells them. Raises DeviceError naming one that it does not have."""
    found: dict[str, Any] = {}
    level = options.pop("graph_optimization_level", None)
    if level is not None:
        found["graphOptimizationLevel"] = LEVELS.get(str(level).lower(), str(level))
    entries = options.pop("config_entries", {})
    if entries:
        found["extra"] = _nested(entries)
    for key, value in options.items():
        if key in OVERRIDDEN:
            continue
        if key not in NAMED:
            raise DeviceError(f"{device}: onnxruntime-web has no session option {key!r}")
        found[NAMED[key]] = value
    return found


def _nested(entries: Mapping[str, Any]) -> dict[str, Any]:
    """`session.a: 1` as {"session": {"a": "1"}}: how onnxruntime-web takes free settings."""
    found: dict[str, Any] = {}
    for key, value in entries.items():
        *path, last = key.split(".")
        inner = found
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = str(value)
    return found


def _arrays(paths: Mapping[str, str]) -> Arrays:
    import numpy as np

    return {name: np.load(path, allow_pickle=False) for name, path in paths.items()}


def _offer(content: bytes, contents: dict[str, bytes]) -> str:
    name = secrets.token_urlsafe(16)
    contents[name] = content
    return name


def _offered(arrays: Arrays, contents: dict[str, bytes], *, device: str) -> dict[str, Any]:
    import numpy as np

    told = {}
    for name, array in arrays.items():
        if str(array.dtype) not in DTYPES:
            raise DeviceError(f"{device}: a browser has no tensors of {array.dtype} (input {name!r})")
        whole = np.ascontiguousarray(array)
        told[name] = {"id": _offer(whole.tobytes(), contents), "dtype": str(array.dtype), "shape": list(array.shape)}
    return told


def finish(prepared: Prepared, *, device: str, outputs_to: Path | None, boot_id: str) -> dict[str, Any]:
    """Return the answer as the device program would give it. Raises BenchFailed and DeviceError."""
    answer = prepared.work.answer
    if answer is None or answer.facts is None:
        raise DeviceError(f"{device}: the page answered without saying what it is")
    if answer.error is not None:
        raise BenchFailed(f"{device}: {answer.error.message}", kind=answer.error.kind)
    if prepared.mode in NO_MODEL:
        _demand(prepared.mode == "describe" or answer.sentinel_before_ns, NO_FIXED, device=device)
        return {"sentinel": {"before_ns": list(answer.sentinel_before_ns)}} if prepared.mode == "sentinel" else {}
    result = _session(prepared, answer, device=device)
    if prepared.mode == "outputs":
        if outputs_to is None:
            raise DeviceError(f"{device}: mode outputs needs a folder")
        return {**result, "outputs": _written(prepared, answer, device=device, folder=outputs_to)}
    result["goldens"] = _goldens(prepared, answer.outputs, device=device, when="before timing")
    if prepared.mode == "memory":
        return {**result, "memory": _memory(answer)}
    result["goldens"] = _goldens(prepared, answer.after, device=device, when="after timing")
    return {**result, **_times(answer, device=device, boot_id=boot_id)}


def _demand(held: object, lack: str, *, device: str) -> None:
    if not held:
        raise DeviceError(f"{device}: the page's answer has {lack}")


def _session(prepared: Prepared, answer: PageAnswer, *, device: str) -> dict[str, Any]:
    if answer.digest not in {"", prepared.digest}:
        raise DeviceError(f"{device}: the page ran another model: {answer.digest}, sent {prepared.digest}")
    if answer.hidden and prepared.mode == "time":
        raise DeviceError(f"{device}: the page was hidden {answer.hidden} time(s)", next_step="keep it in front")
    _demand(answer.load_ms is not None and answer.threads is not None, "no session", device=device)
    assert answer.facts is not None
    return {
        "runtime": "onnxruntime",
        "runtime_version": f"{answer.facts.version} (web)",
        "model_digest": prepared.digest,
        "load_ms": answer.load_ms,
        "threads": {"requested": int(prepared.job.get("threads", 1)), "actual": answer.threads},
        "accelerator": {"requested": PROVIDER, "actual": PROVIDER},
        "affinity": {"requested": None, "actual": []},
    }


def _array(prepared: Prepared, tensor: PageTensor, *, device: str) -> NDArray[Any]:
    import numpy as np

    content = prepared.work.blobs.get(tensor.blob)
    dtype = np.dtype(tensor.dtype)
    if content is None or len(content) != math.prod(tensor.shape) * dtype.itemsize:
        size = "no" if content is None else str(len(content))
        raise DeviceError(f"{device}: output {tensor.name!r} of {tensor.dtype} {tensor.shape} has {size} bytes")
    return np.frombuffer(content, dtype).reshape(tensor.shape)


def _written(prepared: Prepared, answer: PageAnswer, *, device: str, folder: Path) -> list[dict[str, Any]]:
    import numpy as np

    count = len(prepared.work.told["inputs"])
    complete = len(answer.outputs) == count and all(answer.outputs)
    _demand(complete, f"no outputs of each of {count} samples", device=device)
    ready = [
        {tensor.name: _array(prepared, tensor, device=device) for tensor in sorted(sample, key=lambda each: each.name)}
        for sample in answer.outputs
    ]
    folder.mkdir(parents=True, exist_ok=True)
    written: list[dict[str, Any]] = []
    for index, arrays in enumerate(ready):
        written.append({})
        for number, (name, array) in enumerate(arrays.items()):
            path = folder / f"{index}.{number}.npy"
            np.save(path, array, allow_pickle=False)
            digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
            written[index][name] = {"file": path.name, "digest": digest}
    return written


def _goldens(
    prepared: Prepared, told: Sequence[Sequence[PageTensor]], *, device: str, when: str
) -> dict[str, int | float]:
    """Compare with the goldens. Raises BenchFailed where an output is missing, of another kind, or too far off."""
    worst = 0.0
    count = len(prepared.goldens)
    _demand(len(told) == count, f"no outputs of {count} goldens {when}", device=device)
    for index, ((expected, tolerance), sample) in enumerate(zip(prepared.goldens, told, strict=True)):
        actual = {tensor.name: _array(prepared, tensor, device=device) for tensor in sample}
        for name, value in expected.items():
            reason, largest = _compare(actual.get(name), value, allowed=float(tolerance.get(name, 0.0)))
            worst = max(worst, largest)
            if reason:
                raise BenchFailed(f"{device}: {when}: output {name!r} of sample {index} {reason}", kind="wrong_outputs")
    return {"checked": len(prepared.goldens), "max_abs": worst}


def _compare(actual: NDArray[Any] | None, expected: NDArray[Any], *, allowed: float) -> tuple[str, float]:
    import numpy as np

    if actual is None:
        return "is not among the outputs", 0.0
    if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
        return f"is {actual.dtype} {actual.shape}, expected {expected.dtype} {expected.shape}", 0.0
    if not np.isfinite(actual).all():
        return "is not finite", 0.0
    largest = float(np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))
    return ("" if largest <= allowed else f"differs by {largest:.6g}, allowed {allowed:.6g}"), largest


def _times(answer: PageAnswer, *, device: str, boot_id: str) -> dict[str, Any]:
    """The fields of a launch; what a page cannot know (load, frequency, its processor time) is said not to be known."""
    times, facts = answer.times, answer.facts
    _demand(answer.sentinel_before_ns and answer.sentinel_after_ns, NO_FIXED, device=device)
    if times is None or facts is None:
        raise DeviceError(f"{device}: the page's answer has no times")
    total = sum(times.iterations_ns) * times.batch / 1e9
    if total > times.seconds * 1.01 + 0.01:
        raise DeviceError(f"{device}: iterations of {total:.3f} s in a run of {times.seconds:.3f} s")
    moment: dict[str, Any] = {"boot_id": boot_id, "load_average": [], "frequency_khz": None}
    return {
        "first_ms": times.first_ms,
        "warmup": {
            "iterations": times.warmup,
            "seconds": times.warmup_seconds,
            "iterations_ns": list(times.warmup_ns),
        },
        "timed": {"seconds": times.seconds, "cpu_seconds": None},
        "iterations_ns": list(times.iterations_ns),
        "sentinel": {"before_ns": list(answer.sentinel_before_ns), "after_ns": list(answer.sentinel_after_ns)},
        "clock": {
            "resolution_ns": facts.resolution_ms * 1e6 / times.batch,
            "measured_ns": facts.resolution_ms * 1e6,
            "batch": times.batch,
        },
        "environment": {"before": moment, "after": moment},
    }


def _memory(answer: PageAnswer) -> dict[str, Any]:
    """What the browser says the page holds: not a peak, but wasm's memory, which is nearly all of it, never shrinks."""
    if answer.memory_before is None or answer.memory_after is None:
        return {
            "reason": "not measured: performance.measureUserAgentSpecificMemory needs a Chromium that isolates the page"
        }
    return {
        "method": "measureUserAgentSpecificMemory after the run",
        "before_load_bytes": answer.memory_before,
        "after_load_bytes": answer.memory_loaded,
        "peak_bytes": max(answer.memory_before, answer.memory_loaded or 0, answer.memory_after),
        "iterations": answer.iterations,
    }
