"""EfficientNet-Lite0, int8 per channel: agreement with fp32 and speed, beside onnxruntime's own and NNCF's int8.

The rule: 100 pictures calibrate, and half of them choose what ships; 10 crops each of the other 400 judge, and nothing
is chosen on them. Labels are for reporting alone.
"""

from __future__ import annotations

import io
import itertools
import platform
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgeexport
from edgeexport import graph
from edgeexport.quantization import (
    calibrate,
    choose_float,
    equalize,
    learn_rounding,
    measured_wins,
    plan_quantization,
    quantize,
    sensitivity,
)
from edgeexport.quantization.repairs.spine import SPINE_EDITS, all_of, edited
from edgeexport.records.base import file_digest
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.target import NumberFormat
from edgeexport.runtimes.ort import open_session
from edgeexport.runtimes.ort_kernels import for_integer_kernels
from edgeexport.validation.paired import mean_draws, percentile_interval
from tests.benchmarks.bar import Bar
from tests.benchmarks.peers import NETWORKS, _quantized
from tests.needs import DATA

AGREEMENT, SPEED_UP = 98.8, 2.1
BEST_PEER_BEFORE = "97.8 to 99.3 % (onnxruntime), 96 to 98 % (NNCF, AIMET) on 300 to 500 pictures"
SIDE = 224

Pictures = NDArray[np.float32]


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Quantize with every tool, choose our method on the selection half, judge all on the same crops."""
    with tempfile.TemporaryDirectory() as name:
        rows = compared(Path(name), per_channel=True, peers=("nncf",))
    best = max(row["agreement"] for name, row in rows.items() if name not in {"fp32", "ours"} and "agreement" in row)
    ours = rows["ours"]
    return rows, {
        "agreement": Bar(ours["agreement"], AGREEMENT, BEST_PEER_BEFORE, "min"),
        "agreement_to_best_peer": Bar(ours["agreement"] - best, 0.0, "the best peer of this run", "min"),
        "speed_up": Bar(ours["speed_up"], SPEED_UP, "onnxruntime's own int8: 2.0 times faster than fp32", "min"),
    }


def compared(folder: Path, *, per_channel: bool, peers: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Return the figures of fp32, onnxruntime's int8, peers in environments of their own, and ours."""
    network = NETWORKS["lite0"](folder)
    names, labels = judged_names()
    calibration = np.load(network.calibration)["image"]
    files = {"fp32": network.fp32}
    rows: dict[str, dict[str, Any]] = {}
    for peer in peers:
        rows[peer] = _quantized(peer, network)
        files |= {peer: rows[peer].pop("file")} if "reason" not in rows[peer] else {}
    files["ort"] = onnxruntimes_own(network.fp32, calibration, folder=folder, per_channel=per_channel)
    began = time.monotonic()
    files["ours"], chosen = ours(network.fp32, calibration, folder=folder, per_channel=per_channel)
    rows["ours"] = {"seconds": time.monotonic() - began, "chosen": chosen}
    answers = {tool: logits(file, crops(names)) for tool, file in files.items()}
    for tool in files:
        rows.setdefault(tool, {}).update(judged(answers[tool], answers["fp32"], labels=np.repeat(labels, 10)))
        rows[tool]["bytes"] = files[tool].stat().st_size
    _, beside = edgeexport.measure(
        list(files.values()), samples=[{"image": picture[None]} for picture in calibration[:4]]
    )
    for tool, comparison in zip(list(files)[1:], beside, strict=True):
        ratio = comparison.ratio
        rows[tool]["speed_up"] = 1 / ratio.value if ratio else float("nan")
        rows[tool]["speed_up_interval"] = [1 / ratio.high, 1 / ratio.low] if ratio and ratio.low and ratio.high else []
    return rows


def judged_names() -> tuple[list[str], NDArray[np.int64]]:
    """Return the 400 pictures that judge (four of five) and their classes; the others calibrate."""
    lines = (DATA / "imagenet_sample" / "classes.txt").read_text(encoding="utf-8").splitlines()
    classes = {line.split()[1]: int(line.split()[0]) for line in lines}
    names = [name for index, name in enumerate(all_names()) if index % 5]
    return names, np.array([classes[name.split("/")[-2]] for name in names])


