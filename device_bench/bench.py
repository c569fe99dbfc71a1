"""Run one model on this machine and say what happened: outputs, times, memory, or what the machine is.

A free-standing program: Python 3.8 or newer, the standard library, numpy and one runtime; it never imports edgeexport.
The job is one JSON object on stdin, or in the file named as the only argument. The answer is exactly one JSON line on
stdout; all that a runtime prints goes to stderr. An error is `{"error": {"kind": ..., "message": ...}}` and exit 1.

    echo '{"mode": "time", "runtime": "onnxruntime", "model": "m.onnx", "inputs": [{"x": "x.npy"}]}' | python bench.py

mode        "outputs", "time", "memory", "sentinel" or "describe"
runtime     "onnxruntime", "ai_edge_litert" or "tflite_runtime"
model       path; `sha256`, when given, must be its digest
inputs      one object for each sample: input name -> .npy file; samples are taken in turn
goldens     for the first samples: {"outputs": {name: .npy}, "tolerance": {name: largest |difference|}}
threads     of the runtime (default 1); options: how to open the model, as plain JSON
warmup      {"iterations", "seconds"}: at least both; timed: the same, and "cap_seconds", "cap_iterations"
outputs_to  folder for the outputs

The rule: the clock runs around the inference alone. A TFLite interpreter's inputs are filled outside it (as in its own
benchmark tool); onnxruntime takes them inside `run`.
"""

from __future__ import annotations

import array
import gc
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Job = dict[str, Any]
    Sample = dict[str, Any]

PROTOCOL = 1
CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")


class BenchError(Exception):
    """(kind, message): the kind is job, digest, runtime_missing, load, run or wrong_outputs."""


class Answer:
    """The one line on the real stdout; all else, also from C++, goes to stderr. `stage`: what a runtime was doing."""

    def __init__(self) -> None:
        self.stage = "job"
        self.stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        sys.stdout = sys.stderr

    def write(self, content: dict[str, Any]) -> None:
        """Write the line: the only one."""
        with self.stream as stream:
            stream.write(json.dumps(content) + "\n")

    def fail(self, error: BaseException) -> None:
        """Turn whatever went wrong into a JSON error. Python exits with 1 when `sys.excepthook` has returned."""
        traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
        other = (self.stage, f"{type(error).__name__}: {error}")
        named, message = error.args if isinstance(error, BenchError) else other
        self.write({"protocol": PROTOCOL, "error": {"kind": named, "message": message}})


class OrtSession:
    """A model in onnxruntime, on the CPU. Options: attributes of SessionOptions, and `config_entries`."""

    def __init__(self, path: str, threads: int, *, options: dict[str, Any], module: str) -> None:
        ort = __import__(module)
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        for key, value in dict(options.pop("config_entries", {})).items():
            settings.add_session_config_entry(key, str(value))
        for key, value in dict(options, intra_op_num_threads=threads, inter_op_num_threads=1).items():
            if key not in dir(settings):
                raise BenchError("job", f"onnxruntime has no session option {key!r}")
            if key == "graph_optimization_level":
                named = "DISABLE_ALL" if value == "disable" else f"ENABLE_{value.upper()}"
                settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{named}")
            else:
                setattr(settings, key, value)
        self.session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        self.requested, self.actual = "CPUExecutionProvider", self.session.get_providers()[0]
        self.threads = settings.intra_op_num_threads
        self.into = {item.name: item.name for item in self.session.get_inputs()}
        self.arity = len(self.into)
        self.output_names = [item.name for item in self.session.get_outputs()]

    def put(self, sample: Sample) -> None:
        """Choose the sample that `call` runs."""
        self.feeds: Sample = sample

    def call(self) -> None:
        """Run one inference."""
        self.results: list[Any] = self.session.run(None, self.feeds)

    def outputs(self) -> Sample:
        """Return what the last call gave, by name."""
        return dict(zip(self.output_names, self.results))  # noqa: B905 - `strict` came with Python 3.10


