"""EfficientNet-Lite0, int8 per channel: agreement with fp32 and speed, beside onnxruntime's own and NNCF's int8.

The rule: 100 pictures calibrate, and half of them choose what ships; 10 crops each of the other 400 judge, and nothing
is chosen on them. Labels are for reporting alone. The bars are those of a CPU with VNNI: elsewhere accuracy is that of
its exact sums, times are those of the host, and the figures say so.
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

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeexport import devices, graph
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
from edgeexport.quantization.placement import prepared
from edgeexport.quantization.relearn import MOST_SAMPLES
from edgeexport.quantization.repairs.planned import restricted
from edgeexport.quantization.repairs.spine import SPINE_EDITS, all_of, edited
from edgeexport.records.base import file_digest
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.target import NumberFormat, load_target
from edgeexport.runtimes.ort import EXACT_SUMS, open_session
from edgeexport.runtimes.ort_kernels import for_integer_kernels
from edgeexport.validation.emulation import saturates
from edgeexport.validation.paired import mean_draws, percentile_interval
from tests.benchmarks.bar import Bar
from tests.benchmarks.beside import ratios
from tests.benchmarks.peers import NETWORKS, _quantized
from tests.needs import DATA

AGREEMENT, SPEED_UP = 98.8, 2.1
INT8_WITH_VNNI = 2.3  # times faster than fp32 with every layer in integers, on a CPU with AVX-512 VNNI
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
    feeds = [{"image": picture[None]} for picture in calibration[:4]]
    others = list(files)[1:]
    for tool, ratio in zip(others, ratios(files["fp32"], [files[one] for one in others], samples=feeds), strict=True):
        rows[tool]["speed_up"] = 1 / ratio.value if ratio else float("nan")
        rows[tool]["speed_up_interval"] = [1 / ratio.high, 1 / ratio.low] if ratio and ratio.low and ratio.high else []
    return rows | {"host": host()}


def host() -> dict[str, Any]:
    """Return what the figures of this machine are worth for the bars."""
    if not saturates(devices.get("local").describe()):
        return {"vnni": True, "sums": "those of this CPU", "times": "of this CPU"}
    return {
        "vnni": False,
        "sums": f"exact by {EXACT_SUMS}, as with VNNI: what this CPU's own kernels would cap is left out",
        "times": "of this CPU, as it is: the bar for speed-ups speaks of one with VNNI",
    }


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


@dataclass(frozen=True)
class Given:
    """What calibrates: pictures for ranges, and crops of them, shuffled, for what is learnt."""

    pictures: list[dict[str, Pictures]]
    crops: list[dict[str, Pictures]]


def given(calibration: Pictures, names: list[str]) -> Given:
    """Return the middles of pictures, and as many of their crops, and mirror images, as learning looks at."""
    every = [crop[None] for batch in crops(names) for crop in batch]
    chosen = np.random.default_rng(0).permutation(len(every))[:MOST_SAMPLES]
    return Given([{"image": one[None]} for one in calibration], [{"image": every[index]} for index in chosen])


def ours(fp32: Path, calibration: Pictures, *, folder: Path, per_channel: bool) -> tuple[Path, dict[str, Any]]:
    """Build every method from one half of the pictures, take the one that is closest to fp32 on crops of the other.

    Then leave in float what loses most for what int8 wins there, as far as that is worth it on the same crops.
    """
    spine = folder / "spine.onnx"
    model = graph.load(fp32)
    graph.save(edited(model, all_of(model, SPINE_EDITS))[0], spine)
    names = all_names()[::5]
    half = given(calibration[1::2], names[1::2])
    real = logits(fp32, crops(names[::2]))

    def score(file: Path) -> float:
        return sqnr_db(logits(file, crops(names[::2])), real)

    numbers = msgspec.structs.replace(load_target("linux-x86_64-vnni").numbers(), per_channel=per_channel)
    made = {name: built(spine, half, name=name, folder=folder, numbers=numbers) for name in METHODS}
    scores = {name: score(each.file) for name, each in made.items()}
    best = max(scores, key=scores.__getitem__)
    sys.stderr.write(f"on the selection half: {scores}\n")
    order = float_order(made["plain"], half)
    keep, tried = left_in_float(fp32, made[best], order, score=score, sample=half.pictures[:2])
    last = built(spine, given(calibration, names), name=best, folder=folder, numbers=numbers, keep=keep)
    return last.file, {"method": best, **scores, "left_in_float": sorted(keep), "tried": tried}


def float_order(made: Made, half: Given) -> list[dict[str, str]]:
    """Return what could be left in float, layer by layer: node -> reason, as `edgeexport run` orders it."""
    won = measured_wins(made.source, made.file, feeds=half.pictures[:1])
    order = choose_float(sensitivity(made.source, made.plan, samples=half.pictures[:16], won_ms=won))
    return [{name: order[name] for name in layer} for _, layer in itertools.groupby(order, key=order.__getitem__)]


def left_in_float(
    fp32: Path,
    made: Made,
    order: list[dict[str, str]],
    *,
    score: Callable[[Path], float],
    sample: list[dict[str, Pictures]],
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return what to leave in float, node -> reason, and each try: of those fast enough, what scores best.

    Ever more layers, as `edgeexport run` tries them; their weights are those learnt with all layers in integers. Where
    this CPU is none that the bar speaks of, it allows the share of the int8 model's speed-up that the bar leaves there.
    """
    model = prepared(graph.load(made.source))
    tries: dict[str, tuple[int, Path, dict[str, str]]] = {}
    for count in [0, *(1 << step for step in range(len(order).bit_length()))]:
        keep = {name: reason for layer in order[:count] for name, reason in layer.items()}
        plan = restricted(model, made.plan, keep_float=keep)
        file = shipped(made.source, plan, out=made.file.with_name(f"{count}-in-float.onnx"))
        tries.setdefault(file_digest(file), (count, file, keep))  # some layers change nothing without others
    beside = ratios(fp32, [file for _, file, _ in tries.values()], samples=sample)
    tried = [
        {"layers": count, "sqnr_db": score(file), "speed_up": 1 / ratio.value if ratio else 0.0}
        for (count, file, _), ratio in zip(tries.values(), beside, strict=True)
    ]
    if not tried[0]["speed_up"]:
        sys.exit("the int8 model could not be measured: run this where nothing else runs")
    sys.stderr.write(f"layers in float: {tried}\n")
    least = SPEED_UP if host()["vnni"] else tried[0]["speed_up"] * SPEED_UP / INT8_WITH_VNNI
    fast = [index for index, row in enumerate(tried) if row["speed_up"] >= least] or [0]
    chosen = max(fast, key=lambda index: tried[index]["sqnr_db"])
    return [keep for _, _, keep in tries.values()][chosen], tried


def built(
    spine: Path,
    given: Given,
    *,
    name: str,
    folder: Path,
    numbers: NumberFormat,
    keep: Mapping[str, str] | None = None,
) -> Made:
    """Write the int8 file of one method: plain, or equalized and then rounded by learning."""
    source, made, out = spine, folder / f"{name}.onnx", folder / f"{name}.int8.onnx"
    method = METHODS[name]
    if method is not None:
        source = folder / "equalized.onnx"
        equalize(spine, given.pictures, out=source, per_channel=numbers.per_channel)
    ranges = calibrate(source, given.pictures, samples_digest="the pictures of this benchmark")
    plan = plan_quantization(source, ranges, numbers=numbers, keep_float=keep)
    if method is not None:
        plan = method(source, plan, samples=given.crops, out=made)
        source = made
    return Made(shipped(source, plan, out=out), source, plan)


def shipped(source: Path, plan: QuantizationPlan, *, out: Path) -> Path:
    """Write the int8 file as the target gets it: fitted to integer kernels, the same numbers."""
    quantize(source, plan, out=out)
    model, _ = for_integer_kernels(graph.load(out), arch=platform.machine().lower().replace("amd64", "x86_64"))
    graph.save(model, out)
    return out
