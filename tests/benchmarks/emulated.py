"""Emulated presets x (onnxruntime, LiteRT) x (fp32, int8) on the demo's digits network and the released ResNet-20."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgeexport
from edgeexport import graph, runtimes
from edgeexport.bundles.pack import golden_tolerance
from edgeexport.records.base import file_digest
from edgeexport.records.emulation import EmulationRecord
from edgeexport.records.target import Target, load_target
from edgeexport.runtimes.protocol import Feeds, adapt_feeds
from edgeexport.validation.emulation import validate_emulated
from edgeexport.validation.measure import Subject
from tests.benchmarks.bar import Bar
from tests.needs import DATA, ROOT

SECONDS = 90.0
CALIBRATION, SAMPLES, AT_ONCE = 32, 3, 2
TARGETS = ("linux-arm64", "android-arm64-litert")  # any 64-bit Arm: every preset stands for them


@dataclass(frozen=True)
class Case:
    """One file to validate: `name` says network, runtime and numbers."""

    name: str
    subject: Subject
    target: Target
    int8: bool


def digits() -> tuple[Any, list[Feeds]]:
    """The demo's student, trained for a moment, and its pictures."""
    import torch

    from edgeexport.demo.models import student

    with np.load(ROOT / "calibration" / "digits.npz") as stored:
        pictures = stored["images"].transpose(0, 3, 1, 2).astype(np.float32) / 16
        labels = torch.from_numpy(stored["labels"].astype(np.int64))
    torch.manual_seed(0)
    module, images = student(), torch.from_numpy(pictures)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for chosen in torch.randperm(len(images)).split(64):
        loss = torch.nn.functional.cross_entropy(module(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval(), [{"image": picture[None]} for picture in pictures[:: len(pictures) // CALIBRATION]]


def resnet20() -> tuple[Any, list[Feeds]]:
    """The released network and CIFAR-10 pictures."""
    import torch

    from tests.quantization.test_real_resnet import pictures_of
    from tests.real.models import resnet20 as build

    stored = torch.load(DATA / "checkpoints" / "resnet20-12fca82f.th", weights_only=True, map_location="cpu")
    module = build()
    module.load_state_dict({name.removeprefix("module."): value for name, value in stored["state_dict"].items()})
    return module.eval(), [{"image": picture} for picture in pictures_of(DATA, "train", CALIBRATION)]


NETWORKS = {"digits": digits, "resnet20": resnet20}


def cases(folder: Path, names: Sequence[str] = tuple(NETWORKS), targets: Sequence[str] = TARGETS) -> Iterator[Case]:
    """Export, quantize and convert each network for each runtime."""
    for name in names:
        module, feeds = NETWORKS[name]()
        spine = folder / f"{name}.onnx"
        edgeexport.export(module, {"image": feeds[0]["image"].shape}, out=spine, samples=feeds[:2])
        for target in map(load_target, targets):
            for int8 in (False, True):
                yield _case(name, spine, feeds=feeds, target=target, int8=int8)


def _case(name: str, spine: Path, *, feeds: list[Feeds], target: Target, int8: bool) -> Case:
    numbers = "int8" if int8 else "fp32"
    path = spine.with_name(f"{name}-{numbers}.{target.format}")
    ranges = edgeexport.calibrate(spine, feeds) if int8 else None
    made = edgeexport.convert(spine, target=target, out=path, samples=feeds, ranges=ranges)
    source, steps = graph.signature(graph.load(spine)), None
    if int8:  # the output stays float: elsewhere it may be off by what int8 is off from float here, as in the pipeline
        off = edgeexport.compare(spine, path, samples=feeds[:SAMPLES], sqnr_db=10).outputs[0].max_abs_error
        steps = {made.signature.outputs[0].name: off / target.tolerance.golden_steps}
    own = [adapt_feeds(each, source, to=made.signature) for each in feeds[:SAMPLES]]
    session = runtimes.get(target.runtime).open(path, options=made.session_options)
    allowed = [
        golden_tolerance(session.run(each), made.signature, tolerance=target.tolerance, steps=steps) for each in own
    ]
    subject = Subject(
        label=path.name,
        path=path,
        digest=file_digest(path),
        runtime=target.runtime,
        inputs=own,
        options=made.session_options,
        tolerance={output: max(each[output] for each in allowed) for output in allowed[0]},
    )
    return Case(f"{name} {target.runtime} {numbers}", subject, target, int8)


def figures_of(record: EmulationRecord) -> dict[str, Any]:
    """What a record says, in few words."""
    return {
        run.device: {
            "holds": run.holds,
            "reason": run.reason,
            "max_abs_error": max((output.max_abs_error for output in run.outputs), default=None),
            "instructions": run.counts.total if run.counts else None,
            "dot_products": run.counts.dot_product if run.counts else None,
            "multiply_accumulates": run.counts.multiply_accumulate if run.counts else None,
        }
        for run in record.runs
    }


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Validate every file on every preset; the clock runs around the validation, not around making the files."""
    figures: dict[str, Any] = {}
    runs = held = 0
    with tempfile.TemporaryDirectory() as folder:
        made = list(cases(Path(folder)))
        start, before = time.monotonic(), os.times()
        # Two files at a time: three presets and two cores leave one of them idle a quarter of the time.
        with ThreadPoolExecutor(AT_ONCE) as pool:
            records = list(pool.map(lambda case: validate_emulated(case.subject, case.target, int8=case.int8), made))
        for case, record in zip(made, records, strict=True):
            figures[case.name] = {**figures_of(record), "notes": record.notes}
            runs, held = runs + len(record.runs), held + sum(run.holds for run in record.runs)
        took, after = time.monotonic() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    wanted = 3 * 2 * 2 * 2
    bars = {
        "within tolerance": Bar(held, wanted, "3 presets x 2 runtimes x (fp32, int8) x 2 networks", kind="min"),
        "seconds": Bar(took, SECONDS, "all of them together"),
    }
    return {"runs": runs, "seconds": took, "cpu_seconds": cpu, **figures}, bars
