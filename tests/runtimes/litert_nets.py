"""The nets that the LiteRT tests convert, as ONNX files, with samples, ranges and plans for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from edgeexport import graph
from edgeexport.records.plan import Point, QuantizationPlan, WeightPoint
from edgeexport.records.ranges import Range, Ranges
from edgeexport.records.target import NumberFormat, Target
from edgeexport.runtimes.protocol import Conversion
from tests.graph.models import make_model


@dataclasses.dataclass(frozen=True)
class Net:
    """A spine on disk with eight samples and their ranges."""

    path: Path
    samples: list[dict[str, np.ndarray]]
    ranges: Ranges

    def job(
        self,
        plan: QuantizationPlan | None = None,
        *,
        io: Literal["float32", "int8"] = "float32",
        ranges: Ranges | None = None,
    ) -> Conversion:
        target = Target(name="t", title="t", runtime="litert", format="tflite", arch="x86_64", io=io)
        return Conversion(
            spine=self.path,
            quantized=self.path if plan else None,
            ranges=(ranges or self.ranges) if plan else None,
            plan=plan,
            samples=lambda: iter(self.samples),
            target=target,
        )

    def plan(self, *, keep: Mapping[str, str] | None = None) -> QuantizationPlan:
        """Asymmetric int8 activations from the ranges; the first convolution's weights twice too coarse, to be told."""
        points = {name: _point(seen) for name, seen in self.ranges.tensors.items()}
        weights = {}
        first = graph.initializers(graph.load(self.path)).get("w1")
        if first is not None:
            steps = tuple(float(2.0 * np.abs(channel).max() / 127.0) for channel in first)
            weights["w1"] = WeightPoint(dtype="int8", axis=0, scales=steps, zero_points=(0,) * len(steps))
        return QuantizationPlan(
            model_digest="sha256:0",
            numbers=NumberFormat(activations="int8"),
            method="minmax",
            activations=points,
            weights=weights,
            keep_float=dict(keep or {}),
        )

    def expected(self) -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(self.path.read_bytes())
        return [session.run(None, sample)[0] for sample in self.samples]


def cnn(folder: Path) -> Net:
    """Conv+Relu, depthwise Conv+Clip, residual Add, stride-2 Conv (an explicit pad), mean without axes, Gemm."""
    rng = np.random.default_rng(0)
    stored = {
        "w1": _normal(rng, 16, 3, 3, 3),
        "w2": 2.0 * _normal(rng, 16, 1, 3, 3),
        "w3": _normal(rng, 24, 16, 3, 3),
        "w4": _normal(rng, 10, 24),
        "b1": _normal(rng, 16),
        "b4": _normal(rng, 10),
        "zero": np.array(0.0, np.float32),
        "six": np.array(6.0, np.float32),
        "axes": np.array([2, 3]),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1], group=16),
        helper.make_node("Clip", ["c2", "zero", "six"], ["r2"], name="clip2"),
        helper.make_node("Add", ["r1", "r2"], ["sum"], name="add"),
        helper.make_node("Conv", ["sum", "w3"], ["c3"], name="conv3", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c3"], ["r3"], name="relu3"),
        helper.make_node("ReduceMean", ["r3", "axes"], ["mean"], name="mean", keepdims=0),
        helper.make_node("Gemm", ["mean", "w4", "b4"], ["logits"], name="gemm", transB=1),
    ]
    model = make_model(nodes, inputs={"image": ("batch", 3, 12, 12)}, outputs=["logits"], stored=stored)
    return _net(model, folder / "cnn.onnx", {"image": (1, 3, 12, 12)})


def detector(folder: Path) -> Net:
    """A two-scale head: nearest Resize, Concat, Sigmoid; the output is a picture-shaped map, NCHW as in the spine."""
    rng = np.random.default_rng(1)
    stored = {
        "w1": _normal(rng, 16, 3, 3, 3),
        "w2": _normal(rng, 16, 16, 3, 3),
        "w3": _normal(rng, 8, 32, 1, 1),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    resize = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], name="conv1", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("Resize", ["r2", "", "scales"], ["up"], name="up", **resize),
        helper.make_node("Concat", ["up", "r1"], ["both"], name="both", axis=1),
        helper.make_node("Conv", ["both", "w3"], ["c3"], name="conv3"),
        helper.make_node("Sigmoid", ["c3"], ["map"], name="sigmoid"),
    ]
    model = make_model(nodes, inputs={"image": (1, 3, 16, 16)}, outputs=["map"], stored=stored)
    return _net(model, folder / "detector.onnx", {"image": (1, 3, 16, 16)})


def mlp(folder: Path) -> Net:
    """Two Gemms over a row of a table."""
    rng = np.random.default_rng(2)
    stored = {"w1": _normal(rng, 32, 12), "b1": _normal(rng, 32), "w2": _normal(rng, 1, 32), "b2": _normal(rng, 1)}
    nodes = [
        helper.make_node("Gemm", ["row", "w1", "b1"], ["h"], name="gemm1", transB=1),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["score"], name="gemm2", transB=1),
    ]
    model = make_model(nodes, inputs={"row": ("batch", 12)}, outputs=["score"], stored=stored)
    return _net(model, folder / "mlp.onnx", {"row": (1, 12)})


def determinant(folder: Path) -> Net:
    """An operator that cannot be converted: Det."""
    model = make_model(
        [helper.make_node("Det", ["m"], ["d"], name="det")], inputs={"m": (1, 4, 4)}, outputs=["d"], stored={}
    )
    return _net(model, folder / "det.onnx", {"m": (1, 4, 4)})


def _net(model: onnx.ModelProto, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Net:
    graph.save(model, path)
    rng = np.random.default_rng(3)
    samples = [{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(8)]
    computed = {name for node in model.graph.node for name in node.output}
    names = [name for name in graph.float_tensors(model) if name in computed]
    session = onnxruntime.InferenceSession(graph.expose(model, names).SerializeToString())
    runs = [{**dict(zip(names, session.run(names, sample), strict=True)), **sample} for sample in samples]
    tensors = {name: _range([run[name] for run in runs]) for name in runs[0]}
    ranges = Ranges(method="minmax", model_digest="sha256:0", samples_digest="sha256:0", count=8, tensors=tensors)
    return Net(path=path, samples=samples, ranges=ranges)


def _range(values: list[np.ndarray]) -> Range:
    low, high = float(min(v.min() for v in values)), float(max(v.max() for v in values))
    return Range(low=low, high=high, seen_low=low, seen_high=high)


def _point(seen: Range) -> Point:
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    scale = float(np.float32((high - low) / 255.0)) or 1.0
    return Point(dtype="int8", scale=scale, zero_point=round(-128 - low / scale))


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    values: np.ndarray = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]) or 1.0)
    return values.astype(np.float32)
