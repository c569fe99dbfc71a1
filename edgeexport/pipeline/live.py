"""Live objects in a recipe: a module or a callable in place of "module:function".

The rule: stages and keys see names only. A live network is known by its exported graph and its weights, so an equal
network gives equal keys, and a changed `forward` other ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from edgeexport.errors import ModelError
from edgeexport.pipeline.callables import tensor_text
from edgeexport.records.recipe import Distill, Inputs, ModelSpec, Recipe, Step, input_shapes, input_types

if TYPE_CHECKING:
    from torch import nn

PREFIX = "live:"


def detach(recipe: Recipe) -> tuple[Recipe, dict[str, nn.Module]]:
    """Return the recipe with every live network replaced by its name, and name -> network."""
    found: dict[str, nn.Module] = {}
    model = _named(recipe.model, recipe.model.inputs, found=found)
    steps = tuple(_named_step(step, recipe.model.inputs, found=found) for step in recipe.step)
    return msgspec.structs.replace(recipe, model=model, step=steps), found


def attach(spec: ModelSpec, live: Mapping[str, nn.Module]) -> ModelSpec:
    """Return the spec with the live network put back in place of its name."""
    return msgspec.structs.replace(spec, factory=live[spec.factory]) if spec.factory in live else spec


def is_live(spec: ModelSpec) -> bool:
    """Whether the factory is the name of a live network."""
    return isinstance(spec.factory, str) and spec.factory.startswith(PREFIX)


def _named_step(step: Step, inputs: Inputs, *, found: dict[str, nn.Module]) -> Step:
    if not isinstance(step, Distill):
        return step
    student = _named(step.student, inputs, found=found) if isinstance(step.student, ModelSpec) else step.student
    teacher = step.teacher and _named(step.teacher, inputs, found=found)
    return msgspec.structs.replace(step, student=student, teacher=teacher)


def _named(spec: ModelSpec, inputs: Inputs, *, found: dict[str, nn.Module]) -> ModelSpec:
    if spec.factory is None or isinstance(spec.factory, str):
        return spec
    module = _module(spec.factory)
    name = PREFIX + _identity(module, spec.inputs or inputs)
    found[name] = module
    return msgspec.structs.replace(spec, factory=name)


def _module(factory: Any) -> nn.Module:
    from torch import nn

    module = factory if isinstance(factory, nn.Module) else factory() if callable(factory) else factory
    if not isinstance(module, nn.Module):
        raise ModelError(f"`model.factory` gave a {type(module).__name__}, expected a torch.nn.Module")
    return module


def _identity(module: nn.Module, inputs: Inputs) -> str:
    """Digest the exported graph's operations, and the name, type and bytes of every weight, buffer and constant."""
    import torch

    types = input_types(inputs)
    example = tuple(
        torch.zeros(shape, dtype=getattr(torch, types[name])) for name, shape in input_shapes(inputs).items()
    )
    training = module.training
    program = torch.export.export(module.eval(), example)
    module.train(training)
    taken = hashlib.sha256()
    for node in program.graph.nodes:
        taken.update(f"{node.op} {node.name} {node.target} {node.args} {sorted(node.kwargs.items())}\n".encode())
    # Buffers that are not saved, and tensors that `forward` merely mentions, are among the program's constants.
    for name, value in sorted({**module.state_dict(), **program.state_dict, **program.constants}.items()):
        taken.update(f"{name} {tensor_text(value) if torch.is_tensor(value) else value!r}".encode())
    return taken.hexdigest()[:32]
