"""MiniLM in int8: the form that `choose_encoder_form` puts first, beside onnxruntime's own `quantize_dynamic`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import edgeexport
from edgeexport.quantization import choose_encoder_form
from edgeexport.runtimes.ort import open_session
from tests.benchmarks.bar import Bar
from tests.benchmarks.beside import ratios
from tests.benchmarks.host import host_target
from tests.benchmarks.peers import AS_ITS_USER_RUNS_IT
from tests.real import minilm

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_COSINE, MOST_TIME, MOST_DROP = 0.998, 0.40, 0.2
CALIBRATION = 128
OURS, PEER = "edgeexport", "onnxruntime quantize_dynamic"


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Export, choose a form on sentences of the train split, judge on the dev split, measure one thread interleaved."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = [minilm.words(one) for one, _, _ in minilm.pairs("train")[:: 5749 // CALIBRATION][:CALIBRATION]]
        spine = folder / "minilm.onnx"
        integers = edgeexport.InputSpec(shape=(1, minilm.LENGTH), dtype="int64")
        record = edgeexport.export(
            minilm.minilm(),
            {"ids": integers, "mask": integers},
            out=spine,
            samples=train[:3],
            outputs=("embedding",),
        )
        target = edgeexport.load_target(host_target())
        choice = choose_encoder_form(spine, train, numbers=target.numbers(), folder=folder, progress=_say)
        files = {OURS: folder / choice.trials[0].path, PEER: _peer(spine, folder / "peer.onnx")}
        figures: dict[str, Any] = {"exporter": record.exporter, "chosen": choice.reason}
        figures |= {key: {"mb": path.stat().st_size / 1e6} for key, path in files.items()}
        for key, judged in _judged({"fp32": spine, **files}).items():
            figures.setdefault(key, {}).update(judged)
        for key, ratio in zip(files, ratios(spine, list(files.values()), samples=train[:1], mode="quick"), strict=True):
            figures[key]["latency_ratio"] = ratio.value if ratio else float("nan")
            figures[key]["latency_ratio_high"] = ratio.high if ratio else None
    ours = figures[OURS]
    return figures, {
        "cosine": Bar(ours["cosine"], LEAST_COSINE, "LiteRT dynamic 0.998, onnxruntime dynamic 0.993", "min"),
        "latency_ratio": Bar(ours["latency_ratio"], MOST_TIME, "onnxruntime dynamic per-channel 0.455 of fp32"),
        "spearman_drop": Bar(ours["spearman_drop"], MOST_DROP, "points of Spearman's correlation on STS-B dev"),
    }


def spearman(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Return Spearman's rank correlation; equal values share the mean of their ranks."""
    return float(np.corrcoef(_ranks(left), _ranks(right))[0, 1])


def _ranks(values: NDArray[Any]) -> NDArray[Any]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


def _peer(spine: Path, out: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(spine, out, per_channel=True, weight_type=QuantType.QInt8)
    return out


def _judged(files: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Embed every sentence of STS-B dev with each file: mean cosine to fp32, and Spearman's correlation in points."""
    pairs = minilm.pairs("dev")
    sentences = sorted({sentence for one, other, _ in pairs for sentence in (one, other)})
    place = {sentence: index for index, sentence in enumerate(sentences)}
    feeds = [minilm.words(sentence) for sentence in sentences]
    scores = np.array([score for _, _, score in pairs])
    figures: dict[str, dict[str, float]] = {}
    reference = None
    for key, path in files.items():
        _say(f"embed {len(sentences)} sentences with {key}", None)
        run_model = open_session(path, threads=0, options=AS_ITS_USER_RUNS_IT).run
        vectors = np.concatenate([run_model(feed)["embedding"] for feed in feeds])
        reference = vectors if reference is None else reference
        likeness = [float(vectors[place[one]] @ vectors[place[other]]) for one, other, _ in pairs]
        found = 100 * spearman(np.array(likeness), scores)
        cosine = float((vectors * reference).sum(axis=1).mean())
        drop = figures["fp32"]["spearman"] - found if figures else 0.0
        figures[key] = {"cosine": cosine, "spearman": found, "spearman_drop": drop}
    return figures


def _say(text: str, _: float | None) -> None:
    sys.stderr.write(f"{text}\n")
