"""One step of a training: layout and precision, forward, backward, and the weights moved.

The rule: whatever is random in a step comes from the seed, the step and the rank, so that a training may be cut
between any two steps. No global state of torch is left changed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgeexport import ranks
from edgeexport.data import UserCode
from edgeexport.errors import RequestError
from edgeexport.records.training import Training
from edgeexport.training.batches import Batches, in_order
from edgeexport.training.losses import Loss, forward
from edgeexport.training.optimizers import make_optimizer
from edgeexport.training.samples import Batch, TrainingData
from edgeexport.training.together import share_gradients, shared_statistics

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Stepper:
    """A module with all that moves its weights. learned: what the loss itself learns beside it, if anything."""

    module: torch.nn.Module
    learned: torch.nn.Module | None
    loss: Loss
    settings: Training
    optimizer: torch.optim.Optimizer
    factors: tuple[float, ...]
    layout: torch.memory_format
    precision: str

    def anew(self, *, folder: str) -> Stepper:
        """Return the same with an optimizer that has not seen a step."""
        return replace(self, optimizer=make_optimizer(self.trained, self.settings, folder=folder))

    @property
    def trained(self) -> list[torch.nn.Module]:
        """The modules whose weights move."""
        return [self.module] if self.learned is None else [self.module, self.learned]

    def step(self, batches: Batches, number: int, *, rate: float) -> float:
        """Take step `number` (from 0) at a learning rate and return its loss; no weight moves if it is not finite."""
        import torch

        torch.manual_seed(_mixed(self.settings.seed, number))
        batch = batches.at(number)
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        value = self._loss(batch)
        told = (value.detach().float() * batches.share).reshape(1)
        ranks.average([told])
        if math.isfinite(float(told)):
            with UserCode("the way back from the loss through the network"):
                (value * batches.share if ranks.count() > 1 else value).backward()  # type: ignore[no-untyped-call]
            self._move()
        return float(told)

    def evaluate(self, data: TrainingData) -> float:
        """Return the mean loss over samples as they are, in eval mode; the modules stay in train mode."""
        import torch

        total = 0.0
        for module in self.trained:
            module.eval()
        with torch.no_grad(), ranks.alone():
            for batch in in_order(data, self.settings.batch_size):
                total += float(self._loss(batch)) * len(batch.inputs[0])
        for module in self.trained:
            module.train()
        return total / len(data)

    def _loss(self, batch: Batch) -> torch.Tensor:
        import torch

        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            outputs = forward(self.module, fed(batch.inputs, self.layout))
            return self.loss(_in_float(outputs) if self.precision == "bfloat16" else outputs, batch)

    def _move(self) -> None:
        import torch

        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        share_gradients(parameters)
        if self.settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
        with UserCode(f"the optimizer {self.settings.optimizer!r}"):
            self.optimizer.step()


@contextlib.contextmanager
def stepping(module: torch.nn.Module, data: TrainingData, *, loss: Loss, settings: Training) -> Iterator[Stepper]:
    """Make a module ready to be trained, for the time of a training; its layout and torch's state are put back.

    All processes of a `torchrun` start from the weights of the first one, and share the statistics of batch norms.
    """
    learned = learned_by(loss)
    modules = [module] if learned is None else [module, learned]
    for each in modules:
        ranks.follow([*each.parameters(), *each.buffers()])
    with _repeatable(), fast_layout(module, data) as layout, shared_statistics(module):
        optimizer = make_optimizer(modules, settings, folder=data.folder)
        factors = tuple(float(group["lr"]) / settings.learning_rate for group in optimizer.param_groups)
        for each in modules:
            each.train()
        yield Stepper(module, learned, loss, settings, optimizer, factors, layout, precision_of(settings))
        for each in modules:
            ranks.follow(list(each.buffers()))


def learned_by(loss: Loss) -> torch.nn.Module | None:
    """Return the module that a loss names as its attribute `learned`: it is trained beside the network."""
    import torch

    found = getattr(getattr(getattr(loss, "user", None), "function", loss), "learned", None)
    return found if isinstance(found, torch.nn.Module) and list(found.parameters()) else None


def precision_of(settings: Training) -> str:
    """Return "bfloat16" or "float32": what "auto" means on this machine, asked of torch.

    AVX512_BF16 without AMX is not enough: forward and backward of most layers take 1.2 to 1.7 times as long in it as in
    float32 (torch 2.13: convolutions of 64 and 256 channels, depthwise ones, linear and encoder layers).
    """
    import torch

    if settings.precision != "auto":
        return settings.precision
    cpu: Any = torch.cpu  # torch does not declare the query to type checkers
    return "bfloat16" if cpu._is_amx_tile_supported() else "float32"


def _mixed(seed: int, number: int) -> int:
    import numpy as np

    return int(np.random.SeedSequence([seed, number, ranks.index()]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _in_float(outputs: Any) -> Any:
    from torch.utils import _pytree

    return _pytree.tree_map_only(
        _tensor_type(), lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, outputs
    )


def _tensor_type() -> type:
    import torch

    return torch.Tensor


def fed(arrays: Sequence[torch.Tensor], layout: torch.memory_format) -> list[torch.Tensor]:
    """Return the arrays of a batch, pictures among them (n, channels, height, width) in this layout."""
    return [array.contiguous(memory_format=layout) if array.ndim == 4 else array for array in arrays]


@contextlib.contextmanager
def fast_layout(module: torch.nn.Module, data: TrainingData) -> Iterator[torch.memory_format]:
    """Lay the module out for its training: channels last where it is convolutional and its code allows it.

    That took 16 to 29 % off a training step of ResNet-56 on one core. Code that says `view` where channels last needs
    `reshape` stays as it is. Afterwards the module has torch's plain layout again.
    """
    import torch

    plain, fast = torch.contiguous_format, torch.channels_last
    dimensions = {parameter.ndim for parameter in module.parameters()}
    if 4 not in dimensions or 5 in dimensions:
        yield plain
        return
    module.to(memory_format=fast)  # type: ignore[call-overload]
    try:
        with torch.no_grad():
            forward(module.eval(), fed([torch.from_numpy(array[:2]) for array in data.arrays], fast))
    except RequestError:
        module.to(memory_format=plain)  # type: ignore[call-overload]
        fast = plain
    try:
        yield fast
    finally:
        module.to(memory_format=plain)  # type: ignore[call-overload]


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """Ask for deterministic kernels, for the time of a training; put everything back after it, random state too."""
    import torch

    # The module's attribute is a property that torch does not declare to type checkers.
    deterministic: Any = torch.utils.deterministic
    was_on = torch.are_deterministic_algorithms_enabled()
    was_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    was_fill = deterministic.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[]):
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_on, warn_only=was_warn)
            deterministic.fill_uninitialized_memory = was_fill
