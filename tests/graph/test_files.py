"""Loading and saving: what is good comes back, what is hostile is refused with its reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeexport.errors import CorruptFile, MachineError, ModelError, UnsupportedOperator
from edgeexport.graph import files, load, save, structure

Break = Callable[[onnx.ModelProto], None]


def write(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_saved_model_loads_as_it_was(mlp: onnx.ModelProto, tmp_path: Path) -> None:
    save(mlp, tmp_path / "m.onnx")
    assert load(tmp_path / "m.onnx") == mlp


def test_the_same_model_is_saved_to_the_same_bytes(mlp: onnx.ModelProto, tmp_path: Path) -> None:
    save(mlp, tmp_path / "a.onnx")
    save(load(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_saving_leaves_no_temporary_file(mlp: onnx.ModelProto, tmp_path: Path) -> None:
    save(mlp, tmp_path / "m.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


def test_a_failed_save_keeps_the_old_file(
    mlp: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(mlp, tmp_path / "m.onnx")
    before = (tmp_path / "m.onnx").read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    mlp.graph.name = "other"
    with pytest.raises(MachineError, match="no space left for"):
        save(mlp, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x00" * 64, b"PK\x03\x04 zip", b"\x08\x0a"], ids=repr)
def test_a_file_that_is_no_model_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(CorruptFile, match=r"m\.onnx"):
        load(tmp_path / "m.onnx")


def test_every_truncation_of_a_model_is_refused(mlp: onnx.ModelProto, tmp_path: Path) -> None:
    data = mlp.SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises((CorruptFile, ModelError)):
            load(path)


def test_random_damage_never_raises_another_error(mlp: onnx.ModelProto, tmp_path: Path) -> None:
    data = mlp.SerializeToString()
    path = tmp_path / "m.onnx"
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[generator.integers(len(data))] ^= 1 << generator.integers(8)
        path.write_bytes(bytes(damaged))
        try:
            load(path)
        except (CorruptFile, ModelError) as error:
            assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo"])
def test_a_path_that_is_no_regular_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if kind == "folder":
        path.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(CorruptFile, match=r"m\.onnx"):
        load(path)


def test_a_file_above_the_limit_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "m.onnx").open("wb") as stream:
        stream.truncate(structure.MAX_BYTES + 1)
    with pytest.raises(CorruptFile, match="the limit is"):
        load(tmp_path / "m.onnx")


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(MachineError, match="no_such_package"):
        files.need("no_such_package", purpose="this test")


def _nested(depth: int) -> onnx.NodeProto:
    node = helper.make_node("Identity", ["x"], ["z0"])
    for level in range(depth):
        body = helper.make_graph([node], f"g{level}", [], [helper.make_tensor_value_info(f"z{level}", 1, None)])
        flat = helper.make_graph([], f"e{level}", [], [helper.make_tensor_value_info("x", 1, None)])
        node = helper.make_node("If", ["c"], [f"z{level + 1}"], then_branch=body, else_branch=flat)
    return node


def _recursive_function(model: onnx.ModelProto) -> None:
    call = helper.make_node("F", ["a"], ["b"], domain="local")
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    model.functions.append(helper.make_function("local", "F", ["a"], ["b"], [call], opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))


def _function_bomb(model: onnx.ModelProto) -> None:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    for level in range(20):
        called, domain = (f"F{level - 1}", "local") if level else ("Relu", "")
        body = [helper.make_node(called, ["a"], [f"b{i}"], domain=domain) for i in range(8)]
        model.functions.append(helper.make_function("local", f"F{level}", ["a"], ["b0"], body, opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node.append(helper.make_node("F19", ["x"], ["bomb"], domain="local"))


def _stored(model: onnx.ModelProto) -> TensorProto:
    return model.graph.initializer[0]


def _set_dims(*dims: int) -> Break:
    def change(model: onnx.ModelProto) -> None:
        del _stored(model).dims[:]
        _stored(model).dims.extend(dims)

    return change


def _qdq(scale: float) -> Break:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), "s"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "z"))
        model.graph.node.append(helper.make_node("QuantizeLinear", ["y", "s", "z"], ["q"], name="quant"))

    return change


def _qdq_constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["s"], value=helper.make_tensor("s", 1, [], [0.0])))
    model.graph.node.append(helper.make_node("QuantizeLinear", ["y", "s"], ["q"], name="quant"))


def _add(*nodes: onnx.NodeProto) -> Break:
    return lambda model: model.graph.node.extend(nodes)


BROKEN: dict[str, tuple[Break, type[Exception], str]] = {
    "no graph": (lambda m: m.ClearField("graph"), CorruptFile, "holds no graph"),
    "no opset": (lambda m: m.ClearField("opset_import"), ModelError, "missing"),
    "opset 0": (lambda m: setattr(m.opset_import[0], "version", 0), ModelError, "is 0"),
    "opset of the future": (lambda m: setattr(m.opset_import[0], "version", 9999), ModelError, "9999"),
    "opset twice": (lambda m: m.opset_import.append(helper.make_opsetid("", 20)), ModelError, "twice"),
    "IR of the future": (lambda m: setattr(m, "ir_version", 9999), ModelError, "IR version 9999"),
    "unknown domain": (
        _add(helper.make_node("Evil", ["x"], ["e"], domain="evil.org")), UnsupportedOperator, r"Evil.*'evil\.org'"),
    "domain without import": (
        _add(helper.make_node("Gelu", ["x"], ["e"], domain="com.microsoft")), ModelError, "no opset import"),
    "unknown operator": (_add(helper.make_node("Nonsense", ["x"], ["e"])), ModelError, "Nonsense"),
    "recursive function": (_recursive_function, ModelError, "call themselves: F"),
    "function bomb": (_function_bomb, ModelError, "unfold into"),
    "negative dim": (_set_dims(-4, -3), CorruptFile, "negative"),
    "overflowing dims": (_set_dims(2**32, 2**32), CorruptFile, "64-bit"),
    "huge dims": (_set_dims(2**20, 2**20), CorruptFile, "the limit is"),
    "too many dims": (_set_dims(*[1] * 65), CorruptFile, "65 dimensions"),
    "dims above the data": (_set_dims(4, 4), CorruptFile, "raw_data holds 48"),
    "dims below the data": (_set_dims(1), CorruptFile, "raw_data holds 48"),
    "zero dim with data": (_set_dims(0), CorruptFile, "raw_data holds 48"),
    "no data": (lambda m: _stored(m).ClearField("raw_data"), CorruptFile, "float_data holds 0"),
    "unknown type": (lambda m: setattr(_stored(m), "data_type", 77), CorruptFile, "data type 77"),
    "undefined type": (lambda m: setattr(_stored(m), "data_type", 0), CorruptFile, "data type 0"),
    "raw strings": (lambda m: setattr(_stored(m), "data_type", 8), CorruptFile, "raw_data"),
    "initializer twice": (lambda m: m.graph.initializer.append(_stored(m)), ModelError, "'w' stands 2 times"),
    "input twice": (lambda m: m.graph.input.append(m.graph.input[0]), ModelError, "graph input name 'x'"),
    "output twice": (lambda m: m.graph.output.append(m.graph.output[0]), ModelError, "graph output name 'y'"),
    "node name twice": (_add(helper.make_node("Relu", ["x"], ["e"], name="fc")), ModelError, "node name 'fc'"),
    "tensor made twice": (_add(helper.make_node("Relu", ["x"], ["h"])), ModelError, "tensor name 'h'"),
    "input overwritten": (_add(helper.make_node("Relu", ["h"], ["x"])), ModelError, "'x' is both"),
    "cycle": (
        _add(helper.make_node("Relu", ["d"], ["e"]), helper.make_node("Relu", ["e"], ["d"])), ModelError, "sorted"),
    "unknown tensor": (_add(helper.make_node("Relu", ["nobody"], ["e"])), ModelError, "nobody"),
    "impossible input shape": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", -5), CorruptFile, "negative"),
    "scale zero": (_qdq(0.0), ModelError, "scale 's' of QuantizeLinear node 'quant' is 0.0"),
    "scale below zero": (_qdq(-1.0), ModelError, "is -1.0"),
    "scale NaN": (_qdq(float("nan")), ModelError, "is nan"),
    "scale infinite": (_qdq(float("inf")), ModelError, "is inf"),
    "scale zero in a Constant": (_qdq_constant, ModelError, "scale 's'"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_model_is_refused_with_its_reason(what: str, mlp: onnx.ModelProto, tmp_path: Path) -> None:
    change, error, reason = BROKEN[what]
    change(mlp)
    with pytest.raises(error, match=reason):
        load(write(mlp, tmp_path))


def test_subgraphs_nested_too_deep_are_refused(
    mlp: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structure, "MAX_DEPTH", 4)
    mlp.graph.node.append(_nested(6))
    with pytest.raises(ModelError, match="nested 5 deep, the limit is 4"):
        load(write(mlp, tmp_path))


def test_ten_thousand_nested_subgraphs_are_refused(tmp_path: Path) -> None:
    message = b""
    for _ in range(10_000):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            message = tag + _varint(len(message)) + message
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a\x3a" + _varint(len(message)) + message)
    with pytest.raises(CorruptFile, match="damaged"):
        load(tmp_path / "m.onnx")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def test_too_many_nodes_are_refused(mlp: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "MAX_NODES", 1)
    with pytest.raises(ModelError, match="more than 1 nodes"):
        load(write(mlp, tmp_path))


def test_an_attribute_of_countless_values_is_refused(
    mlp: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structure, "MAX_ATTRIBUTE_VALUES", 2)
    mlp.graph.node.append(helper.make_node("Constant", [], ["many"], value_ints=[1, 2, 3]))
    with pytest.raises(ModelError, match="holds 3 values"):
        load(write(mlp, tmp_path))


def test_local_functions_are_inlined(mlp: onnx.ModelProto, tmp_path: Path) -> None:
    body = [helper.make_node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 20)]
    mlp.functions.append(helper.make_function("local", "F", ["a"], ["b"], body, opsets))
    mlp.opset_import.append(helper.make_opsetid("local", 1))
    mlp.graph.node[1].op_type, mlp.graph.node[1].domain = "F", "local"
    loaded = load(write(mlp, tmp_path))
    assert [node.op_type for node in loaded.graph.node] == ["Gemm", "Relu"]
    assert not loaded.functions
