"""The tiny model that most tests of `edgeexport.graph` start from."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.graph.models import make_model


@pytest.fixture
def mlp() -> onnx.ModelProto:
    """Gemm and Relu on an input of four numbers, batch free."""
    weights = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="fc"),
        helper.make_node("Relu", ["h"], ["y"], name="act"),
    ]
    stored = {"w": weights, "b": np.ones(3, np.float32)}
    return make_model(nodes, inputs={"x": ["batch", 4]}, outputs=["y"], stored=stored)
