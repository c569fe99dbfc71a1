"""Small ONNX models with the shapes of real ones, built node by node, and samples for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeexport.records.target import NumberFormat

FORMATS = {
    "per-channel": NumberFormat(activations="uint8"),
    "per-tensor": NumberFormat(activations="uint8", per_channel=False),
    "7-bit": NumberFormat(activations="uint8", reduce_range=True),
    "pairs": NumberFormat(activations="uint8", fit_pairs=True),
    "symmetric": NumberFormat(activations="int8", symmetric_activations=True),
}


@dataclass
class Net:
    """A graph in the making: every method adds a node and returns the name of its output."""

    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def put(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add any node."""
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def store(self, value: NDArray[Any]) -> str:
        """Add an initializer."""
        name = f"w{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(value, name))
        return name

    def conv(self, x: str, channels: int, into: int, *, size: int = 3, stride: int = 1, group: int = 1) -> str:
        """Add a convolution with bias that keeps the magnitude of its input."""
        shape = (into, channels // group, size, size)
        scale = np.sqrt(2.0 / np.prod(shape[1:]))
        weight = self.store((self.random.standard_normal(shape) * scale).astype(np.float32))
        bias = self.store((self.random.standard_normal(into) * 0.1).astype(np.float32))
        pads = [size // 2] * 4
        return self.put("Conv", x, weight, bias, pads=pads, strides=[stride] * 2, group=group, kernel_shape=[size] * 2)

    def gemm(self, x: str, features: int, into: int) -> str:
        """Add a linear layer, weight stored as torch does (transB)."""
        weight = self.store((self.random.standard_normal((into, features)) / np.sqrt(features)).astype(np.float32))
        bias = self.store((self.random.standard_normal(into) * 0.1).astype(np.float32))
        return self.put("Gemm", x, weight, bias, transB=1)

    def clip(self, x: str, low: float, high: float) -> str:
        """Add a Clip with stored bounds."""
        return self.put("Clip", x, self.store(np.float32(low)), self.store(np.float32(high)))

    def save(self, path: Path) -> Path:
        """Write the model; its last node's output is the model's."""
        last = self.nodes[-1].output[0]
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ("batch", 3, 16, 16))],
            [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
            self.stored,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        onnx.save(onnx.shape_inference.infer_shapes(model), path)
        return path


def small_resnet(path: Path) -> Path:
    """Write a ResNet of three blocks, 1×1 shortcuts, and a linear head."""
    net = Net()
    x = net.put("Relu", net.conv("image", 3, 16))
    channels = 16
    for into, stride in ((16, 1), (32, 2), (32, 1)):
        y = net.conv(net.put("Relu", net.conv(x, channels, into, stride=stride)), into, into)
        shortcut = x if channels == into else net.conv(x, channels, into, size=1, stride=stride)
        x, channels = net.put("Relu", net.put("Add", y, shortcut)), into
    net.gemm(net.put("Flatten", net.put("GlobalAveragePool", x)), 32, 10)
    return net.save(path)


def small_mobilenet(path: Path) -> Path:
    """Write a MobileNetV2-like net: expansion, depthwise convolution, ReLU6 as Clip, linear bottlenecks."""
    net = Net(seed=1)
    x = net.clip(net.conv("image", 3, 16, stride=2), 0.0, 6.0)
    for _ in range(2):
        y = net.clip(net.conv(x, 16, 48, size=1), 0.0, 6.0)
        y = net.clip(net.conv(y, 48, 48, group=48), 0.0, 6.0)
        x = net.put("Add", net.conv(y, 48, 16, size=1), x)
    x = net.clip(net.conv(x, 16, 64, size=1), 0.0, 6.0)
    net.gemm(net.put("Flatten", net.put("GlobalAveragePool", x)), 64, 10)
    return net.save(path)


def pictures(count: int, *, seed: int = 7, shape: tuple[int, ...] = (1, 3, 16, 16)) -> list[dict[str, NDArray[Any]]]:
    """Return normal noise as feeds, the same for the same seed."""
    random = np.random.default_rng(seed)
    return [{"image": random.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def integer_ops(path: Path, **entries: str) -> dict[str, int]:
    """Return operator → count of the graph as onnxruntime will really run it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    options.log_severity_level = 3
    for key, value in entries.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    return {op: sum(node.op_type == op for node in nodes) for op in {node.op_type for node in nodes}}
