"""Ranks: the processes of one `torchrun`, which train together and agree on everything else.

The rule: process 0 decides and writes, the others follow it. Without `torchrun` there is one process, and torch is not
loaded here. What process 0 does alone (`alone`, or after `part`) is told apart from what all do together.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from edgeexport.errors import EdgeExportError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# A process waits for as long as another one measures or exports: hours, not the half hour of torch's default.
PATIENCE_HOURS = 48


class _State:
    """Whether this process works alone for now, and whether it has left the others for good."""

    alone = 0
    parted = False


def count() -> int:
    """Return how many processes work together at this moment; 1 without `torchrun`."""
    return 1 if _State.alone or _State.parted else int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """Return which of them this is, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def first() -> bool:
    """Whether this is the process that writes and speaks; it stays so after `part`."""
    return int(os.environ.get("WORLD_SIZE", "1")) < 2 or int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """For the time of this context, the process counts as the only one."""
    _State.alone += 1
    try:
        yield
    finally:
        _State.alone -= 1


def part() -> None:
    """Leave the others for good: what follows is done by process 0 alone."""
    if count() > 1:
        _group().barrier()
        _group().destroy_process_group()
    _State.parted = True


def agreed(value: T) -> T:
    """Return what process 0 holds as `value`, in all of them. It must be plain data."""
    if count() == 1:
        return value
    box: list[Any] = [value]
    _group().broadcast_object_list(box, src=0)
    told: T = box[0]
    return told


@contextlib.contextmanager
def told() -> Iterator[None]:
    """For the time of this context, process 0 works and the others wait: its error, if any, is raised in all of them.

    Whoever gets over such an error then does so in every process, and they stay together.
    """
    failure: EdgeExportError | None = None
    try:
        yield
    except EdgeExportError as error:
        if count() == 1:
            raise
        failure = error
    found = agreed(None if failure is None else (type(failure), str(failure), failure.next_step))
    if failure is not None:
        raise failure
    if found is not None:
        kind, message, next_step = found
        raise _again(kind, message, next_step=next_step)


def _again(kind: type[EdgeExportError], message: str, *, next_step: str) -> EdgeExportError:
    """An error that happened in another process, whatever its class is made from."""
    error = kind.__new__(kind)
    EdgeExportError.__init__(error, message, next_step=next_step)
    return error


def average(tensors: Sequence[torch.Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in one message."""
    import torch

    if count() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    _group().all_reduce(flat)
    flat /= count()
    place = 0
    for tensor in tensors:
        tensor.copy_(flat[place : place + tensor.numel()].view_as(tensor))
        place += tensor.numel()


def mean(values: torch.Tensor) -> torch.Tensor:
    """Return the mean of the values of all processes together, of which each may hold another number."""
    total = values.sum(), values.new_tensor(float(values.numel()))
    average(total)
    return total[0] / total[1]


def follow(tensors: Sequence[torch.Tensor]) -> None:
    """Overwrite each tensor with what process 0 holds."""
    if count() == 1:
        return
    for tensor in tensors:
        whole = tensor.detach().contiguous()
        _group().broadcast(whole, src=0)
        tensor.detach().copy_(whole)


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum over all processes, through which gradients flow back to all of them."""
    total: torch.Tensor = _sum().apply(tensor)
    return total


@functools.cache
def _sum() -> Any:
    """A sum over all processes with its gradient, which is one too; torch's own was deprecated in 2.13."""
    import torch

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:  # noqa: ARG004 # torch hands it over
            total = tensor.clone(memory_format=torch.contiguous_format)
            _group().all_reduce(total)
            return total

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
            back: torch.Tensor = Sum.apply(gradient)  # type: ignore[no-untyped-call]
            return back

    return Sum


def _group() -> Any:
    """Return torch.distributed, joined to the others over gloo until this process ends."""
    import atexit
    import datetime as dt

    import torch.distributed

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=dt.timedelta(hours=PATIENCE_HOURS))
        atexit.register(_leave)
    return torch.distributed


def _leave() -> None:
    """Leave the others, if that was not done before: threads of gloo that still run now and then abort the process."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