class TfliteSession:
    """A model in LiteRT, or in tflite-runtime, which has the same interpreter. Known by tensor and signature names."""

    def __init__(self, path: str, threads: int, *, options: dict[str, Any], module: str) -> None:
        interpreter = __import__(module, fromlist=["Interpreter"]).Interpreter
        self.interpreter = interpreter(**dict(options, model_path=path, num_threads=threads))
        self.interpreter.allocate_tensors()
        self.requested = self.actual = "cpu"
        self.threads = threads
        self.into = {item["name"]: item["index"] for item in self.interpreter.get_input_details()}
        self.out = {item["name"]: item["index"] for item in self.interpreter.get_output_details()}
        self.arity = len(self.into)
        self.call: Callable[[], None] = self.interpreter.invoke
        if len(self.interpreter.get_signature_list()) == 1:
            runner = self.interpreter.get_signature_runner()
            self.into.update((name, item["index"]) for name, item in runner.get_input_details().items())
            self.out.update((name, item["index"]) for name, item in runner.get_output_details().items())

    def put(self, sample: Sample) -> None:
        """Fill the input tensors."""
        for name, value in sample.items():
            self.interpreter.set_tensor(self.into[name], value)

    def outputs(self) -> Sample:
        """Return copies of the output tensors, by every name they have."""
        return {name: self.interpreter.get_tensor(index) for name, index in self.out.items()}


RUNTIMES: dict[str, tuple[str, Callable[..., Any]]] = {
    "onnxruntime": ("onnxruntime", OrtSession),
    "ai_edge_litert": ("ai_edge_litert.interpreter", TfliteSession),
    "tflite_runtime": ("tflite_runtime.interpreter", TfliteSession),
}


def runtime_version(runtime: str) -> str:
    """Import a runtime and return its version."""
    if runtime not in RUNTIMES:
        raise BenchError("job", f"no runtime {runtime!r}; known: {', '.join(RUNTIMES)}")
    try:
        __import__(RUNTIMES[runtime][0])
    except ImportError as error:
        raise BenchError("runtime_missing", f"{runtime}: {error}") from error
    return importlib.metadata.version(runtime.replace("_", "-"))


def open_session(job: Job, answer: Answer) -> Any:
    """Check the file's digest, read the samples, import the runtime, load the model. The session knows what it cost."""
    runtime, path, threads = str(job.get("runtime")), str(job.get("model")), int(job.get("threads", 1))
    actual = file_digest(path)
    expected = str(job.get("sha256") or actual)
    if "sha256:" + expected.rpartition(":")[2] != actual:
        raise BenchError("digest", f"{path} is not the model asked for: expected {expected}, is {actual}")
    samples = [read_arrays(files) for files in job.get("inputs") or []]
    version = runtime_version(runtime)
    before, method = peak_bytes()
    answer.stage, start, (module, kind) = "load", time.perf_counter_ns(), RUNTIMES[runtime]
    session = kind(path, threads, options=dict(job.get("options") or {}), module=module)
    session.load_ms = (time.perf_counter_ns() - start) / 1e6
    session.memory = {"method": method, "before_load_bytes": before, "after_load_bytes": peak_bytes()[0]}
    answer.stage, session.samples = "run", samples
    session.facts = {
        "runtime": runtime, "runtime_version": version, "model_digest": actual,
        "threads": {"requested": threads, "actual": session.threads},
        "accelerator": {"requested": session.requested, "actual": session.actual},
    }  # fmt: skip
    for sample in samples or [{}]:
        if len(sample) != session.arity or not set(sample) <= set(session.into):
            raise BenchError("job", f"inputs {sorted(sample)} given, the model has {sorted(session.into)}")
    return session


