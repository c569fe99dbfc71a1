"""An .onnx file as a teacher: what it must allow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeexport.compression.onnx_teacher import onnx_teacher
from edgeexport.errors import ModelError
from tests.needs import need

need("ort")


def _flattening(path: Path, shape: tuple[int, int]) -> Path:
    """Write a net of a Reshape into `shape` and a MatMul, exported with a batch of 1."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["row"], name="flatten"),
        helper.make_node("MatMul", ["row", "w"], ["logits"], name="head"),
    ]
    inner = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array(shape, np.int64), "shape")],
    )
    onnx.save(helper.make_model(inner, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_teacher_whose_batch_size_is_built_in_is_refused(tmp_path):
    path = _flattening(tmp_path / "teacher.onnx", (1, 64))
    with pytest.raises(ModelError, match=r"teacher\.onnx: its batch size is built in") as caught:
        onnx_teacher(path, {})
    assert caught.value.next_step == "export the teacher with a free batch axis"


def test_a_teacher_that_was_merely_exported_with_a_batch_of_1_teaches_whole_batches(tmp_path):
    import torch

    teacher = onnx_teacher(_flattening(tmp_path / "teacher.onnx", (-1, 64)), {})
    (logits,) = teacher(torch.zeros(3, 1, 8, 8))
    assert logits.shape == (3, 10)
