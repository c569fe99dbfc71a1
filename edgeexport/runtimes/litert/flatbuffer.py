"""The .tflite file as data: read, check, count, rename, write.

The rule: nothing here runs a model. A file is parsed through the schema bindings of ai_edge_litert and its indices
are checked, because a mutated flatbuffer that reaches the interpreter can end the process.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.errors import CorruptFile, MissingExtra
from edgeexport.records.artifact import Signature
from edgeexport.records.base import from_json, to_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

IDENTIFIER = b"TFL3"
SIGNATURE_KEY = "serving_default"
METADATA = "edgeexport.signature"
MIN_VERSION = "min_runtime_version"
_PARSE_ERRORS = (struct.error, IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)


def read(path: Path) -> Any:
    """Return the model as a `ModelT` object tree. Raises CorruptFile for what is not a whole .tflite file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptFile(f"{path}: cannot be read: {error.strerror}") from error
    return parse(content, origin=str(path))


def parse(content: bytes, *, origin: str) -> Any:
    """Parse and check the bytes of a .tflite file; `origin` is named in errors (CorruptFile)."""
    tools = _tools()
    if len(content) < 8 or content[4:8] != IDENTIFIER:
        found = content[4:8].hex(" ") or "nothing"
        raise CorruptFile(f"{origin}: not a .tflite file: bytes 4 to 8 are {found}, expected {IDENTIFIER.hex(' ')}")
    try:
        model = tools.read_model_from_bytearray(content)
        problem = _first_problem(model, tools)
    except _PARSE_ERRORS as error:
        raise CorruptFile(f"{origin}: damaged .tflite file: {type(error).__name__}: {error}") from error
    if problem:
        raise CorruptFile(f"{origin}: damaged .tflite file: {problem}")
    return model


def write(model: Any, path: Path) -> None:
    """Write a model. The bytes depend on the object tree only."""
    path.write_bytes(bytes(_tools().convert_object_to_bytearray(model)))


def op_counts(model: Any) -> dict[str, int]:
    """Return operator name -> how often it stands in the file, such as {"CONV_2D": 19, "TRANSPOSE": 1}."""
    names = (op_name(model, op) for graph in model.subgraphs for op in graph.operators)
    return dict(sorted(Counter(names).items()))


def op_name(model: Any, op: Any) -> str:
    """Return an operator's name, such as "CONV_2D"."""
    return str(_tools().opcode_to_name(model, op.opcodeIndex))


def tensor_name(tensor: Any) -> str:
    """Return a tensor's name as text."""
    name = tensor.name
    return name.decode("utf-8", "replace") if isinstance(name, bytes | bytearray) else str(name or "")


def constants(model: Any) -> dict[int, NDArray[Any]]:
    """Return index -> values of the float32 constants of the main graph."""
    import numpy as np

    graph = model.subgraphs[0]
    found: dict[int, NDArray[Any]] = {}
    for index, tensor in enumerate(graph.tensors):
        data = model.buffers[tensor.buffer].data
        if tensor.type == 0 and data is not None and len(data):
            found[index] = np.frombuffer(bytes(data), np.float32).reshape([] if tensor.shape is None else tensor.shape)
    return found


def activations(model: Any) -> dict[int, Any]:
    """Return index -> tensor of the main graph's float32 tensors that are computed, inputs included."""
    graph = model.subgraphs[0]
    computed = {index for op in graph.operators for index in op.outputs or []} | set(graph.inputs)
    return {i: tensor for i, tensor in enumerate(graph.tensors) if i in computed and tensor.type == 0}


def rename_tensors(model: Any, names: Mapping[int, str]) -> None:
    """Name the main graph's tensors; those without a name become `t<index>`. Names end up unique."""
    taken: set[str] = set()
    for index, tensor in enumerate(model.subgraphs[0].tensors):
        wanted = names.get(index, f"t{index}")
        name, count = wanted, 1
        while name in taken:
            name, count = f"{wanted}.{count}", count + 1
        taken.add(name)
        tensor.name = name.encode()