def all_names() -> list[str]:
    """Return the pictures of the sample, in the order that `peers` uses."""
    with zipfile.ZipFile(DATA / "imagenet_sample" / "val.zip") as archive:
        return sorted(entry for entry in archive.namelist() if entry.lower().endswith((".jpg", ".jpeg")))


def crops(names: list[str]) -> Iterator[Pictures]:
    """Yield ten crops of each picture: the corners and the middle, and their mirror images; (value - 127) / 128."""
    from PIL import Image

    with zipfile.ZipFile(DATA / "imagenet_sample" / "val.zip") as archive:
        for name in names:
            picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            right, low = picture.width - SIDE, picture.height - SIDE
            corners = [(0, 0), (right, 0), (0, low), (right, low), (right // 2, low // 2)]
            cut = [np.asarray(picture.crop((x, y, x + SIDE, y + SIDE)), np.float32) for x, y in corners]
            five = ((np.stack(cut) - 127) / 128).transpose(0, 3, 1, 2)
            yield np.ascontiguousarray(np.concatenate([five, five[..., ::-1]]))


def logits(file: Path, batches: Iterator[Pictures]) -> Pictures:
    """Return what a model answers, all batches in one array."""
    session = open_session(file, threads=0)
    (image,), (output,) = session.signature.inputs, session.signature.outputs
    return np.concatenate([session.run({image.name: batch})[output.name] for batch in batches])


def judged(found: Pictures, real: Pictures, *, labels: NDArray[np.int64]) -> dict[str, Any]:
    """Return agreement and drop in percent, the drop's interval over pictures (not crops), and the logits' SQNR."""
    lost = (real.argmax(1) == labels).astype(float) - (found.argmax(1) == labels)
    by_picture = 100 * lost.reshape(-1, 10).mean(axis=1)
    drop = float(by_picture.mean())
    draws = mean_draws(by_picture, draws=10_000, seed=0)
    return {
        "top1": 100 * float(np.mean(found.argmax(1) == labels)),
        "agreement": 100 * float(np.mean(found.argmax(1) == real.argmax(1))),
        "drop": drop,
        "drop_interval": list(percentile_interval(drop, draws, samples=len(by_picture))[:2]),
        "sqnr_db": sqnr_db(found, real),
    }


def sqnr_db(found: Pictures, real: Pictures) -> float:
    """Return the ratio of the logits' power to their error's."""
    noise = float(np.square(found - real).sum())
    return float(10 * np.log10(np.square(real).sum() / noise)) if noise else 200.0


def onnxruntimes_own(fp32: Path, calibration: Pictures, *, folder: Path, per_channel: bool) -> Path:
    """Write what quantize_static makes of the model: min-max, U8S8, its own preprocessing."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(calibration)

        def get_next(self) -> dict[str, Pictures] | None:
            picture = next(self.left, None)
            return None if picture is None else {"image": picture[None]}

    prepared, out = folder / "prepared.onnx", folder / "ort.onnx"
    quant_pre_process(fp32, prepared)
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(prepared, out, Reader(), per_channel=per_channel, **types)
    return out


Method = Callable[..., QuantizationPlan]
METHODS: dict[str, Method | None] = {"plain": None, "rounding": learn_rounding}


@dataclass(frozen=True)
class Made:
    """One int8 file, with the float model and the plan that it was written from."""

    file: Path
    source: Path
    plan: QuantizationPlan


def ours(fp32: Path, calibration: Pictures, *, folder: Path, per_channel: bool) -> tuple[Path, dict[str, Any]]:
    """Build every method from one half of the pictures, take the one that is closest to fp32 on crops of the other.

    Then leave in float what loses most for what int8 wins there, as far as that is worth it on the same crops.
    """
    spine = folder / "spine.onnx"
    model = graph.load(fp32)
    graph.save(edited(model, all_of(model, SPINE_EDITS))[0], spine)
    half = calibration[1::2]
    selection = [name for index, name in enumerate(all_names()) if index % 10 == 0]
    real = logits(fp32, crops(selection))

    def score(file: Path) -> float:
        return sqnr_db(logits(file, crops(selection)), real)

    numbers = NumberFormat(activations="uint8", per_channel=per_channel)
    made = {name: built(spine, half, name=name, folder=folder, numbers=numbers) for name in METHODS}
    scores = {name: score(each.file) for name, each in made.items()}
    best = max(scores, key=scores.__getitem__)
    sys.stderr.write(f"on the selection half: {scores}\n")
    keep, tried = left_in_float(fp32, made[best], half, score=score)
    last = built(spine, calibration, name=best, folder=folder, numbers=numbers, keep=keep)
    return last.file, {"method": best, **scores, "left_in_float": sorted(keep), "tried": tried}


def left_in_float(
    fp32: Path, made: Made, pictures: Pictures, *, score: Callable[[Path], float]
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return what to leave in float, node -> reason, and each try: of those fast enough, what scores best.

    As `edgeexport run` does: ever more layers of the order that `choose_float` gives.
    """
    samples = [{"image": picture[None]} for picture in pictures]
    won = measured_wins(made.source, made.file, feeds=samples[:1])
    order = choose_float(sensitivity(made.source, made.plan, samples=samples[:16], won_ms=won))
    layers = [list(layer) for _, layer in itertools.groupby(order, key=order.__getitem__)]
    ranges = calibrate(made.source, samples, samples_digest="the pictures of this benchmark")
    tries: dict[str, tuple[int, Path, dict[str, str]]] = {}
    for count in [0, *(1 << step for step in range(len(layers).bit_length()))]:
        keep = {name: order[name] for layer in layers[:count] for name in layer}
        plan = plan_quantization(made.source, ranges, numbers=made.plan.numbers, keep_float=keep)
        file = shipped(made.source, plan, out=made.file.with_name(f"{count}-in-float.onnx"))
        tries.setdefault(file_digest(file), (count, file, keep))  # some layers change nothing without others
    _, beside = edgeexport.measure([fp32, *(file for _, file, _ in tries.values())], samples=samples[:2])
    tried = [
        {"layers": count, "sqnr_db": score(file), "speed_up": 1 / one.ratio.value if one.ratio else 0.0}
        for (count, file, _), one in zip(tries.values(), beside, strict=True)
    ]
    sys.stderr.write(f"layers in float: {tried}\n")
    fast = [index for index, row in enumerate(tried) if row["speed_up"] >= SPEED_UP] or [0]
    chosen = max(fast, key=lambda index: tried[index]["sqnr_db"])
    return [keep for _, _, keep in tries.values()][chosen], tried


def built(
    spine: Path,
    pictures: Pictures,
    *,
    name: str,
    folder: Path,
    numbers: NumberFormat,
    keep: Mapping[str, str] | None = None,
) -> Made:
    """Write the int8 file of one method: plain, or equalized and then rounded by learning."""
    samples = [{"image": picture[None]} for picture in pictures]
    source, made, out = spine, folder / f"{name}.onnx", folder / f"{name}.int8.onnx"
    method = METHODS[name]
    if method is not None:
        source = folder / "equalized.onnx"
        equalize(spine, samples, out=source, per_channel=numbers.per_channel)
    ranges = calibrate(source, samples, samples_digest="the pictures of this benchmark")
    plan = plan_quantization(source, ranges, numbers=numbers, keep_float=keep)
    if method is not None:
        plan = method(source, plan, samples=samples, out=made)
        source = made
    return Made(shipped(source, plan, out=out), source, plan)


def shipped(source: Path, plan: QuantizationPlan, *, out: Path) -> Path:
    """Write the int8 file as the target gets it: fitted to this machine's integer kernels, the same bits."""
    quantize(source, plan, out=out)
    model, _ = for_integer_kernels(graph.load(out), arch=platform.machine().lower().replace("amd64", "x86_64"))
    graph.save(model, out)
    return out
