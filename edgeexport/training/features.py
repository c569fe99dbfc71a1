"""Features: what layers inside a student are charged for not saying what layers inside its teacher say.

The rule: layers are paired by the user, or where both networks leave the same resolution (pictures) or in proportion
of depth (encoders). Projections between widths are learnt beside the student and thrown away.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgeexport import ranks
from edgeexport.errors import ModelError, RecipeError
from edgeexport.training.losses import forward, widened
from edgeexport.training.samples import TrainingData

if TYPE_CHECKING:
    import torch

    Seen = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Features:
    """Pairs (student's layer, teacher's layer), what each was last seen to say, and the projections between widths."""

    kind: Literal["hint", "attention"]
    pairs: tuple[tuple[str, str], ...]
    student: Seen
    teacher: Seen
    learned: torch.nn.ModuleList

    def loss(self) -> torch.Tensor:
        """Return the mean over all pairs, of the forward passes just made; then forget them.

        hint: the squared difference after a learnt 1x1 (linear) projection, as a share of the teacher's mean square
        (FitNets, Romero et al. 2015, arXiv:1412.6550). attention: the squared difference of the maps of channel
        energy, each of length 1 (Zagoruyko and Komodakis 2017, arXiv:1612.03928).
        """
        import torch

        values, compare = [], _attention if self.kind == "attention" else _hint
        for (mine, its), project in zip(self.pairs, self.learned, strict=True):
            for role, name, seen in (("student", mine, self.student), ("teacher", its, self.teacher)):
                if name not in seen:
                    raise ModelError(
                        f"the {role}'s layer `{name}` was left out of a training step",
                        next_step="pair layers that always run, or choose a method that looks at outputs alone",
                    )
            given, wanted = _same_resolution(self.student[mine], self.teacher[its].detach())
            values.append(compare(widened(project(given)), widened(wanted)))
        self.student.clear()
        self.teacher.clear()
        return torch.stack(values).mean()


@contextlib.contextmanager
def watched(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    *,
    data: TrainingData,
    kind: Literal["hint", "attention"],
    layers: Mapping[str, str],
) -> Iterator[Features]:
    """Watch pairs of layers for the time of this context. layers: student's name -> teacher's; empty: matched.

    Raises RecipeError for a name that is not there, ModelError where nothing matches or a pair has two resolutions
    that no pooling joins.
    """
    import torch

    said = {"student": _outputs(student, data), "teacher": _outputs(teacher, data)}
    for role, names in (("student", layers.keys()), ("teacher", layers.values())):
        for name in names:
            _check_there(name, said[role], role=role)
    pairs = tuple(layers.items()) or matched(said["student"], said["teacher"])
    if not pairs:
        raise ModelError(
            "no layer of the student has the resolution of one of the teacher's: there is nothing to compare",
            next_step='name pairs, layers = { "student layer" = "teacher layer" }, or choose another method',
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learned = torch.nn.ModuleList(_projection(said["student"][a], said["teacher"][b], kind=kind) for a, b in pairs)
    seen: tuple[Seen, Seen] = ({}, {})
    hooks = [
        *_watch(student, [a for a, _ in pairs], seen=seen[0]),
        *_watch(teacher, [b for _, b in pairs], seen=seen[1]),
    ]
    try:
        yield Features(kind, pairs, *seen, learned)
    finally:
        for hook in hooks:
            hook.remove()


def matched(student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]) -> tuple[tuple[str, str], ...]:
    """Return pairs of layers by what they say, given in the order in which they speak.

    Pictures (n, channels, height, width): the last layer at each resolution that both have. Sequences (n, seq, d): the
    members of the longest lists of layers, in proportion of depth (Jiao et al. 2020, arXiv:1909.10351).
    """
    mine, its = _stage_ends(student), _stage_ends(teacher)
    pairs = [(mine[size], its[size]) for size in mine if size in its]
    if pairs:
        return tuple(pairs)
    short, long = _deepest_list(student), _deepest_list(teacher)
    return tuple((name, long[(index + 1) * len(long) // len(short) - 1]) for index, name in enumerate(short) if long)


def _stage_ends(said: Mapping[str, torch.Tensor]) -> dict[tuple[int, ...], str]:
    found = {tuple(value.shape[2:]): name for name, value in said.items() if value.ndim == 4}
    return {size: name for size, name in found.items() if size[0] * size[1] > 1}


def _deepest_list(said: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the longest run of names that differ in a number at their end and say (n, seq, d)."""
    lists: dict[str, list[str]] = {}
    for name, value in said.items():
        head, _, tail = name.rpartition(".")
        if value.ndim == 3 and tail.isdecimal():
            lists.setdefault(head, []).append(name)
    return max(lists.values(), key=len, default=[])


