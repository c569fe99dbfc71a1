"""Run one model on this machine and say what happened: outputs, times, memory, or what the machine is.

A free-standing program: Python 3.8 or newer, the standard library, numpy and one runtime; it never imports edgeexport.
The job is one JSON object on stdin, or in the file named as the only argument. The answer is exactly one JSON line on
stdout; all that a runtime prints goes to stderr. An error is `{"error": {"kind": ..., "message": ...}}` and exit 1.

    echo '{"mode": "time", "runtime": "onnxruntime", "model": "m.onnx", "inputs": [{"x": "x.npy"}]}' | python bench.py

mode        "outputs", "count" (the same, each inference marked for an emulator that counts instructions), "time",
            "memory", "energy", "profile", "sentinel" or "describe"
runtime     "onnxruntime", "ai_edge_litert" or "tflite_runtime"
model       path; `sha256`, when given, must be its digest
inputs      one object for each sample: input name -> .npy file; samples are taken in turn
goldens     for the first samples: {"outputs": {name: .npy}, "tolerance": {name: largest |difference|}}
threads     of the runtime (default 1); options: how to open the model, as plain JSON
accelerator onnxruntime: the execution provider asked for (default "CPUExecutionProvider")
affinity    list of processor numbers that this process may use (default: what it was given)
warmup      {"iterations", "seconds"}: at least both, at most "cap_seconds"; timed: the same, "cap_iterations", and
            "probe_seconds": how often, between inferences, fixed reference work tells whether the core is disturbed
outputs_to  folder for the outputs
idle        mode energy: seconds of rest before the timed run, whose power is subtracted

The rule: the clock runs around the inference alone. A TFLite interpreter's inputs are filled outside it (as in its own
benchmark tool); onnxruntime takes them inside `run`.
"""

from __future__ import annotations

import array
import gc
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Job = dict[str, Any]
    Sample = dict[str, Any]

PROTOCOL = 1
COUNT_MARK = 0x45454D4B
CPU = "CPUExecutionProvider"
SYS, PROC = Path("/sys"), Path("/proc")
LARGEST_POWER_W = 10000.0


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
        accelerator = str(options.pop("accelerator", CPU))
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
        self.session = ort.InferenceSession(path, settings, providers=[accelerator])
        self.requested, self.actual = accelerator, self.session.get_providers()[0]
        self.threads = settings.intra_op_num_threads
        self.into = {item.name: item.name for item in self.session.get_inputs()}
        self.arity = len(self.into)
        self.output_names = [item.name for item in self.session.get_outputs()]

    def fit(self, sample: Sample) -> None:
        """Shapes are given with each call."""

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
        asked = str(options.pop("accelerator", "cpu"))
        if asked != "cpu":
            raise BenchError("job", f"a TFLite model runs on the cpu here, {asked!r} was asked for")
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

    def fit(self, sample: Sample) -> None:
        """Resize the inputs to a sample's shapes (another batch, say), where they differ."""
        details = {item["index"]: list(item["shape"]) for item in self.interpreter.get_input_details()}
        other = {name: value.shape for name, value in sample.items() if details[self.into[name]] != list(value.shape)}
        for name, shape in other.items():
            self.interpreter.resize_tensor_input(self.into[name], shape)
        if other:
            self.interpreter.allocate_tensors()

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
    version = getattr(sys.modules[runtime], "__version__", "")
    if not version:
        from importlib import metadata  # slow to load, and an emulated CPU is slower still

        version = metadata.version(runtime.replace("_", "-"))
    return str(version)


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
    options = dict(job.get("options") or {})
    options.update({"accelerator": job["accelerator"]} if job.get("accelerator") else {})
    session = kind(path, threads, options=dict(options), module=module)
    session.load_ms = (time.perf_counter_ns() - start) / 1e6
    session.memory = {"method": method, "before_load_bytes": before, "after_load_bytes": peak_bytes()[0]}
    answer.stage, session.samples = "run", samples
    session.facts = {
        "runtime": runtime, "runtime_version": version, "model_digest": actual,
        "threads": {"requested": threads, "actual": session.threads},
        "accelerator": {"requested": session.requested, "actual": session.actual},
        "affinity": {"requested": job.get("affinity"), "actual": affinity()},
    }  # fmt: skip
    for sample in samples or [{}]:
        if len(sample) != session.arity or not set(sample) <= set(session.into):
            raise BenchError("job", f"inputs {sorted(sample)} given, the model has {sorted(session.into)}")
    if samples:
        session.fit(samples[0])
    return session


