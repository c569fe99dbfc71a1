"""A damaged .tflite file is refused with a reason, and at worst ends a process that was made for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeexport.errors import CorruptFile
from edgeexport.runtimes import litert
from edgeexport.runtimes.litert import flatbuffer
from tests.needs import need

need("litert")


@pytest.fixture
def file(tmp_path) -> Path:
    """A .tflite file written by hand: one RELU over four numbers."""
    from ai_edge_litert import schema_py_generated as schema

    model, graph, code, op = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RELU
    code.version = 1
    op.opcodeIndex, op.inputs, op.outputs = 0, [0], [1]
    graph.tensors = [_tensor(schema, b"x"), _tensor(schema, b"y")]
    graph.inputs, graph.outputs, graph.operators = [0], [1], [op]
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    path = tmp_path / "relu.tflite"
    flatbuffer.write(model, path)
    return path


def _tensor(schema, name):
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, [1, 4], 0, 0
    return tensor


def test_a_file_from_elsewhere_opens_under_its_tensors_names(file) -> None:
    session = litert.RUNTIME.open(file)
    result = session.run({"x": np.array([[-1, 2, -3, 4]], np.float32)})
    np.testing.assert_array_equal(result["y"], [[0, 2, 0, 4]])


def test_a_whole_file_passes_the_probe(file) -> None:
    litert.probe(file)


def test_another_format_is_told_by_its_identifier(tmp_path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(CorruptFile, match=r"not a \.tflite file"):
        litert.RUNTIME.open(path)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(CorruptFile, match=r"gone\.tflite"):
        litert.RUNTIME.open(tmp_path / "gone.tflite")


def test_a_truncated_file_is_refused(file) -> None:
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(CorruptFile, match="damaged"):
        litert.RUNTIME.open(file)


def test_an_index_outside_the_graph_is_refused(file) -> None:
    model = flatbuffer.read(file)
    model.subgraphs[0].operators[0].inputs = [7]
    flatbuffer.write(model, file)
    with pytest.raises(CorruptFile, match="tensor 7 is used, the graph has 2"):
        litert.RUNTIME.open(file)


def test_a_constant_shorter_than_its_shape_is_refused(file) -> None:
    model = flatbuffer.read(file)
    model.buffers.append(type(model.buffers[0])())
    model.buffers[1].data = np.zeros(8, np.uint8)
    model.subgraphs[0].tensors[0].buffer = 1
    flatbuffer.write(model, file)
    with pytest.raises(CorruptFile, match="holds 8 bytes, expected 16"):
        litert.RUNTIME.open(file)


@pytest.mark.faults
def test_mutated_files_never_escape_as_anything_but_corrupt(file) -> None:
    """Parsing alone: what an interpreter makes of the rest is the probe's business."""
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for position in rng.integers(0, len(content), 4):
            content[position] = rng.integers(0, 256)
        try:
            flatbuffer.parse(bytes(content), origin="mutant")
        except CorruptFile:
            refused += 1
    assert 30 < refused < 300