def _outputs(module: torch.nn.Module, data: TrainingData) -> Seen:
    """Run two samples and return what each layer says, in the order in which they finish."""
    import torch

    seen: Seen = {}
    hooks = _watch(module, [name for name, _ in module.named_modules() if name], seen=seen)
    was_training = module.training
    try:
        with torch.no_grad():
            forward(module.eval(), [torch.from_numpy(array[:2]) for array in data.arrays])
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    return seen


def _watch(module: torch.nn.Module, names: Sequence[str], *, seen: Seen) -> list[Any]:
    import torch

    def hook(name: str) -> Any:
        def note(*flow: Any) -> None:
            output = flow[2][0] if isinstance(flow[2], tuple | list) and flow[2] else flow[2]
            if isinstance(output, torch.Tensor):
                seen.pop(name, None)
                seen[name] = output

        return note

    return [module.get_submodule(name).register_forward_hook(hook(name)) for name in names]


def _check_there(name: str, said: Mapping[str, torch.Tensor], *, role: str) -> None:
    if name not in said:
        close = difflib.get_close_matches(name, said, n=1)
        known = f"did you mean `{close[0]}`?" if close else f"there are: {', '.join(list(said)[:8]) or 'none'}"
        raise RecipeError(f"`distill.layers`: the {role} has no layer `{name}` that returns a tensor", next_step=known)


def _projection(given: torch.Tensor, wanted: torch.Tensor, *, kind: str) -> torch.nn.Module:
    """Return what brings the student's width to the teacher's: nothing where they are equal."""
    import torch

    _same_resolution(given, wanted)
    if kind == "attention" and given.ndim < 3:
        raise ModelError(
            f"a layer says {list(given.shape)}: attention is compared at places of a picture or a sequence",
            next_step='pair layers that say (n, channels, height, width) or (n, seq, d), or choose the method "hint"',
        )
    axis = 1 if given.ndim == 4 else -1
    mine, its = given.shape[axis], wanted.shape[axis]
    if mine == its or kind == "attention":
        return torch.nn.Identity()
    return torch.nn.Conv2d(mine, its, 1, bias=False) if given.ndim == 4 else torch.nn.Linear(mine, its, bias=False)


def _same_resolution(given: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pool the larger of two pictures to the size of the smaller. Raises ModelError for what cannot be compared."""
    if given.ndim == wanted.ndim == 4:
        size = (min(given.shape[2], wanted.shape[2]), min(given.shape[3], wanted.shape[3]))
        return _pooled(given, size), _pooled(wanted, size)
    if given.ndim != wanted.ndim or given.ndim < 2 or given.shape[:-1] != wanted.shape[:-1]:
        raise ModelError(
            f"a student's layer says {list(given.shape)}, the teacher's {list(wanted.shape)}: these cannot be compared",
            next_step="pair layers of the same kind and resolution",
        )
    return given, wanted


def _pooled(value: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    from torch.nn import functional

    pooled: torch.Tensor = functional.adaptive_avg_pool2d(value, size)
    return value if tuple(value.shape[2:]) == size else pooled


def _hint(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The squared difference as a share of the mean square of what is wanted, over the batch of all processes."""
    return (given - wanted).square().mean() / ranks.mean(wanted.square()).clamp_min(1e-12)


def _attention(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    def energy(values: torch.Tensor) -> torch.Tensor:
        return functional.normalize(values.square().mean(1 if values.ndim == 4 else -1).flatten(1), dim=1)

    return (energy(given) - energy(wanted)).square().sum(1).mean()