def file_digest(path: str) -> str:
    """Return `sha256:<hex>` of a file, read in pieces so that it does not count as memory."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        for piece in iter(lambda: stream.read(1 << 16), b""):
            digest.update(piece)
    return "sha256:" + digest.hexdigest()


def read_arrays(files: dict[str, str]) -> Sample:
    """Read .npy files; nothing pickled is accepted."""
    import numpy as np

    return {name: np.load(path, allow_pickle=False) for name, path in files.items()}


def check_goldens(job: Job, session: Any, *, when: str) -> dict[str, Any]:
    """Compare outputs with the goldens. Wrong ones end the job: what comes of it would be no measurement."""
    goldens, worst = list(job.get("goldens") or [])[: len(session.samples)], 0.0
    for index, golden in enumerate(goldens):
        session.put(session.samples[index])
        session.call()
        outputs = session.outputs()
        for name, expected in read_arrays(golden["outputs"]).items():
            allowed = float(golden.get("tolerance", {}).get(name, 0.0))
            reason, largest = compare(outputs.get(name), expected, allowed=allowed)
            worst = max(worst, largest)
            if reason:
                raise BenchError("wrong_outputs", f"{when}: output {name!r} of sample {index} {reason}")
    return {"checked": len(goldens), "max_abs": worst}


def compare(actual: Any, expected: Any, *, allowed: float) -> tuple[str, float]:
    """Return why two arrays differ by more than `allowed` (empty if they do not), and their largest difference."""
    import numpy as np

    if actual is None:
        return "is not among the outputs", 0.0
    if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
        return f"is {actual.dtype} {actual.shape}, expected {expected.dtype} {expected.shape}", 0.0
    if not np.isfinite(actual).all():
        return "is not finite", 0.0
    largest = float(np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))
    return ("" if largest <= allowed else f"differs by {largest:.6g}, allowed {allowed:.6g}"), largest


def sentinel(repeats: int = 12) -> list[int]:
    """Time a fixed piece of work, float32 (BLAS) and integer (plain loops) products: 12 times 1.5 ms on a desktop core.

    What it costs depends on the machine's state only, so a change of its time is a change of the machine. The pieces
    are short, so that most of them escape interruption by other programs.
    """
    import numpy as np

    floats = np.linspace(-1, 1, 256 * 256, dtype=np.float32).reshape(256, 256)
    integers = (floats * 50).astype(np.int8).astype(np.int16)
    float_out, integer_out, times = np.empty_like(floats), np.empty((48, 96), np.int16), []
    for _ in range(repeats + 1):
        start = time.perf_counter_ns()
        np.matmul(floats, floats, out=float_out)
        np.matmul(integers[:48], integers[:, :96], out=integer_out)
        times.append(time.perf_counter_ns() - start)
    return times[1:]


def warm_up(session: Any, plan: dict[str, Any]) -> dict[str, Any]:
    """Run at least so many inferences and seconds, apart from what is timed."""
    start, count = time.perf_counter(), 0
    while count < int(plan.get("iterations", 10)) or time.perf_counter() - start < float(plan.get("seconds", 0)):
        session.put(session.samples[count % len(session.samples)])
        session.call()
        count += 1
    return {"iterations": count, "seconds": time.perf_counter() - start}


def timed_loop(session: Any, plan: dict[str, Any]) -> list[int]:
    """Time inference after inference: at least `iterations` and `seconds`, at most the caps. Nanoseconds each."""
    least, capacity = int(plan.get("iterations", 64)), int(plan.get("cap_iterations", 1_000_000))
    stamps = array.array("q", bytes(8 * capacity))
    put, call, clock = session.put, session.call, time.perf_counter_ns
    samples, many, count = session.samples, len(session.samples), 0
    stop = began = clock()
    enough = began + int(float(plan.get("seconds", 1)) * 1e9)
    cap = began + int(float(plan.get("cap_seconds", 60)) * 1e9)
    while count < capacity and stop < cap and (count < least or stop < enough):
        put(samples[count % many])
        start = clock()
        call()
        stop = clock()
        stamps[count] = stop - start
        count += 1
    return stamps[:count].tolist()


def time_model(job: Job, answer: Answer) -> dict[str, Any]:
    """Mode `time`: load, first inference, warm-up and raw iterations, between two runs of the sentinel."""
    before, sentinel_before = conditions(), sentinel()
    session = open_session(job, answer)
    session.put(session.samples[0])
    start = time.perf_counter_ns()
    session.call()
    first_ms = (time.perf_counter_ns() - start) / 1e6
    golden = check_goldens(job, session, when="before timing")
    warm = warm_up(session, job.get("warmup") or {})
    gc.collect()
    gc.disable()
    wall, cpu = time.perf_counter(), time.process_time()
    iterations = timed_loop(session, job.get("timed") or {})
    timed = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    gc.enable()
    golden = check_goldens(job, session, when="after timing")
    return dict(
        session.facts, load_ms=session.load_ms, first_ms=first_ms, warmup=warm, timed=timed, iterations_ns=iterations,
        sentinel={"before_ns": sentinel_before, "after_ns": sentinel()}, goldens=golden,
        clock={"resolution_ns": time.get_clock_info("perf_counter").resolution * 1e9},
        environment={"before": before, "after": conditions()},
    )  # fmt: skip


def write_outputs(job: Job, answer: Answer) -> dict[str, Any]:
    """Mode `outputs`: write `<sample>.<output>.npy` into `outputs_to`, and return their names and digests."""
    import numpy as np

    session, folder = open_session(job, answer), Path(str(job["outputs_to"]))
    written: list[dict[str, Any]] = [{} for _ in session.samples]
    folder.mkdir(parents=True, exist_ok=True)
    for index, sample in enumerate(session.samples):
        session.put(sample)
        session.call()
        for place, (name, value) in enumerate(sorted(session.outputs().items())):
            path = folder / f"{index}.{place}.npy"
            np.save(str(path), value, allow_pickle=False)
            written[index][name] = {"file": path.name, "digest": file_digest(str(path))}
    return dict(session.facts, outputs=written)


def memory_use(job: Job, answer: Answer) -> dict[str, Any]:
    """Mode `memory`: peak resident bytes of this process before the model is loaded, and after some inferences."""
    session = open_session(job, answer)
    done = warm_up(session, job.get("timed") or {})
    memory = dict(session.memory, peak_bytes=peak_bytes()[0], iterations=done["iterations"])
    golden = check_goldens(job, session, when="after the memory run")
    return dict(session.facts, memory=memory, goldens=golden, environment={"after": conditions()})


def peak_bytes() -> tuple[int, str]:
    """Return peak resident bytes and the method.

    On Linux `VmHWM`, or what is resident and swapped out if that is more; `ru_maxrss` there inherits the parent's
    peak. Elsewhere `ru_maxrss` it is: bytes on macOS, kilobytes on the BSDs.
    """
    lines = read_text(Path("/proc/self/status")).splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
    if "VmHWM" in sizes:
        return max(sizes["VmHWM"], sizes["VmRSS"] + sizes.get("VmSwap", 0)), "VmHWM"
    resource = __import__("resource")  # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024), "ru_maxrss"


def read_text(path: Path) -> str:
    """Return a small system file's text, or nothing where it is missing or forbidden."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def conditions() -> dict[str, Any]:
    """Return what may change while a machine runs: boot, load, frequency (kHz), governor."""
    frequency = read_text(CPUFREQ / "scaling_cur_freq")
    return {
        "boot_id": read_text(Path("/proc/sys/kernel/random/boot_id")),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else [],
        "frequency_khz": int(frequency) if frequency.isdigit() else None,
        "governor": read_text(CPUFREQ / "scaling_governor"),
    }


