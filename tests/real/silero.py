"""Silero VAD as its wheel ships it, with `If` inside, wrapped so that every input has its batch first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeexport import graph
from tests.benchmarks.wheels import unpacked

PACKAGE = "silero-vad==6.2.3"
SAMPLES, STATE = 576, 128


def write_silero(path: Path) -> Path:
    """Write the 16 kHz detector with the inputs input (1, 576) and state (1, 2, 128); its rate becomes a constant."""
    model = graph.load(unpacked(PACKAGE) / "silero_vad" / "data" / "silero_vad_16k_op15.onnx")
    part = model.graph
    for value in list(part.input):
        if value.name in {"state", "sr"}:
            part.input.remove(value)
    part.input.append(helper.make_tensor_value_info("past", TensorProto.FLOAT, ("batch", 2, STATE)))
    part.initializer.append(numpy_helper.from_array(np.array(16000, np.int64), "sr"))
    part.node.insert(0, helper.make_node("Transpose", ["past"], ["state"], "state_first", perm=[1, 0, 2]))
    part.node.append(helper.make_node("Transpose", ["stateN"], ["next"], "batch_first", perm=[1, 0, 2]))
    part.output.pop()
    part.output.append(helper.make_tensor_value_info("next", TensorProto.FLOAT, ("batch", 2, STATE)))
    onnx.save(model, path)
    return path
