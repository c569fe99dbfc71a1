"""Candidates: the parts of a network that may go, each proven, and the reason for every other one.

The rule: proofs are taken together first and halved where they fail, so that a network of hundreds of groups takes few.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeexport.compression import depth
from edgeexport.compression.channels import ChannelGroup, Removal, disproof, find_groups
from edgeexport.compression.greedy import FINE, grids
from edgeexport.compression.heads import find_heads
from edgeexport.errors import RecipeError
from edgeexport.progress import Progress, silent
from edgeexport.records.recipe import Prune

if TYPE_CHECKING:
    import numpy as np
    import torch

    Example = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Candidates:
    """What may go, proven safe, and name -> reason for the rest."""

    groups: tuple[ChannelGroup, ...]
    blocks: tuple[depth.Block, ...]
    refused: dict[str, str]


def find_candidates(
    module: torch.nn.Module, example: Example, *, step: Prune, progress: Progress = silent
) -> Candidates:
    """Return the parts proven safe to remove, and name -> reason for the others. Too narrow ones are in neither.

    Raises RecipeError for an unknown locked layer.
    """
    _check_locked(module, step.locked)
    locked = _with_insides(module, step.locked)
    groups: list[ChannelGroup] = []
    attentions = find_heads(module, example, locked=locked)
    if "width" in step.parts:
        projections = {each.layer for group in attentions for each in group.members if each.side == "out"}
        groups += [group for group in find_groups(module, example, locked=locked) if group.layer not in projections]
    groups += attentions if "heads" in step.parts else []
    blocks = depth.find_blocks(module, example, locked=locked) if "depth" in step.parts else []
    refused = {group.layer: group.blocked for group in groups if group.blocked}
    refused |= {block.name: block.blocked for block in blocks if block.blocked}
    safe, unsafe = _proven(module, example, groups=groups, step=step, progress=progress)
    standing = tuple(block for block in blocks if not block.blocked)
    return Candidates(tuple(safe), standing, refused | unsafe)


def _check_locked(module: torch.nn.Module, locked: Sequence[str]) -> None:
    names = [name for name, _ in module.named_modules() if name]
    for name in locked:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise RecipeError(
                f"locked layer `{name}` is not in the model",
                next_step=f"did you mean `{close[0]}`?" if close else f"its layers: {', '.join(names[:8])}, ...",
            )


def _with_insides(module: torch.nn.Module, locked: Sequence[str]) -> tuple[str, ...]:
    """Return the locked names, and those of all layers inside them."""
    inside = tuple(f"{name}." for name in locked)
    return tuple(name for name, _ in module.named_modules() if name in locked or name.startswith(inside))


def _proven(
    module: torch.nn.Module,
    example: Example,
    *,
    groups: Sequence[ChannelGroup],
    step: Prune,
    progress: Progress,
) -> tuple[list[ChannelGroup], dict[str, str]]:
    free = [group for group in groups if not group.blocked and grids(step.round_to)[-1].widths(group)]
    refused: dict[str, str] = {}

    def prove(candidates: Sequence[ChannelGroup]) -> str:
        progress(f"proving {len(candidates)} channel groups", None)
        return disproof(
            module, example, removals=[Removal(group.layer, _probe(group), group.kind) for group in candidates]
        )

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
