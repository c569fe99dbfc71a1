"""A teacher that is an .onnx file: lifted into torch, or run by onnxruntime where an operator cannot be lifted.

The rule: it teaches and does not learn, so how it computes is no matter. Layers of it cannot be looked into.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.errors import UnsupportedOperator
from edgeexport.records.recipe import Inputs, input_shapes

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto


def onnx_teacher(path: Path, inputs: Inputs) -> torch.nn.Module:
    """Return a module, in eval mode, that takes the file's inputs in order and returns its outputs; the batch is free.

    inputs: shapes for dimensions that the file leaves open. Raises what `graph.load` raises, and ModelError where the
    file's batch cannot be freed.
    """
    model = graph.load(path)
    model = graph.fix_inputs(model, graph.complete_inputs(model, input_shapes(inputs)), free_batch=True)
    try:
        module: torch.nn.Module = graph.lift(model)
    except UnsupportedOperator:
        return _run_by_onnxruntime(model)
    return module.requires_grad_(False).eval()


def _run_by_onnxruntime(model: ModelProto) -> torch.nn.Module:
    import torch

    from edgeexport.runtimes.ort import open_session

    session = open_session(model.SerializeToString(), threads=torch.get_num_threads())
    names = [spec.name for spec in session.signature.inputs]

    class Session(torch.nn.Module):
        def forward(self, *inputs: Any) -> Any:  # torch calls a method
            feeds = {name: each.contiguous().numpy() for name, each in zip(names, inputs, strict=True)}
            return tuple(torch.from_numpy(each) for each in session.run(feeds).values())

    return Session().eval()