def name_signature(model: Any, *, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Rename the signature's inputs and outputs, and list the graph's inputs and outputs in the mappings' order."""
    signature = model.signatureDefs[0]
    graph = model.subgraphs[0]
    for maps, names in ((signature.inputs, inputs), (signature.outputs, outputs)):
        by_name = {_text(entry.name): entry for entry in maps}
        maps[:] = [by_name[old] for old in names]
        for entry, new in zip(maps, names.values(), strict=True):
            entry.name = new.encode()
    graph.inputs = [entry.tensorIndex for entry in signature.inputs]
    graph.outputs = [entry.tensorIndex for entry in signature.outputs]


def metadata(model: Any) -> dict[str, bytes]:
    """Return the file's metadata, name -> bytes."""
    found = {}
    for entry in model.metadata or []:
        data = model.buffers[entry.buffer].data
        found[_text(entry.name)] = b"" if data is None else bytes(data)
    return found


def put_signature(model: Any, signature: Signature) -> None:
    """Store the signature in the file, since .tflite itself knows neither layouts nor the order of a signature."""
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    model.description = b"edgeexport"
    content = np.frombuffer(to_json(signature), np.uint8)
    kept = [entry for entry in model.metadata or [] if _text(entry.name) != METADATA]
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = content
    model.buffers.append(buffer)
    entry.name, entry.buffer = METADATA.encode(), len(model.buffers) - 1
    model.metadata = [*kept, entry]


def stored_signature(model: Any, *, origin: str) -> Signature | None:
    """Return the signature that `put_signature` stored, None in a file from elsewhere. Raises CorruptFile."""
    content = metadata(model).get(METADATA)
    return None if content is None else from_json(content, Signature, origin=origin)


def _first_problem(model: Any, tools: Any) -> str:
    """What would lead an interpreter outside the file's own tables, or an empty text."""
    if not model.subgraphs:
        return "it holds no graph"
    for graph in model.subgraphs:
        count = len(graph.tensors or [])
        used = [*(graph.inputs or []), *(graph.outputs or [])]
        for op in graph.operators or []:
            if not 0 <= op.opcodeIndex < len(model.operatorCodes):
                return f"an operator has code {op.opcodeIndex}, the file lists {len(model.operatorCodes)}"
            if tools.opcode_to_name(model, op.opcodeIndex) is None:
                return f"operator code {op.opcodeIndex} is of no known operator"
            used += [*(op.inputs or []), *(op.outputs or []), *(op.intermediates or [])]
        wrong = next((index for index in used if not -1 <= index < count), None)
        if wrong is not None:
            return f"tensor {wrong} is used, the graph has {count}"
        problem = next(filter(None, (_tensor_problem(tensor, model) for tensor in graph.tensors or [])), "")
        if problem:
            return problem
    return ""


def _tensor_problem(tensor: Any, model: Any) -> str:
    """A tensor whose buffer does not exist, or whose constant does not fill its shape."""
    import numpy as np

    if not 0 <= tensor.buffer < len(model.buffers):
        return f"tensor {tensor_name(tensor)!r} names buffer {tensor.buffer}, the file has {len(model.buffers)}"
    shape = [int(size) for size in (tensor.shape if tensor.shape is not None else [])]
    if any(size < 0 for size in shape):
        return f"tensor {tensor_name(tensor)!r} has shape {shape}"
    data = model.buffers[tensor.buffer].data
    sizes = {0: 4, 1: 2, 2: 4, 3: 1, 4: 8, 6: 1, 7: 2, 9: 1, 10: 8, 15: 4}
    if data is None or not len(data) or tensor.type not in sizes or tensor.sparsity is not None:
        return ""
    expected = int(np.prod(shape, dtype=object)) * sizes[tensor.type]
    if len(data) != expected:
        return f"constant {tensor_name(tensor)!r} of shape {shape} holds {len(data)} bytes, expected {expected}"
    return ""


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes | bytearray) else str(name)


def _tools() -> Any:
    try:
        from ai_edge_litert.tools import flatbuffer_utils
    except ImportError as error:
        raise MissingExtra("ai-edge-litert", extra="litert", purpose="reading .tflite files") from error
    return flatbuffer_utils
