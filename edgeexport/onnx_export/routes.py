"""The two ways from a torch module to ONNX bytes, behind one signature and in one visible table.

The rule: a route only translates. Whether the result is right is decided by numbers, in `export`.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeexport.graph.files import parse
from edgeexport.graph.walk import nodes

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto
    from torch import nn

OPSET = 20
BATCH = "batch"
_OUTPUT = "__output"


@dataclass(frozen=True)
class Call:
    """How a network is called. tensors: input name → example; the order is that of `forward`.

    keywords: pass the inputs by name, because all of them are parameters of `forward`. outputs: names, in order.
    free: leave the batch axis free, the example is a batch of two; else it is one sample, and the batch stays at 1.
    """

    tensors: dict[str, torch.Tensor]
    outputs: tuple[str, ...]
    keywords: bool
    free: bool = True

    @property
    def args(self) -> tuple[torch.Tensor, ...]:
        """Return what is passed by position."""
        return () if self.keywords else tuple(self.tensors.values())

    @property
    def kwargs(self) -> dict[str, torch.Tensor]:
        """Return what is passed by name."""
        return dict(self.tensors) if self.keywords else {}


Route = Callable[["nn.Module", Call], "ModelProto"]


def export_with_dynamo(module: nn.Module, call: Call) -> ModelProto:
    """Translate with `torch.onnx.export(dynamo=True)`: torch.export, then onnxscript."""
    import torch

    batch = torch.export.Dim(BATCH)
    axes = {name: {0: batch} if call.free else None for name in call.tensors}
    with _quiet():
        program = torch.onnx.export(
            module,
            call.args,
            kwargs=call.kwargs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(call.tensors),
            output_names=[f"{name}{_OUTPUT}" for name in call.outputs],
            dynamic_shapes=axes if call.keywords else tuple(axes.values()),
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    return _named_outputs(program.model_proto, call.outputs)


def _named_outputs(model: ModelProto, wanted: tuple[str, ...]) -> ModelProto:
    """Give outputs their names. The exporter itself does not look whether an inner tensor is called so already."""
    names = {f"{name}{_OUTPUT}": name for name in wanted}
    names |= {name: f"{name}__inner" for name in wanted if not any(value.name == name for value in model.graph.input)}
    for value in (*model.graph.output, *model.graph.value_info, *model.graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in nodes(model):
        for group in (node.input, node.output):
            group[:] = [names.get(name, name) for name in group]
    return model


def export_with_torchscript(module: nn.Module, call: Call) -> ModelProto:
    """Translate with the legacy exporter: a trace, so control flow that depends on data is frozen as it was seen."""
    import torch

    names = (*call.tensors, *call.outputs)
    stream = io.BytesIO()
    with _quiet():
        torch.onnx.export(
            module,
            call.args,
            stream,  # type: ignore[arg-type]  # typed as a path, documented and written as a stream too
            kwargs=call.kwargs,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(call.tensors),
            output_names=list(call.outputs),
            dynamic_axes={name: {0: BATCH} for name in names} if call.free else None,
            verbose=False,
        )
    return parse(stream.getvalue(), origin="the exported model")


ROUTES: tuple[tuple[str, Route], ...] = (("dynamo", export_with_dynamo), ("torchscript", export_with_torchscript))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters say about their own inside (deprecations, absent torchvision): numbers decide here."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