def affinity() -> list[int]:
    """Return the processors that this process may use; nothing where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def pin(wanted: list[int]) -> None:
    """Confine this process, and the threads it will start, to some processors."""
    if not hasattr(os, "sched_setaffinity"):
        raise BenchError("job", "this system has no affinity")
    try:
        os.sched_setaffinity(0, {int(number) for number in wanted})
    except (OSError, ValueError) as error:
        raise BenchError("job", f"affinity {wanted}: {error}; there are the processors {affinity()}") from error


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
    """Time a fixed piece of work, integer products in plain loops: 12 times 1.5 ms on a desktop core.

    One operation waits for the other, so its time tells the clock of the core, and little of what else the core does:
    a change is a change of the machine. The pieces are short, so that most of them escape interruption by other
    programs. What shares the core's units is told by `Reference`.
    """
    import numpy as np

    integers = np.linspace(-50, 50, 256 * 256).astype(np.int16).reshape(256, 256)
    out, times = np.empty((48, 96), np.int16), []
    for _ in range(repeats + 1):
        start = time.perf_counter_ns()
        np.matmul(integers[:48], integers[:, :96], out=out)
        times.append(time.perf_counter_ns() - start)
    return times[1:]


class Reference:
    """Fixed float32 products that need a core's units for themselves, and no more than its own caches.

    On a virtual machine, another guest on the same physical core makes a model 1.3 to 1.5 times slower for tenths of a
    second, which no counter of the system tells. These products slow down with it (37 to 55 us on a desktop core).
    """

    def __init__(self) -> None:
        import numpy as np

        self.factors = np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
        self.product, self.multiply = np.empty_like(self.factors), np.matmul
        self.probes: list[list[int]] = []
        self.wall_ns = self.cpu_ns = 0

    def probe(self, count: int) -> int:
        """Note how long it takes after `count` iterations; return the nanoseconds that this cost altogether.

        The second pass counts: what the model left in the caches is no matter.
        """
        began, cpu = time.perf_counter_ns(), time.process_time_ns()
        for _ in range(2):
            start = time.perf_counter_ns()
            for _ in range(4):
                self.multiply(self.factors, self.factors, out=self.product)
        stop = time.perf_counter_ns()
        self.probes.append([count, stop - start])
        self.cpu_ns += time.process_time_ns() - cpu
        self.wall_ns += stop - began
        return stop - began


def warm_up(session: Any, plan: dict[str, Any]) -> dict[str, Any]:
    """Run at least so many inferences and seconds, at most the cap, untimed; the first hundred times are kept."""
    start, count, times = time.perf_counter(), 0, []
    least, enough = int(plan.get("iterations", 10)), start + float(plan.get("seconds", 0))
    cap = start + float(plan.get("cap_seconds", 60))
    while time.perf_counter() < cap and (count < least or time.perf_counter() < enough):
        session.put(session.samples[count % len(session.samples)])
        began = time.perf_counter_ns()
        session.call()
        count += 1
        if count <= 100:
            times.append(time.perf_counter_ns() - began)
    return {"iterations": count, "seconds": time.perf_counter() - start, "iterations_ns": times}


def room(plan: dict[str, Any]) -> array.array[int]:
    """Return memory for the times of a timed loop; to be called before the warm-up, because it fills the caches."""
    return array.array("q", bytes(8 * int(plan.get("cap_iterations", 1_000_000))))


def timed_loop(session: Any, plan: dict[str, Any], *, stamps: array.array[int], reference: Reference) -> list[int]:
    """Time inference after inference: at least `iterations` and `seconds`, at most the caps. Nanoseconds each.

    The reference work is done between them, outside the clock.
    """
    least, capacity = int(plan.get("iterations", 64)), len(stamps)
    put, call, clock = session.put, session.call, time.perf_counter_ns
    samples, many, count = session.samples, len(session.samples), 0
    gap = int(float(plan.get("probe_seconds", 0)) * 1e9)
    stop = began = clock()
    due = began if gap else sys.maxsize
    enough = began + int(float(plan.get("seconds", 1)) * 1e9)
    cap = began + int(float(plan.get("cap_seconds", 60)) * 1e9)
    while count < capacity and stop < cap and (count < least or stop < enough):
        if stop >= due:
            spent = reference.probe(count)
            enough, cap, due = enough + spent, cap + spent, clock() + max(gap, 20 * spent)
        put(samples[count % many])
        start = clock()
        call()
        stop = clock()
        stamps[count] = stop - start
        count += 1
    if gap:
        reference.probe(count)
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
    gc.collect()  # before the warm-up, like `room`: both leave caches that know nothing of the model
    gc.disable()
    plan = job.get("timed") or {}
    stamps, reference = room(plan), Reference()
    warm = warm_up(session, job.get("warmup") or {})
    began, wall, cpu = time.monotonic_ns(), time.perf_counter(), time.process_time()
    iterations = timed_loop(session, plan, stamps=stamps, reference=reference)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    timed: dict[str, Any] = {"seconds": wall - reference.wall_ns / 1e9, "cpu_seconds": cpu - reference.cpu_ns / 1e9}
    gc.enable()
    timed["began_ns"] = began
    timed["process_threads"] = number(PROC / "self/status", "Threads")
    golden = check_goldens(job, session, when="after timing")
    return dict(
        session.facts, load_ms=session.load_ms, first_ms=first_ms, warmup=warm, timed=timed,
        iterations_ns=iterations, probes=reference.probes,
        sentinel={"before_ns": sentinel_before, "after_ns": sentinel()}, goldens=golden,
        clock={"resolution_ns": time.get_clock_info("perf_counter").resolution * 1e9},
        environment={"before": before, "after": conditions()},
    )  # fmt: skip


def write_outputs(job: Job, answer: Answer) -> dict[str, Any]:
    """Mode `outputs`: write `<sample>.<output>.npy` into `outputs_to`, and return their names and digests."""
    import numpy as np

    session, folder, mark = open_session(job, answer), Path(str(job["outputs_to"])), marker(job)
    if job["mode"] == "count":
        settle(session)
    written: list[dict[str, Any]] = [{} for _ in session.samples]
    folder.mkdir(parents=True, exist_ok=True)
    for index, sample in enumerate(session.samples):
        session.put(sample)
        mark(2 * index)
        session.call()
        mark(2 * index + 1)
        for place, (name, value) in enumerate(sorted(session.outputs().items())):
            path = folder / f"{index}.{place}.npy"
            np.save(str(path), value, allow_pickle=False)
            written[index][name] = {"file": path.name, "digest": file_digest(str(path))}
    return dict(session.facts, outputs=written)


def settle(session: Any) -> None:
    """Run inferences until Python has adapted its code to them, before any is counted: eight, or half a second."""
    start = time.perf_counter()
    for index in range(8):
        session.put(session.samples[index % len(session.samples)])
        session.call()
        if time.perf_counter() - start > 0.5:
            return


def marker(job: Job) -> Callable[[int], object]:
    """Return what mode `count` calls before and after each inference: getpriority of nobody, which emulators see."""
    if job["mode"] != "count":
        return lambda _: None
    gc.collect()
    gc.disable()  # a collection is no part of an inference
    getpriority = __import__("ctypes").CDLL(None).getpriority
    return lambda number: getpriority(COUNT_MARK, number)


def memory_use(job: Job, answer: Answer) -> dict[str, Any]:
    """Mode `memory`: peak resident bytes of this process before the model is loaded, and after some inferences."""
    session = open_session(job, answer)
    done = warm_up(session, job.get("timed") or {})
    memory = dict(session.memory, peak_bytes=peak_bytes()[0], iterations=done["iterations"], rollup=rollup())
    golden = check_goldens(job, session, when="after the memory run")
    return dict(session.facts, memory=memory, goldens=golden, environment={"after": conditions()})


def energy_use(job: Job, answer: Answer) -> dict[str, Any]:
    """Mode `energy`: joules of one inference by the machine's own energy counters, net of its idle power.

    Counters: powercap (RAPL), hwmon `energy*_input`, and the ODPM of phones (iio `energy_value`). Without one there is
    a reason and no number: a battery gauge is too coarse.
    """
    if not rails():
        return {"energy": {"reason": "not measured: this machine has no energy counter that can be read"}}
    session, rest = open_session(job, answer), float(job.get("idle", 5))
    golden = check_goldens(job, session, when="before the energy run")
    warm_up(session, job.get("warmup") or {})
    idle = watts(lambda: time.sleep(rest))
    count: list[int] = []
    plan = job.get("timed") or {}
    busy = watts(lambda: count.append(len(timed_loop(session, plan, stamps=room(plan), reference=Reference()))))
    found = {}
    for name, (power, seconds) in busy.items():
        if name in idle:
            joules = (power - idle[name][0]) * seconds / count[0]
            found[name] = {"idle_w": idle[name][0], "busy_w": power, "j_per_inference": joules, "seconds": seconds}
    return dict(session.facts, goldens=golden, energy={"rails": found, "iterations": count[0], "idle_seconds": rest})


def rails() -> dict[str, float]:
    """Return the joules that each readable counter shows, by its name and path."""
    found: dict[str, float] = {}
    for path in [
        *sorted(SYS.glob("class/powercap/*/energy_uj")),
        *sorted(SYS.glob("class/hwmon/hwmon*/energy*_input")),
    ]:
        joules = number(path)
        if joules is not None:
            found[f"{read_text(path.parent / 'name')} {path.parent.name}/{path.name}"] = joules / 1e6
    for path in sorted(SYS.glob("bus/iio/devices/iio:device*/energy_value")):
        # ODPM: `CH0(T=1234)[VSYS_PWR_MMWAVE], 5678` in microjoules
        pairs = [line.rpartition(",") for line in read_text(path).splitlines()]
        found.update((f"odpm {name.strip()}", int(value) / 1e6) for name, _, value in pairs if value.strip().isdigit())
    return found


def watts(work: Callable[[], Any]) -> dict[str, tuple[float, float]]:
    """Return each counter's mean power while `work` runs, and the seconds; one that wrapped round is left out."""
    before, start = rails(), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - start, rails()
    powers = {name: ((after[name] - joules) / seconds, seconds) for name, joules in before.items() if name in after}
    return {name: pair for name, pair in powers.items() if 0 <= pair[0] < LARGEST_POWER_W}


