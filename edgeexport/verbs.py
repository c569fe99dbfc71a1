"""The verbs for one step each, on live objects and paths: what `run` does on the way, without the road around it.

The rule: nothing is cached, gated or judged here; every function does one thing and returns the record of it. Feeds are
`{input name: array}` with the batch axis first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.progress import Progress, silent
from edgeexport.records.base import file_digest, listed
from edgeexport.records.export import ExportRecord
from edgeexport.records.measurement import Comparison, Measurement, Mode
from edgeexport.records.parity import Parity
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.ranges import Ranges
from edgeexport.records.recipe import Distill, Inputs, ModelSpec, Prune, Quantize
from edgeexport.records.target import Target, Tolerance, load_target
from edgeexport.records.training import TrainingRecord

if TYPE_CHECKING:
    from torch import nn

    from edgeexport.runtimes.protocol import Converted, Feeds
    from edgeexport.training import TrainingData


def distill(
    student: nn.Module,
    teacher: nn.Module,
    *,
    data: TrainingData,
    step: Distill | None = None,
    progress: Progress = silent,
) -> TrainingRecord:
    """Train `student` in place on the outputs of `teacher` (Hinton et al. 2015), and on labels where there are any."""
    from edgeexport.compression.distill import distill as run_distill

    return run_distill(student, teacher, data=data, step=step or Distill(), progress=progress)


def prune(
    module: nn.Module,
    inputs: Inputs,
    *,
    step: Prune | None = None,
    target: Target | str | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> tuple[nn.Module, PruningPlan]:
    """Return a pruned copy of a network, not retrained, and the plan that made it.

    inputs: name -> shape, batch first, or an InputSpec. target: where it is to run, in int8: what `max_size_mb` counts
    then (without a target: fp32), and what `speedup` needs: the layers are timed there on `device` ("local"), or
    predicted where that may not judge the target.
    Raises ModelError when the goal cannot be reached safely.
    """
    import copy

    from edgeexport.compression.candidates import find_candidates
    from edgeexport.compression.greedy import FINE
    from edgeexport.compression.latency import grids, latency_price
    from edgeexport.compression.price import size_price
    from edgeexport.compression.prune import Means, apply_pruning, plan_pruning
    from edgeexport.compression.source import example_feeds

    example, step = example_feeds(inputs), step or Prune(macs=2.0)
    # In train mode, every look at it would move its batch norms.
    module = copy.deepcopy(module).eval()
    found = find_candidates(module, example, step=step, progress=progress)
    prices = []
    if step.max_size_mb is not None and target is not None:
        prices.append(size_price(module, example, int8=True))
    if step.speedup is not None and target is not None:
        from edgeexport.pipeline.layer_times import Place, time_layers

        wanted = grids(module, example, groups=found.groups, step=min(FINE, step.round_to))
        table = time_layers(Place(_target(target), "int8", device), wanted, progress=progress)
        prices.append(latency_price(module, example, table=table))
    plan = plan_pruning(module, example, step=step, means=Means(prices), candidates=found, progress=progress)
    return apply_pruning(module, plan, example=example), plan


def export(
    module: nn.Module,
    inputs: Inputs,
    *,
    out: Path | str,
    samples: Sequence[Feeds] = (),
    outputs: Sequence[str] = (),
) -> ExportRecord:
    """Write a network as a cleaned .onnx file with a free batch, checked against it by its numbers.

    inputs: name -> shape, batch first, or an InputSpec for what is not float32. samples: real feeds of batch 1 to check
    with; seeded noise when there are none.
    """
    from edgeexport import graph, onnx_export
    from edgeexport.compression.source import example_feeds

    spec = ModelSpec(factory=module, inputs=dict(inputs), outputs=tuple(outputs))
    feeds = list(samples) or [example_feeds(inputs)]
    path = Path(out)
    record = onnx_export.export_module(module, spec, path=path, samples=feeds, tolerance=Tolerance().float_error)
    cleaned, _ = onnx_export.clean(graph.load(path))
    graph.save(cleaned, path)
    return record


def calibrate(
    model: Path | str, samples: Iterable[Feeds], *, method: str = "minmax", progress: Progress = silent
) -> Ranges:
    """Collect the ranges of an fp32 .onnx file's tensors over samples: "minmax", "percentile", "entropy" or "mse"."""
    from edgeexport import quantization

    feeds = list(samples)
    digest = _digest_of(feeds)
    return quantization.calibrate(Path(model), feeds, method=method, samples_digest=digest, progress=progress)


def quantize(
    model: Path | str,
    ranges: Ranges,
    *,
    target: Target | str,
    out: Path | str,
    keep_float: Mapping[str, str] | None = None,
) -> QuantizationPlan:
    """Write the int8 QDQ form of an fp32 .onnx file in a target's number format; return the plan that it follows."""
    from edgeexport import quantization

    numbers = _target(target).numbers()
    plan = quantization.plan_quantization(Path(model), ranges, numbers=numbers, keep_float=keep_float)
    quantization.quantize(Path(model), plan, out=Path(out))
    return plan


