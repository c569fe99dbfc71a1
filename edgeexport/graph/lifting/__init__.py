"""ONNX → `nn.Module`: the spine as something torch can train and other runtimes can convert.

The rule: one visible table of operators (`table.py`), each row a small function tested against onnxruntime; what the
table cannot express exactly is refused by name, never approximated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeexport.graph.files import need

if TYPE_CHECKING:
    from onnx import ModelProto

    from edgeexport.graph.lifting.module import Lifted


def lift(model: ModelProto) -> Lifted:
    """Return a module that computes what the model computes, node by node.

    `forward` takes the inputs in the model's order and returns one tensor, or a tuple of them in the model's order.
    Float weights are parameters, other stored tensors buffers; both keep their ONNX name (`weight_names`). Passes
    torch.export with a free batch (`dynamic_batch` is its dynamic_shapes).
    Raises UnsupportedOperator naming operator, node and attribute.
    """
    need("torch", purpose="lifting an ONNX model into torch")
    from edgeexport.graph.lifting.module import Lifted
    from edgeexport.graph.lifting.program import compile_program

    return Lifted(compile_program(model))


def lift_operators() -> tuple[str, ...]:
    """Return the operators that `lift` knows, by name."""
    need("torch", purpose="lifting an ONNX model into torch")
    from edgeexport.graph.lifting.table import TABLE

    return tuple(sorted({*TABLE, "Constant"}))
