"""A teacher that is an .onnx file, run by onnxruntime.

The rule: it teaches and does not learn, so how it computes is no matter, and onnxruntime is the faster: 1.6 times on
ResNet-56 in batches of 128. Layers of it cannot be looked into.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.errors import ModelError
from edgeexport.records.recipe import Inputs, input_shapes

if TYPE_CHECKING:
    import torch

# Threads that spin while torch computes would take its cores.
_ASLEEP = {"session.intra_op.allow_spinning": "0"}
_NO_ENTRIES: Mapping[str, str] = MappingProxyType({})


def onnx_teacher(path: Path, inputs: Inputs, *, config_entries: Mapping[str, str] = _NO_ENTRIES) -> torch.nn.Module:
    """Return a module, in eval mode, that takes the file's inputs in order and returns its outputs; the batch is free.

    inputs: shapes for dimensions that the file leaves open. config_entries: onnxruntime's, for the session. Sums of
    8-bit products are exact unless they say otherwise, which makes an int8 teacher slow: 0.32 s for 128 pictures of
    ResNet-56 where the shipped form takes 0.11 and fp32 0.26 (AVX-512 VNNI, one thread). Raises what `graph.load`
    raises, and ModelError where the file's batch cannot be freed.
    """
    import torch

    from edgeexport.runtimes.ort import open_session

    model = graph.load(path)
    model = graph.fix_inputs(model, graph.complete_inputs(model, input_shapes(inputs)), free_batch=True)
    session = open_session(
        model.SerializeToString(),
        threads=torch.get_num_threads(),
        options={"config_entries": {**_ASLEEP, **config_entries}},
    )
    names = [spec.name for spec in session.signature.inputs]
    if any(spec.shape and isinstance(spec.shape[0], int) for spec in session.signature.inputs):
        raise ModelError(f"{path}: its batch size is built in", next_step="export the teacher with a free batch axis")

    class Session(torch.nn.Module):
        def forward(self, *inputs: Any) -> Any:  # torch calls a method
            feeds = {name: each.contiguous().numpy() for name, each in zip(names, inputs, strict=True)}
            return tuple(torch.from_numpy(each) for each in session.run(feeds).values())

    return Session().eval()
