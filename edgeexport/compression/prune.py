"""Structured pruning: whole channels go, by a plan that can be read, stored and applied again.

The rule: judgement is in `plan_pruning`, which changes nothing; `apply_pruning` only carries a plan out. Widths stay
aligned to what the kernels like, and what cannot be proven safe is named in the plan and left alone.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgeexport.compression.channels import ChannelGroup, disproof, find_groups, remove, trace
from edgeexport.compression.distill import distill
from edgeexport.compression.macs import count_macs, positions
from edgeexport.errors import ModelError, RecipeError
from edgeexport.progress import Progress, silent
from edgeexport.records.pruning import PruningGroup, PruningPlan
from edgeexport.records.recipe import Distill, Prune
from edgeexport.records.training import TrainingRecord
from edgeexport.training import TrainingData, resolve_loss, train

if TYPE_CHECKING:
    import numpy as np
    import torch

# Where `round_to` leaves too little to remove, and for layers narrower than it, widths go by this.
FINE = 8


def plan_pruning(
    module: torch.nn.Module,
    example: Mapping[str, np.ndarray],
    *,
    step: Prune,
    goal: int | None = None,
    progress: Progress = silent,
) -> PruningPlan:
    """Choose channels to remove until the multiply-accumulates are at most `goal` (default: now / `step.macs`).

    Channels are ranked within their group by `step.criterion`; then, again and again, the group that loses the least
    share of its importance (as -log of what remains) per multiply-accumulate saved gives up its next aligned chunk.
    Widths become multiples of `round_to`, those of narrower layers multiples of 8. If that cannot reach the goal,
    layers exactly `round_to` wide go by 8 too, and as a last resort all (the plan's `round_to` says so). Output layers
    and `locked` ones stay.
    Raises RecipeError for an unknown locked layer, ModelError naming the most that can be reached.
    """
    _check_locked(module, step.locked)
    before = count_macs(module, example)
    goal = math.floor(before / step.macs) if goal is None else goal
    groups, refused = _safe_groups(module, example, step=step, progress=progress)
    scores = {group.layer: _importance(module, group, step=step, order=order) for order, group in enumerate(groups)}
    least = before
    for grid in _grids(step.round_to):
        price = _Price(module, positions(module, example))
        chosen, after = _choose(price, groups, scores=scores, goal=goal, grid=grid)
        least = min(least, after)
        if after <= goal:
            return PruningPlan(step.criterion, grid.round_to, before, after, chosen, refused)
    asked, reached = before / max(goal, 1), before / max(least, 1)
    raise ModelError(
        f"pruning cannot reach {asked:.2f} times fewer multiply-accumulates ({goal:,} of {before:,}): "
        f"the channels that may go leave {least:,} ({reached:.2f} times)",
        next_step=_what_holds_back(reached, refused),
    )


def apply_pruning(module: torch.nn.Module, plan: PruningPlan, *, example: Mapping[str, np.ndarray]) -> torch.nn.Module:
    """Carry `plan` out on `module`, in place, and return it (in eval mode).

    Raises ModelError if a layer is not there, is of another kind or width than planned, or if the result does not
    have the multiply-accumulates that the plan says.
    """
    layers = dict(module.named_modules())
    for group in plan.groups:
        layer = layers.get(group.layer)
        kind = "no such layer" if layer is None else f"{type(layer).__name__} of width {_width(layer)}"
        if kind != f"{group.kind} of width {group.width}":
            raise ModelError(
                f"the pruning plan does not fit: `{group.layer}` is {kind}, "
                f"the plan says {group.kind} of width {group.width}",
                next_step="apply it to the network it was made for, before any other pruning",
            )
    flags = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    remove(trace(module, example), [(group.layer, group.removed) for group in plan.groups])
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(flags[name])
    macs = count_macs(module, example)
    if macs != plan.macs_after:
        raise ModelError(f"the pruned network has {macs:,} multiply-accumulates, the plan says {plan.macs_after:,}")
    return module


def round_goals(macs: int, step: Prune) -> tuple[int, ...]:
    """Return the goal of each round: equal ratios from `macs` down to `macs` / `step.macs`."""
    return tuple(math.floor(macs / step.macs ** (index / step.rounds)) for index in range(1, step.rounds + 1))


def retrain(
    module: torch.nn.Module,
    source: torch.nn.Module,
    *,
    data: TrainingData,
    step: Prune,
    progress: Progress = silent,
    state: Path | None = None,
) -> TrainingRecord:
    """Train a pruned module in place: on the outputs of `source` (`step.distil`, the default) or on labels alone."""
    if step.distil:
        lesson = Distill(method="logits" if step.distil is True else step.distil, training=step.training)
        return distill(module, source, data=data, step=lesson, progress=progress, state=state)
    loss = resolve_loss(step.training.loss, data.folder)
    return train(module, data, loss=loss, settings=step.training, progress=progress, state=state)


def _check_locked(module: torch.nn.Module, locked: Sequence[str]) -> None:
    names = [name for name, _ in module.named_modules() if name]
    for name in locked:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise RecipeError(
                f"locked layer `{name}` is not in the model",
                next_step=f"did you mean `{close[0]}`?" if close else f"its layers: {', '.join(names[:8])}, ...",
            )


def _what_holds_back(reached: float, refused: Mapping[str, str]) -> str:
    most = math.floor(reached * 100) / 100
    text = f"ask for macs = {most} or less" if most > 1 else "leave the prune step out: no channel may go"
    return text + "".join(f"; `{name}` stays: {reason}" for name, reason in list(refused.items())[:3])


def _width(layer: torch.nn.Module) -> int:
    width: int = getattr(layer, "out_features", 0) or getattr(layer, "out_channels", 0)
    return width


class Grid(NamedTuple):
    """Which widths a layer may be cut to: multiples of `round_to`, or of 8 for layers narrower than `wide`."""

    round_to: int
    wide: int

    def widths(self, width: int) -> list[int]:
        """Return the widths a layer of `width` may be cut to, widest first."""
        unit = self.round_to if width >= self.wide else min(FINE, self.round_to)
        return [kept for kept in range(width - 1, 0, -1) if kept % unit == 0]


def _grids(round_to: int) -> tuple[Grid, ...]:
    """The grids to try in order, from the best for the kernels to the finest."""
    fine = min(FINE, round_to)
    return tuple(dict.fromkeys((Grid(round_to, round_to), Grid(round_to, round_to + 1), Grid(fine, fine))))


def _safe_groups(
    module: torch.nn.Module, example: Mapping[str, np.ndarray], *, step: Prune, progress: Progress
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Return the groups proven safe to prune, and layer -> reason for the others. Too narrow ones are in neither."""
    groups = find_groups(module, example, locked=step.locked)
    refused = {group.layer: group.blocked for group in groups if group.blocked}
    free = [group for group in groups if not group.blocked and _grids(step.round_to)[-1].widths(group.width)]

    def prove(candidates: Sequence[ChannelGroup]) -> str:
        progress(f"proving {len(candidates)} channel groups", None)
        return disproof(module, example, removals=[(group.layer, _probe(group)) for group in candidates])

    safe, failed = _sieve(free, prove)
    for group, reason in failed:
        crossing = f", crossing {', '.join(group.crosses)}" if group.crosses else ""
        refused[group.layer] = f"cannot be pruned safely{crossing}: {reason}"
    return safe, refused


def _probe(group: ChannelGroup) -> tuple[int, ...]:
    """Channels to remove in a proof: irregular, so that a wrong index cannot map onto itself, and a multiple of 8."""
    import numpy as np

    count = max(FINE, group.width // 2 // FINE * FINE) if group.width > FINE else group.width // 2
    chosen = np.random.default_rng(group.width).permutation(group.width)[:count]
    return tuple(sorted(chosen.tolist()))


def _sieve(
    groups: list[ChannelGroup], prove: Callable[[Sequence[ChannelGroup]], str]
) -> tuple[list[ChannelGroup], list[tuple[ChannelGroup, str]]]:
    """Part groups into those that hold together and those that fail, halving: few proofs when few fail."""
    reason = prove(groups) if groups else ""
    if not reason:
        return groups, []
    if len(groups) == 1:
        return [], [(groups[0], reason)]
    middle = len(groups) // 2
    safe, failed = _sieve(groups[:middle], prove)
    more, also_failed = _sieve(groups[middle:], prove)
    failed += also_failed
    if not prove(safe + more):
        return safe + more, failed
    for group in more:
        reason = prove([*safe, group])
        safe, failed = ([*safe, group], failed) if not reason else (safe, [*failed, (group, reason)])
    return safe, failed


def _importance(module: torch.nn.Module, group: ChannelGroup, *, step: Prune, order: int) -> np.ndarray:
    """Return the importance of each channel, mean 1 in every layer that makes them, averaged over these layers.

    l1, l2: norm of the filter that makes it (Li et al. 2017, arXiv:1608.08710). bn_scale: size of the batch norm's
    factor behind it (Liu et al. 2017, arXiv:1708.06519), l2 where there is no batch norm. random: the control.
    """
    import numpy as np

    if step.criterion == "random":
        return np.random.default_rng([step.training.seed, order]).random(group.width) + 1e-6
    sides = {member.side for member in group.members}
    side = "norm" if step.criterion == "bn_scale" and "norm" in sides else "out"
    total = np.zeros(group.width)
    for member in group.members:
        if member.side != side:
            continue
        each = _strength(module.get_submodule(member.layer), l1=step.criterion == "l1")
        mine = np.array([sum(each[index] for index in own) for own in member.indices])
        total += mine / max(mine.mean(), 1e-12)
    return total + 1e-9


def _strength(layer: torch.nn.Module, *, l1: bool) -> np.ndarray:
    """Return the size of each output channel's weights."""
    import torch

    weight = layer.weight
    if not isinstance(weight, torch.Tensor):
        raise ModelError(f"{type(layer).__name__} has no weight to judge its channels by")
    values = weight.detach().double()
    if getattr(layer, "transposed", False):
        values = values.transpose(0, 1)
    values = values.flatten(1) if values.ndim > 1 else values[:, None]
    size: np.ndarray = (values.abs().sum(1) if l1 else values.norm(dim=1)).numpy()
    return size


class _Price:
    """What the network costs while channels go: weight sizes times positions, without touching a weight."""

    def __init__(self, module: torch.nn.Module, counts: Mapping[str, int]) -> None:
        layers = dict(module.named_modules())
        self._counts = counts
        self._sizes: dict[str, list[int]] = {}
        for name in counts:
            weight = layers[name].weight
            shape = [int(size) for size in weight.shape]
            rows, columns = (shape[1], shape[0]) if getattr(layers[name], "transposed", False) else (shape[0], shape[1])
            self._sizes[name] = [rows, columns, math.prod(shape) // (rows * columns)]

    def total(self) -> int:
        """Multiply-accumulates of one sample now."""
        return sum(self._counts[name] * math.prod(sizes) for name, sizes in self._sizes.items())

    def cut(self, group: ChannelGroup, channels: Iterable[int], *, sign: int = -1) -> None:
        """Take `channels` of the group away (or, with sign 1, put them back)."""
        channels = list(channels)
        for member in group.members:
            if member.side != "norm" and member.layer in self._sizes:
                axis = 0 if member.side == "out" else 1
                self._sizes[member.layer][axis] += sign * sum(len(member.indices[channel]) for channel in channels)

    def saving(self, group: ChannelGroup, channels: Sequence[int]) -> int:
        """Multiply-accumulates that removing `channels` would save."""
        before = self.total()
        self.cut(group, channels)
        after = self.total()
        self.cut(group, channels, sign=1)
        return before - after


def _choose(
    price: _Price,
    groups: Sequence[ChannelGroup],
    *,
    scores: Mapping[str, np.ndarray],
    goal: int,
    grid: Grid,
) -> tuple[tuple[PruningGroup, ...], int]:
    """Remove chunk after chunk until `goal`; return what goes, and the multiply-accumulates that are left."""
    import numpy as np

    order = {group.layer: np.argsort(scores[group.layer], kind="stable").tolist() for group in groups}
    gone = {group.layer: 0 for group in groups}
    while price.total() > goal:
        best: tuple[float, ChannelGroup, int] | None = None
        for group in groups:
            kept = group.width - gone[group.layer]
            next_width = next((w for w in grid.widths(group.width) if w < kept), None)
            if next_width is None:
                continue
            ranked, start, end = order[group.layer], gone[group.layer], group.width - next_width
            left = scores[group.layer][ranked[start:]].sum()
            loss = math.log(left / scores[group.layer][ranked[end:]].sum())
            rate = loss / max(1, price.saving(group, ranked[start:end]))
            if best is None or rate < best[0]:
                best = (rate, group, end)
        if best is None:
            break
        _, group, end = best
        price.cut(group, order[group.layer][gone[group.layer] : end])
        gone[group.layer] = end
    chosen = tuple(
        PruningGroup(group.layer, group.kind, group.width, tuple(sorted(order[group.layer][: gone[group.layer]])))
        for group in groups
        if gone[group.layer]
    )
    return chosen, price.total()
