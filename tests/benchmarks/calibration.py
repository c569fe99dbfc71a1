"""Calibrating EfficientNet-Lite0: peak memory at 32, 128 and 1000 pictures, and time beside onnxruntime's min-max.

Every peak is VmHWM, read by a fresh process itself; pictures and crops of them are read as they are asked for. Times
are of whole calibrations in one process, ours and onnxruntime's in turn, on the same pictures with the same threads.
With EDGEEXPORT_BENCHMARKS_FULL=1 and 12 GB free, onnxruntime's own peak at 128 pictures is measured too.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.bar import Bar
from tests.benchmarks.commands import seconds
from tests.needs import DATA, ROOT

COUNTS = (32, 128, 1000)
METHODS = ("entropy", "percentile")
PEAK_MB, GROWTH, ENTROPY_RATIO = 600.0, 1.1, 3.0
TIMED_PICTURES, ROUNDS = 100, 5
FULL_BYTES = 12e9
SIZE = 224
EXPORT = """
import sys
from edgeexport.verbs import export
from tests.real.lite0 import efficientnet_lite0
export(efficientnet_lite0().eval(), {"image": (1, 3, 224, 224)}, out=sys.argv[1])
"""


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Measure peaks in fresh processes, then times."""
    with tempfile.TemporaryDirectory() as name:
        model = str(Path(name) / "lite0.onnx")
        seconds([sys.executable, "-c", EXPORT, model], cwd=ROOT)
        figures: dict[str, Any] = {}
        bars: dict[str, Bar] = {}
        for method in METHODS:
            peaks = {count: _child("ours", model, method, str(count)) for count in COUNTS}
            figures |= {f"{method}_peak_mb_{count}": peak for count, peak in peaks.items()}
            figures |= _theirs(model, method)
            source = "onnxruntime 2,412 / 8,340 / dies"
            bars |= {f"{method}_peak_mb_{count}": Bar(peak, PEAK_MB, source) for count, peak in peaks.items()}
            bars[f"{method}_peak_1000_to_32"] = Bar(peaks[1000] / peaks[32], GROWTH, "flat in the number of samples")
        for threads in sorted({1, min(2, os.cpu_count() or 1)}):
            found = _child("times", model, str(threads))
            figures[f"times_{threads}_threads"] = found
            label = f"with {threads} thread{'s' if threads > 1 else ''}"
            bars[f"minmax_ratio {label}"] = Bar(found["minmax_ratio"], 1.0, "no slower than onnxruntime's min-max")
            bars[f"entropy_ratio {label}"] = Bar(found["entropy_ratio"], ENTROPY_RATIO, "three of its min-max")
    return figures, bars


def _theirs(model: str, method: str) -> dict[str, float]:
    from edgeexport.data.prepared import free_memory

    full = os.environ.get("EDGEEXPORT_BENCHMARKS_FULL") == "1" and free_memory() > FULL_BYTES
    counts = (32, 128) if full else (32,)
    return {f"onnxruntime_{method}_peak_mb_{count}": _child("theirs", model, method, str(count)) for count in counts}


def _child(*arguments: str) -> Any:
    sys.stderr.write(" ".join((arguments[0], *arguments[2:])) + "\n")
    _, stdout = seconds([sys.executable, "-m", "tests.benchmarks.calibration", *arguments], cwd=ROOT)
    return json.loads(stdout.splitlines()[-1])


class Crops:
    """Normalized crops of the shared pictures, each made when it is asked for: all centres, then seeded places."""

    def __init__(self, count: int) -> None:
        from edgeexport.data.pictures import Pictures, ZipStore

        self.pictures = Pictures(ZipStore(DATA / "imagenet_sample" / "val.zip"), labelled=False)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        import numpy as np

        picture = self.pictures[index % len(self.pictures)][0]
        room = np.array(picture.shape[:2]) - SIZE
        random = np.random.default_rng(index)
        top, left = room // 2 if index < len(self.pictures) else random.integers(0, room + 1)
        crop = picture[top : top + SIZE, left : left + SIZE].astype(np.float32)
        return {"image": np.ascontiguousarray(((crop - 127) / 128).transpose(2, 0, 1))[None]}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(self.count))


class Reader:
    """Samples as onnxruntime wants them."""

    def __init__(self, samples: Any) -> None:
        self.left = iter(samples)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next sample, or None."""
        return next(self.left, None)


def _theirs_collects(calibrater: Any, samples: Any, *, threads: int) -> None:
    """Do what quantize_static does, with so many threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    calibrater.augment_graph()
    calibrater.infer_session = ort.InferenceSession(
        str(calibrater.augmented_model_path), options, providers=["CPUExecutionProvider"]
    )
    calibrater.collect_data(Reader(samples))
    calibrater.compute_data()


def _peak_of_theirs(model: str, method: str, count: str) -> float:
    from onnxruntime.quantization import calibrate as theirs

    kind = theirs.EntropyCalibrater if method == "entropy" else theirs.PercentileCalibrater
    calibrater = kind(Path(model), augmented_model_path=str(Path(model).with_name("augmented.onnx")))
    _theirs_collects(calibrater, Crops(int(count)), threads=1)
    return _peak_mb()


def _peak_of_ours(model: str, method: str, count: str) -> float:
    from edgeexport.quantization import calibrate

    calibrate(Path(model), Crops(int(count)), method=method, samples_digest="sha256:benchmark")
    return _peak_mb()


def _times(model: str, threads: str) -> dict[str, Any]:
    """Time whole calibrations in turn; ratios are medians over the rounds, each of neighbours in time."""
    from onnxruntime.quantization.calibrate import MinMaxCalibrater

    from edgeexport.quantization import calibrate, observe

    samples = list(Crops(TIMED_PICTURES))
    observe.THREADS = int(threads)

    def theirs() -> None:
        calibrater = MinMaxCalibrater(Path(model), augmented_model_path=str(Path(model).with_name("augmented.onnx")))
        _theirs_collects(calibrater, samples, threads=int(threads))

    def ours(method: str) -> None:
        calibrate(Path(model), samples, method=method, samples_digest="sha256:benchmark")

    jobs: dict[str, Callable[[], None]] = {
        "onnxruntime_minmax": theirs, "minmax": lambda: ours("minmax"), "entropy": lambda: ours("entropy"),
        "percentile": lambda: ours("percentile"),
    }  # fmt: skip
    took: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(ROUNDS):
        for name in sorted(jobs, reverse=bool(number % 2)):
            began = time.monotonic()
            jobs[name]()
            took[name].append(time.monotonic() - began)
    found: dict[str, Any] = {f"{name}_s": statistics.median(times) for name, times in took.items()}
    for name in ("minmax", "entropy", "percentile"):
        pairs = zip(took[name], took["onnxruntime_minmax"], strict=True)
        found[f"{name}_ratio"] = statistics.median(one / other for one, other in pairs)
    return found


def _peak_mb() -> float:
    """The most that this process ever held, as the kernel counts it for this process alone."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


if __name__ == "__main__":
    role = {"ours": _peak_of_ours, "theirs": _peak_of_theirs, "times": _times}[sys.argv[1]]
    sys.stdout.write("\n" + json.dumps(role(*sys.argv[2:])) + "\n")
