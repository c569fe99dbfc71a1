"""The lifted module: executes a program of steps. Weights live under their ONNX names.

The rule: no judgement here. What runs was decided when the program was compiled.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeexport.errors import ModelError
from edgeexport.graph.lifting.node import Run
from edgeexport.graph.lifting.numbers import as_tensor
from edgeexport.graph.lifting.program import Program, Source

Tap = Callable[[Tensor], Tensor]


class Lifted(nn.Module):
    """An ONNX model as a torch module.

    weight_names: ONNX name → dotted attribute path, parameters and buffers alike; it is the ONNX name itself wherever
    that can be one. input_names, output_names: in the model's order.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.input_names = program.inputs
        self.output_names = program.outputs
        self._program = program
        self._taps = nn.ModuleDict()
        self._tap_keys: dict[str, str] = {}
        self.weight_names: dict[str, str] = {}
        for index, (name, value) in enumerate(sorted(program.stored.items())):
            self.weight_names[name] = self._store(name, value, index=index, trainable=name in program.weights)

    def forward(self, *inputs: Tensor) -> Any:
        """Run on inputs in the model's order (`input_names`); one tensor, or a tuple of them (`output_names`)."""
        values: dict[str, Any] = {}
        for name, value in zip(self.input_names, inputs, strict=True):
            values[name] = self._tapped(name, value)
        for step in self._program.steps:
            arguments = [self._take(source, values) for source in step.sources]
            result = step.run(*arguments)
            for name, value in zip(step.outputs, result if isinstance(result, tuple) else (result,), strict=False):
                values[name] = self._tapped(name, value)
            for name in step.done:
                values.pop(name, None)
        outputs = tuple(self._take(self._output(name), values) for name in self.output_names)
        return outputs if len(outputs) > 1 else outputs[0]

    def dynamic_batch(self, name: str = "batch") -> tuple[tuple[dict[int, Any], ...]]:
        """Return `dynamic_shapes` for torch.export: the free axis 0 of each input is one dimension called `name`."""
        batch = torch.export.Dim(name)
        return (tuple({0: batch} if 0 in axes else {} for axes in self._program.free),)

    def tap(self, tensor: str, module: nn.Module) -> None:
        """Send the ONNX tensor `tensor` (input, stored or computed) through `module` wherever it is read."""
        known = {
            *self.input_names,
            *self.weight_names,
            *(name for step in self._program.steps for name in step.outputs),
        }
        if tensor not in known:
            raise ModelError(f"the lifted model has no tensor {tensor!r}")
        self._tap_keys[tensor] = f"tap{len(self._tap_keys)}"
        self._taps[self._tap_keys[tensor]] = module

    def compute(self, tensor: str, wrap: Callable[[Run], Run]) -> None:
        """Let the step that makes the ONNX tensor `tensor` run as `wrap` of its own function does."""
        if not any(tensor in step.outputs for step in self._program.steps):
            raise ModelError(f"the lifted model does not compute a tensor {tensor!r}")
        steps = (replace(each, run=wrap(each.run)) if tensor in each.outputs else each for each in self._program.steps)
        self._program = replace(self._program, steps=tuple(steps))

    def export_weights(self) -> dict[str, np.ndarray]:
        """Return ONNX name → present value of every trainable weight, for `with_initializers`."""
        return {name: self.get_parameter(self.weight_names[name]).detach().numpy().copy()
                for name in sorted(self._program.weights)}  # fmt: skip

    def load_weights(self, values: Mapping[str, np.ndarray]) -> None:
        """Set weights by ONNX name. Raises ModelError if a name or shape does not fit."""
        for name, value in values.items():
            if name not in self._program.weights:
                raise ModelError(f"the lifted model has no weight {name!r}")
            parameter = self.get_parameter(self.weight_names[name])
            if tuple(parameter.shape) != value.shape:
                raise ModelError(f"weight {name!r} has the shape {tuple(parameter.shape)}, given is {value.shape}")
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(np.array(value)))

    def _take(self, source: Source, values: Mapping[str, Any]) -> Any:
        match source.kind:
            case "value":
                value = values[source.name]
                return as_tensor(value) if isinstance(value, np.ndarray) and not source.raw else value
            case "stored":
                return self._tapped(source.name, self._stored(source.name))
            case _:
                return source.numbers

    def _stored(self, name: str) -> Any:
        found: Any = self
        for part in self.weight_names[name].split("."):
            found = getattr(found, part)
        return found

    def _tapped(self, name: str, value: Any) -> Any:
        return self._taps[self._tap_keys[name]](value) if name in self._tap_keys else value

    def _output(self, name: str) -> Source:
        return Source("stored" if name in self.weight_names else "value", name)

    def _store(self, name: str, value: np.ndarray, *, index: int, trainable: bool) -> str:
        """Register a stored tensor under its ONNX name where that can be an attribute path; return the path."""
        tensor = torch.from_numpy(np.array(value))
        owner, leaf, path = self._place(name) or (self, f"stored_{index}", f"stored_{index}")
        if trainable:
            owner.register_parameter(leaf, nn.Parameter(tensor))
        else:
            owner.register_buffer(leaf, tensor)
        return path

    def _place(self, name: str) -> tuple[nn.Module, str, str] | None:
        """Find or make the submodule that holds `name`; None if the name cannot be an attribute path."""
        *folders, leaf = name.split(".")
        owner: nn.Module = self
        for part in folders:
            held = owner._modules.get(part)
            if held is None and not _is_free(owner, part):
                return None
            if held is None:
                held = nn.Module()
                owner.add_module(part, held)
            owner = held
        return (owner, leaf, name) if _is_free(owner, leaf) else None


def _is_free(owner: nn.Module, part: str) -> bool:
    plain = part.isidentifier() or part.isdigit()
    return plain and not keyword.iskeyword(part) and not part.startswith("_") and not hasattr(owner, part)