def profile(job: Job, answer: Answer) -> dict[str, Any]:
    """Mode `profile`: microseconds of every node, by onnxruntime's own profiler. A launch of its own: it costs time."""
    if job.get("runtime") != "onnxruntime":
        return {"profile": {"reason": f"{job.get('runtime')} gives no times of single operators"}}
    with tempfile.TemporaryDirectory() as folder:
        options = dict(job.get("options") or {}, enable_profiling=True, profile_file_prefix=str(Path(folder) / "p"))
        session = open_session(dict(job, options=options), answer)
        done = warm_up(session, job.get("warmup") or {})
        events = json.loads(Path(session.session.end_profiling()).read_text(encoding="utf-8"))
    nodes: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        name, about = event["name"][: -len("_kernel_time")], event["args"]
        row = {"name": name, "op": about.get("op_name"), "provider": about.get("provider"), "calls": 0, "us": 0}
        node = nodes.setdefault(name, row)
        node["calls"] += 1
        node["us"] += event["dur"]
    return dict(session.facts, profile={"iterations": done["iterations"], "nodes": list(nodes.values())})


def peak_bytes() -> tuple[int, str]:
    """Return peak resident bytes and the method.

    On Linux `VmHWM`, or what is resident and swapped out if that is more; `ru_maxrss` there inherits the parent's
    peak. Elsewhere `ru_maxrss` it is: bytes on macOS, kilobytes on the BSDs.
    """
    lines = read_text(PROC / "self/status").splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
    if "VmHWM" in sizes:
        return max(sizes["VmHWM"], sizes["VmRSS"] + sizes.get("VmSwap", 0)), "VmHWM"
    resource = __import__("resource")  # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024), "ru_maxrss"