def describe(job: Job, answer: Answer) -> dict[str, Any]:
    """Mode `describe`: what this machine is. A runtime is imported only if the job names one."""
    fields: dict[str, str] = {}
    for line in read_text(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    named = fields.get("model name") or read_text(Path("/proc/device-tree/model")) or fields.get("hardware")
    part, machine = f"{fields.get('cpu implementer')} {fields.get('cpu part')}", platform.machine()
    answer.stage = "load"
    facts = {
        "arch": {"AMD64": "x86_64", "arm64": "aarch64"}.get(machine, machine),
        "cpu": named or (f"implementer and part {part}" if "cpu part" in fields else platform.processor()),
        "features": sorted(set((fields.get("flags") or fields.get("features") or "").split())),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "os": platform.system().lower(), "kernel": platform.release(), "python": platform.python_version(),
        "runtime_version": runtime_version(str(job["runtime"])) if job.get("runtime") else "",
    }  # fmt: skip
    return dict(facts, **conditions())


MODES: dict[str, Callable[[Job, Answer], dict[str, Any]]] = {
    "outputs": write_outputs, "time": time_model, "memory": memory_use, "describe": describe,
    "sentinel": lambda job, _: {"sentinel": {"before_ns": sentinel(int(job.get("repeats", 12)))}},
}  # fmt: skip


def main(arguments: list[str]) -> None:
    """Read the job, pin the thread pools before numpy is loaded, do it, write the line."""
    answer = Answer()
    sys.excepthook = lambda _, error, trace: answer.fail(error.with_traceback(trace))
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8") if arguments else sys.stdin.read())
    if not isinstance(job, dict) or job.get("mode") not in MODES:
        raise BenchError("job", f"not a job: an object whose `mode` is one of {', '.join(MODES)} is expected")
    os.environ.update(OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", OMP_NUM_THREADS=str(int(job.get("threads", 1))))
    result = MODES[job["mode"]](job, answer)
    answer.write(dict(result, protocol=PROTOCOL, mode=job["mode"], bench_digest=file_digest(__file__)))


if __name__ == "__main__":
    main(sys.argv[1:])