def qat(
    model: Path | str,
    ranges: Ranges,
    *,
    data: TrainingData,
    target: Target | str,
    out: Path | str,
    step: Quantize | None = None,
) -> QuantizationPlan:
    """Train an fp32 .onnx file's weights for a target's integers and write the int8 QDQ form; return its plan.

    Learns the file's own answers in float, and labels where `data` has them (see `quantization.train_quantized`).
    step: how long, with which nodes in float, and whether scales are learnt.
    """
    import tempfile

    from edgeexport import quantization

    asked, path = step or Quantize(), Path(model)
    kept = dict.fromkeys(asked.keep_float, "asked for")
    plan = quantization.plan_quantization(path, ranges, numbers=_target(target).numbers(), keep_float=kept)
    classes = data.answers in {None, "classes"}
    lesson = quantization.Lesson(asked.training, classes=classes, learn_steps=asked.learn_steps)
    with tempfile.TemporaryDirectory(prefix="edgeexport-") as folder:
        trained = Path(folder) / "trained.onnx"
        plan = quantization.train_quantized(path, plan, data=data, out=trained, lesson=lesson).plan
        quantization.quantize(trained, plan, out=Path(out))
    return plan


def convert(
    model: Path | str,
    *,
    target: Target | str,
    out: Path | str,
    samples: Sequence[Feeds],
    ranges: Ranges | None = None,
    progress: Progress = silent,
) -> Converted:
    """Write the file that runs on a target from an fp32 .onnx file: int8 when `ranges` are given, else fp32."""
    import tempfile

    from edgeexport import runtimes
    from edgeexport.runtimes.protocol import Conversion

    place = _target(target)
    with tempfile.TemporaryDirectory(prefix="edgeexport-") as folder:
        quantized = Path(folder) / "int8.onnx" if ranges is not None else None
        plan = quantize(model, ranges, target=place, out=quantized) if ranges is not None and quantized else None
        job = Conversion(Path(model), quantized, ranges, plan, lambda: iter(samples), place)
        return runtimes.get(place.runtime).convert(job, Path(out), progress=progress)


def compare(
    reference: Path | str,
    candidate: Path | str,
    *,
    samples: Sequence[Feeds],
    float_error: float | None = None,
    sqnr_db: float | None = None,
) -> Parity:
    """Compare two model files of any runtime on the same feeds, given in the reference's own signature.

    Without a tolerance of its own, the comparison holds up to the house's float error.
    """
    from edgeexport import runtimes
    from edgeexport.runtimes.protocol import adapt_feeds, adapt_outputs
    from edgeexport.validation.compare import compare_sessions

    left, right = (runtimes.get(runtimes.for_file(path)).open(Path(path)) for path in (reference, candidate))

    def run_candidate(feeds: Feeds) -> dict[str, Any]:
        own = right.run(adapt_feeds(feeds, left.signature, to=right.signature))
        return adapt_outputs(own, right.signature, to=left.signature)

    if float_error is None and sqnr_db is None:
        float_error = Tolerance().float_error
    digests = (file_digest(Path(reference)), file_digest(Path(candidate)))
    return compare_sessions(
        left.run, run_candidate, samples=samples, artifacts=digests, float_error=float_error, sqnr_db=sqnr_db
    )


def measure(
    models: Sequence[Path | str] | Path | str,
    *,
    samples: Sequence[Feeds],
    device: str = "local",
    threads: int = 1,
    mode: Mode = "brief",
    progress: Progress = silent,
) -> tuple[list[Measurement], list[Comparison]]:
    """Measure model files interleaved on a device; return each one's figures and each later one beside the first.

    samples: feeds in the first file's signature. A measurement that is not valid says why and has no number.
    """
    from edgeexport import devices, runtimes
    from edgeexport.runtimes.protocol import adapt_feeds
    from edgeexport.validation import measure as measuring

    models = listed(models)
    sessions = [runtimes.get(runtimes.for_file(path)).open(Path(path)) for path in models]
    subjects = [
        measuring.Subject(
            label=Path(path).name,
            path=Path(path),
            digest=file_digest(Path(path)),
            runtime=runtimes.for_file(path),
            inputs=[adapt_feeds(feeds, sessions[0].signature, to=session.signature) for feeds in samples],
            threads=threads,
        )
        for path, session in zip(models, sessions, strict=True)
    ]
    return measuring.measure(subjects, device=devices.get(device), mode=mode, progress=progress)


def _target(target: Target | str) -> Target:
    return load_target(target) if isinstance(target, str) else target


def _digest_of(feeds: Sequence[Feeds]) -> str:
    """The digest of the samples that a calibration saw: names, types, shapes and bytes, in order."""
    taken = hashlib.sha256()
    for sample in feeds:
        for name, array in sorted(sample.items()):
            taken.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return f"sha256:{taken.hexdigest()}"