def rollup() -> dict[str, int]:
    """Return this process's share of memory in bytes (PSS, what is private and dirty, what is swapped), on Linux."""
    wanted = ("Rss", "Pss", "Pss_Anon", "Pss_File", "Private_Dirty", "Swap", "SwapPss")
    lines = [line.split() for line in read_text(PROC / "self/smaps_rollup").splitlines() if line.endswith(" kB")]
    return {name[:-1]: int(size) * 1024 for name, size, _ in lines if name[:-1] in wanted}


def read_text(path: Path) -> str:
    """Return a small system file's text, or nothing where it is missing or forbidden."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def number(path: Path, field: str = "") -> int | None:
    """Return the whole number in a system file, or after `field` in it; None where there is none."""
    for line in read_text(path).splitlines():
        words = line.replace(":", " ").split() if field else ["", line]
        if len(words) > 1 and words[0] == field and words[1].lstrip("-").isdigit():
            return int(words[1])
    return None


def conditions() -> dict[str, Any]:
    """Return what may change while a machine runs: boot, load, frequency (kHz), governor, heat (degrees C), supply."""
    cores = sorted(SYS.glob("devices/system/cpu/cpu[0-9]*"))
    frequencies = [number(core / "cpufreq/scaling_cur_freq") for core in cores]
    throttled = [number(core / "thermal_throttle/core_throttle_count") for core in cores]
    known = [value for value in frequencies if value is not None]
    supplies = [(read_text(path / "type"), path) for path in sorted(SYS.glob("class/power_supply/*"))]
    return {
        "boot_id": read_text(PROC / "sys/kernel/random/boot_id"),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else [],
        "frequency_khz": known[0] if known else None, "frequencies_khz": known,
        "governor": read_text(SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "temperatures_c": temperatures(),
        "throttle_events": sum(value or 0 for value in throttled) if any(throttled) else None,
        "firmware_throttled": read_text(SYS / "devices/platform/soc/soc:firmware/get_throttled"),
        "swapped_in_pages": number(PROC / "vmstat", "pswpin"),
        "free_kb": number(PROC / "meminfo", "MemAvailable"),
        "battery_percent": next((number(path / "capacity") for kind, path in supplies if kind == "Battery"), None),
        "plugged": any(number(path / "online") == 1 for _, path in supplies) if supplies else None,
    }  # fmt: skip


def temperatures() -> dict[str, float]:
    """Return degrees Celsius by sensor: thermal zones, or hwmon where there are none."""
    zones = [(path, read_text(path.parent / "type")) for path in sorted(SYS.glob("class/thermal/thermal_zone*/temp"))]
    chips = [(path, read_text(path.parent / "name")) for path in sorted(SYS.glob("class/hwmon/hwmon*/temp*_input"))]
    found = [(f"{name} {path.parent.name}", number(path)) for path, name in zones or chips]
    return {name: value / 1000 for name, value in found if value is not None}


def describe(job: Job, answer: Answer) -> dict[str, Any]:
    """Mode `describe`: what this machine is. A runtime is imported only if the job names one."""
    fields: dict[str, str] = {}
    for line in read_text(PROC / "cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    named = fields.get("model name") or read_text(PROC / "device-tree/model") or fields.get("hardware")
    part, machine = f"{fields.get('cpu implementer')} {fields.get('cpu part')}", platform.machine()
    answer.stage = "load"
    facts = {
        "arch": {"AMD64": "x86_64", "arm64": "aarch64"}.get(machine, machine),
        "cpu": named or (f"implementer and part {part}" if "cpu part" in fields else platform.processor()),
        "features": sorted(set((fields.get("flags") or fields.get("features") or "").split())),
        "cores": len(affinity()) or os.cpu_count() or 1, "capacities": capacities(),
        "hypervisor": "hypervisor" in (fields.get("flags") or "").split(),
        "os": platform.system().lower(), "kernel": platform.release(), "python": platform.python_version(),
        "runtime_version": runtime_version(str(job["runtime"])) if job.get("runtime") else "",
    }  # fmt: skip
    return dict(facts, **conditions())


def capacities() -> list[int]:
    """Return how strong each processor is beside the others (Linux's cpu_capacity, or its highest kHz); or nothing."""
    cores = [SYS / f"devices/system/cpu/cpu{index}" for index in range(os.cpu_count() or 1)]
    for file in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        found = [number(core / file) for core in cores]
        if all(found):
            return [value or 0 for value in found]
    return []


MODES: dict[str, Callable[[Job, Answer], dict[str, Any]]] = {
    "outputs": write_outputs, "count": write_outputs, "time": time_model, "memory": memory_use, "describe": describe,
    "energy": energy_use, "profile": profile,
    "sentinel": lambda job, _: {"sentinel": {"before_ns": sentinel(int(job.get("repeats", 12)))}},
}  # fmt: skip


def main(arguments: list[str]) -> None:
    """Read the job, pin the thread pools before numpy is loaded, do it, write the line."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return
    answer = Answer()
    sys.excepthook = lambda _, error, trace: answer.fail(error.with_traceback(trace))
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8") if arguments else sys.stdin.read())
    if not isinstance(job, dict) or job.get("mode") not in MODES:
        raise BenchError("job", f"not a job: an object whose `mode` is one of {', '.join(MODES)} is expected")
    os.environ.update(OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", OMP_NUM_THREADS=str(int(job.get("threads", 1))))
    if job.get("affinity"):
        pin(list(job["affinity"]))
    result = MODES[job["mode"]](job, answer)
    answer.write(dict(result, protocol=PROTOCOL, mode=job["mode"], bench_digest=file_digest(__file__)))


if __name__ == "__main__":
    main(sys.argv[1:])
