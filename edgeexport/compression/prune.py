"""Structured pruning: channels, heads and blocks go, by a plan that can be read, stored and applied again.

The rule: judgement is in `plan_pruning`, which changes nothing; `apply_pruning` only carries a plan out. Widths stay
aligned to what the kernels like, and what cannot be proven safe is named in the plan and left alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgeexport.compression import depth
from edgeexport.compression.candidates import Candidates, find_candidates
from edgeexport.compression.channels import Removal, remove
from edgeexport.compression.criteria import importance
from edgeexport.compression.distill import distill
from edgeexport.compression.greedy import Choice, Parts, grids
from edgeexport.compression.heads import HEADS, find_heads
from edgeexport.compression.macs import count_macs, positions
from edgeexport.compression.price import Ledger, Price, macs_price, size_price
from edgeexport.errors import ModelError, OutOfReach
from edgeexport.progress import Progress, silent
from edgeexport.records.pruning import PlannedGoal, PruningPlan
from edgeexport.records.recipe import Distill, Prune
from edgeexport.records.training import TrainingRecord
from edgeexport.training import TrainingData, resolve_loss, train

if TYPE_CHECKING:
    import numpy as np
    import torch

    from edgeexport.compression.criteria import Evidence

    Example = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Means:
    """What a plan is made with besides the network.

    prices: what the goals are counted in; of those left out, multiply-accumulates and size are worked out here, time
    is not: it needs a table. asked: goal -> the most that may be left, in its price's unit; by default what the step
    says of the whole. samples: real inputs, to judge blocks on. evidence: Taylor scores. blocks_first: the share of the
    way, in equal ratios, that blocks go alone, as far as they can; the rest is left to channels and heads alone. 0: all
    compete from the start.
    """

    prices: Sequence[Price] = ()
    asked: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Example] = ()
    evidence: Evidence = field(default_factory=dict)
    blocks_first: float = 0.0


NO_MEANS = Means()


def plan_pruning(
    module: torch.nn.Module,
    example: Example,
    *,
    step: Prune,
    means: Means = NO_MEANS,
    candidates: Candidates | None = None,
    progress: Progress = silent,
) -> PruningPlan:
    """Choose parts to remove until every goal of the step is reached.

    Channels are ranked within their group by `step.criterion`; then, again and again, the part that loses the least
    share of its importance (as -log of what remains) for what it saves of the goal furthest off goes: a group's next
    aligned chunk, or a block, whose loss is how far the outputs move without it.
    Widths become multiples of `round_to`, those of narrower layers multiples of 8. If that cannot reach the goal,
    layers exactly `round_to` wide go by 8 too, and as a last resort all (the plan's `round_to` says so). Output layers
    and `locked` ones stay. candidates: from `find_candidates`, where they are known already.
    Raises RecipeError for an unknown locked layer, ModelError for Taylor scores that are
    missing, OutOfReach naming the most that can be reached.
    """
    if step.criterion == "taylor" and not means.evidence:
        raise ModelError(
            "the criterion `taylor` needs gradients on samples",
            next_step="prune in a recipe's run, which has data.train, or choose another criterion",
        )
    found = candidates or find_candidates(module, example, step=step, progress=progress)
    prices = _prices(module, example, step=step, means=means)
    asked = [_asked(module, example, price=price, step=step, means=means) for price in prices]
    parts = _parts(module, found, example=example, step=step, means=means)
    names, macs = list(positions(module, example)), macs_price(module, example)
    best: tuple[float, ...] = ()
    for grid in grids(step.round_to):
        ledger = Ledger(module, names, prices=[*prices, macs])
        before = ledger.totals
        choice = Choice(ledger, parts, grid=grid, per_layer=step.scope == "per-layer")
        reached = _reached(choice, before[:-1], asked=asked, blocks_first=means.blocks_first)
        best = ledger.totals
        if reached:
            goals = tuple(map(_told, prices, zip(asked, before, best, strict=False)))
            counted = (round(before[-1]), round(best[-1]))
            return PruningPlan(
                step.criterion, grid.round_to, *counted, choice.groups, found.refused, choice.blocks, goals
            )
    raise _out_of_reach(prices, asked, before=before, least=best, refused=found.refused)


def _reached(choice: Choice, before: Sequence[float], *, asked: Sequence[float], blocks_first: float) -> bool:
    """Take parts away until every goal is reached; say whether that was. Multiply-accumulates are only counted."""
    if not blocks_first:
        return choice.reach([*asked, math.inf])
    way = [now * min(goal / max(now, 1e-12), 1.0) ** blocks_first for now, goal in zip(before, asked, strict=True)]
    choice.reach([*way, math.inf], of="blocks")
    return choice.reach([*asked, math.inf], of="channels")


def _prices(module: torch.nn.Module, example: Example, *, step: Prune, means: Means) -> list[Price]:
    """One price for each goal of the step, in order: time, size, multiply-accumulates."""
    given = {price.goal: price for price in means.prices}
    if step.macs is not None:
        given.setdefault("macs", macs_price(module, example))
    if step.max_size_mb is not None and "max_size_mb" not in given:
        given["max_size_mb"] = size_price(module, example, int8=False)
    if step.speedup is not None and "speedup" not in given:
        raise ModelError(
            "`speedup` needs a latency table of the target",
            next_step="prune in a recipe's run, give `target` to edgeexport.prune, or ask for macs",
        )
    wanted = [name for name in ("speedup", "max_size_mb", "macs") if getattr(step, name) is not None]
    return [price for name, price in given.items() if name in wanted]


def _asked(module: torch.nn.Module, example: Example, *, price: Price, step: Prune, means: Means) -> float:
    if price.goal in means.asked:
        return means.asked[price.goal]
    goal = float(getattr(step, price.goal))
    if price.goal == "max_size_mb":
        return goal
    now = Ledger(module, positions(module, example), prices=[price]).totals[0]
    return math.floor(now / goal) if price.goal == "macs" else now / goal


def _told(price: Price, figures: tuple[float, float, float]) -> PlannedGoal:
    asked, before, after = figures
    return PlannedGoal(price.goal, price.unit, price.basis, asked, before, after, price.table)


def _parts(module: torch.nn.Module, found: Candidates, *, example: Example, step: Prune, means: Means) -> Parts:
    scores = {
        group.layer: importance(module, group, step=step, order=order, evidence=means.evidence)
        for order, group in enumerate(found.groups)
    }
    effects = depth.effects(module, found.blocks, samples=means.samples or [example]) if found.blocks else {}
    return Parts(found.groups, scores, found.blocks, effects)


def _out_of_reach(
    prices: Sequence[Price],
    asked: Sequence[float],
    *,
    before: Sequence[float],
    least: Sequence[float],
    refused: Mapping[str, str],
) -> OutOfReach:
    """The error of goals that no grid reaches, told by the one that is furthest off."""
    worst = max(range(len(prices)), key=lambda index: least[index] / max(asked[index], 1e-12))
    price, now, left, goal = prices[worst], before[worst], least[worst], asked[worst]
    ratio, reached = now / max(goal, 1e-12), now / max(left, 1e-12)
    if price.goal == "macs":
        ratio, reached = now / max(goal, 1), now / max(left, 1)
        what = f"{ratio:.2f} times fewer multiply-accumulates ({goal:,.0f} of {now:,.0f})"
        rest = f"{left:,.0f} ({reached:.2f} times)"
    else:
        what = f"{goal:.3g} {price.unit} from {now:.3g} ({ratio:.2f} times less, {price.basis})"
        rest = f"{left:.3g} {price.unit} ({reached:.2f} times less)"
    return OutOfReach(
        f"pruning cannot reach {what}: the parts that may go leave {rest}",
        next_step=_what_holds_back(price, reached, left=left, refused=refused),
    )


def apply_pruning(module: torch.nn.Module, plan: PruningPlan, *, example: Example) -> torch.nn.Module:
    """Carry `plan` out on `module`, in place, and return it (in eval mode).

    Raises ModelError if a layer is not there, is of another kind or width than planned, or if the result does not
    have the multiply-accumulates that the plan says.
    """
    _check_fit(module, plan, example=example)
    flags = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    remove(module, [Removal(g.layer, g.removed, g.kind) for g in plan.groups], example=example)
    depth.skip(module, plan.blocks, example=example)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(flags[name])
    macs = count_macs(module.eval(), example)
    if macs != plan.macs_after:
        raise ModelError(f"the pruned network has {macs:,} multiply-accumulates, the plan says {plan.macs_after:,}")
    return module


def _check_fit(module: torch.nn.Module, plan: PruningPlan, *, example: Example) -> None:
    """Raise ModelError unless the module has every layer of the plan, as it was."""
    layers = dict(module.named_modules())
    asked = any(group.kind == HEADS for group in plan.groups)
    heads = {group.layer: group for group in find_heads(module, example)} if asked else {}
    for group in plan.groups:
        layer = layers.get(group.layer)
        kind = "no such layer" if layer is None else f"{type(layer).__name__} of width {_width(layer)}"
        if group.kind == HEADS and group.layer in heads:
            found = heads[group.layer]
            kind = f"{HEADS} that must stay ({found.blocked})" if found.blocked else f"{HEADS} of width {found.width}"
        if kind != f"{group.kind} of width {group.width}":
            raise ModelError(
                f"the pruning plan does not fit: `{group.layer}` is {kind}, "
                f"the plan says {group.kind} of width {group.width}",
                next_step="apply it to the network it was made for, before any other pruning",
            )


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


def _what_holds_back(price: Price, reached: float, *, left: float, refused: Mapping[str, str]) -> str:
    most = math.floor(reached * 100) / 100
    ask = (
        f"max_size_mb = {left * 1.005:.3g} or more" if price.goal == "max_size_mb" else f"{price.goal} = {most} or less"
    )
    text = f"ask for {ask}" if most > 1 else "leave the prune step out: no part may go"
    return text + "".join(f"; `{name}` stays: {reason}" for name, reason in list(refused.items())[:3])


def _width(layer: torch.nn.Module) -> int:
    width: int = getattr(layer, "out_features", 0) or getattr(layer, "out_channels", 0)
    return width
