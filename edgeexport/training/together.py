"""What processes that train together share: their gradients, and the statistics of batch norms over the whole batch.

The rule: a network trained by N processes is the one that a single process makes, up to the order of sums. torch's own
SyncBatchNorm runs on GPUs only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgeexport import ranks

if TYPE_CHECKING:
    import torch


def share_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Give every process the mean of all processes' gradients; a parameter that none of them used has none."""
    import torch

    if ranks.count() == 1:
        return
    held = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    ranks.average([*gradients, held])
    for parameter, gradient, used in zip(parameters, gradients, held.tolist(), strict=True):
        parameter.grad = gradient if used else None


@contextlib.contextmanager
def shared_statistics(module: torch.nn.Module) -> Iterator[None]:
    """For the time of this context, let every batch norm of `module` see the batch of all processes."""
    import torch

    if ranks.count() == 1:
        yield
        return
    norms = [each for each in module.modules() if isinstance(each, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.forward = _forward_of(norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward  # the class's own is found again


def _forward_of(norm: Any) -> Any:
    own = norm.forward

    def forward(values: torch.Tensor) -> torch.Tensor:
        import torch

        counted = norm.training or norm.running_mean is None
        if not counted or ranks.count() == 1:
            answer: torch.Tensor = own(values)
            return answer
        mean, variance, count = _moments(values.float())
        if norm.training and norm.running_mean is not None:
            _remember(norm, mean.detach(), variance=variance.detach() * count / max(count - 1, 1))
        shape = [1, -1, *[1] * (values.ndim - 2)]
        result = (values - mean.view(shape)) * torch.rsqrt(variance + norm.eps).view(shape)
        if norm.affine:
            result = result * norm.weight.view(shape) + norm.bias.view(shape)
        return result.to(values.dtype)

    return forward


def _moments(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return mean and biased variance of each channel over all processes, and of how many values.

    Two passes, as squares of large means would drown the variance.
    """
    import torch

    axes = [axis for axis in range(values.ndim) if axis != 1]
    count = torch.tensor([values.numel() / values.shape[1]], dtype=values.dtype)
    sums = ranks.summed(torch.cat([values.sum(axes), count]))
    total = sums[-1].detach()
    mean = sums[:-1] / total
    shape = [1, -1, *[1] * (values.ndim - 2)]
    variance = ranks.summed((values - mean.view(shape)).square().sum(axes)) / total
    return mean, variance, float(total)


def _remember(norm: Any, mean: torch.Tensor, *, variance: torch.Tensor) -> None:
    """Move the running statistics as torch does; `momentum=None` means the plain average."""
    import torch

    with torch.no_grad():
        norm.num_batches_tracked += 1
        share = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
        norm.running_mean.lerp_(mean, share)
        norm.running_var.lerp_(variance, share)
