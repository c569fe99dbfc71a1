"""Live objects in a recipe: a module or a callable in place of "module:function".

The rule: stages and keys see names only. A live network is known by its exported graph, its weights and the code of its
classes, so an equal network gives equal keys, and a changed `forward` other ones, what it does in training alone
included. `class_text` says what is not seen; a change there needs another workspace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from edgeexport.errors import ModelError
from edgeexport.pipeline.callables import tensor_text
from edgeexport.pipeline.class_text import class_text
from edgeexport.records.recipe import Distill, Inputs, ModelSpec, Recipe, Step, Train, input_shapes, input_types
from edgeexport.records.recipe_text import LIVE

if TYPE_CHECKING:
    from torch import nn


def detach(recipe: Recipe) -> tuple[Recipe, dict[str, nn.Module]]:
    """Return the recipe with every live network replaced by its name, and name -> network."""
    found: dict[str, nn.Module] = {}
    train = next((step for step in recipe.step if isinstance(step, Train)), None)
    seed = train.training.seed if train else 0
    model = _named(recipe.model, recipe.model.inputs, seed=seed, found=found)
    steps = tuple(_named_step(step, recipe.model.inputs, found=found) for step in recipe.step)
    return msgspec.structs.replace(recipe, model=model, step=steps), found


def attach(spec: ModelSpec, live: Mapping[str, nn.Module]) -> ModelSpec:
    """Return the spec with the live network put back in place of its name."""
    return msgspec.structs.replace(spec, factory=live[spec.factory]) if spec.factory in live else spec


def is_live(spec: ModelSpec) -> bool:
    """Whether the factory is the name of a live network."""
    return isinstance(spec.factory, str) and spec.factory.startswith(LIVE)


def _named_step(step: Step, inputs: Inputs, *, found: dict[str, nn.Module]) -> Step:
    if not isinstance(step, Distill):
        return step
    student, seed = step.student, step.training.seed
    if isinstance(student, ModelSpec):
        student = _named(student, inputs, seed=seed, found=found)
    teacher = step.teacher and _named(step.teacher, inputs, seed=0, found=found)
    return msgspec.structs.replace(step, student=student, teacher=teacher)


def _named(spec: ModelSpec, inputs: Inputs, *, seed: int, found: dict[str, nn.Module]) -> ModelSpec:
    if spec.factory is None or isinstance(spec.factory, str):
        return spec
    module = _module(spec.factory, seed=seed)
    name = LIVE + _identity(module, spec.inputs or inputs)
    found[name] = module
    return msgspec.structs.replace(spec, factory=name)


def _module(factory: Any, *, seed: int) -> nn.Module:
    """Return the network; one that a callable builds starts from seeded weights, the same ones every time."""
    import torch
    from torch import nn

    module = factory
    if not isinstance(factory, nn.Module) and callable(factory):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = factory()
    if not isinstance(module, nn.Module):
        raise ModelError(f"`model.factory` gave a {type(module).__name__}, expected a torch.nn.Module")
    return module


def _identity(module: nn.Module, inputs: Inputs) -> str:
    """Digest what the network computes and how it trains.

    That is the exported graph's operations, the name, type and bytes of every weight, buffer and constant, which
    parameters are frozen, and the text of its classes, which may do more in training than the graph shows.
    """
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
    for name, parameter in module.named_parameters():
        taken.update(f"{name} {parameter.requires_grad}".encode())
    taken.update(class_text(module).encode())
    return taken.hexdigest()[:32]
