"""Which samples train, calibrate, select and evaluate, proven disjoint by digest.

The rule: no sample that is judged on in the end was ever seen before. The digest of a sample's content decides, not its
place or name, so duplicates land on the same side. Where a share is taken, samples are ranked by a seeded hash of their
digest and the lowest ones are taken: the choice depends on the content alone, not on the order of files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgeexport.data.arrays import joint_digest, sample_digest
from edgeexport.data.pictures import Pictures
from edgeexport.data.prepared import Prepared
from edgeexport.data.preprocess import resolve_preprocess
from edgeexport.data.sources import Samples, named_set, open_samples, read_raw, sample_name
from edgeexport.errors import DataError, RecipeError, Unlabelled
from edgeexport.progress import Progress, silent
from edgeexport.records.artifact import Signature
from edgeexport.records.labels import Demand, answers_of, judged_by, learnt_from, must_train
from edgeexport.records.recipe import DataSpec, Recipe
from edgeexport.records.splits import SourceName, Split, SplitIndices, SplitName

_REPORT_EVERY = 500
_FEW = 0.01


class _Source(NamedTuple):
    """An opened source with the digest of every sample, and which of them have no label."""

    name: SourceName
    samples: Samples
    digests: list[str]
    unlabelled: set[int]

    def split(self, indices: Sequence[int]) -> Split:
        """Return the samples at `indices` as a record."""
        digest = joint_digest([self.digests[index] for index in indices])
        return Split(self.name, tuple(indices), digest, len(self.unlabelled.intersection(indices)))


def splits(recipe: Recipe, *, progress: Progress = silent) -> SplitIndices:
    """Read every sample once and decide what each is for.

    With `train` and `evaluate`: selection is `selection_share` of train (at most `selection_max`), calibration a seeded
    sample of the rest, or of its own source. With `pool` (or one source for both): shares of `split`. Train samples
    that are also in evaluate are left out with a warning if they are under 1 %; more is an error, as is any overlap
    between the user's own calibration source and evaluate. Without `train`, the calibration source takes its place.
    With `train` and `pool`: selection and evaluation share the pool as the last two of `split`, so that a source which
    has learnt its training samples by heart is not preferred by the gates.
    """
    data = _check(recipe.data)
    if data.pool is not None and data.train is not None:
        found = _from_both(data, recipe, progress=progress)
    elif data.pool is not None:
        found = _from_pool(data, recipe, progress=progress)
    else:
        found = _from_sources(data, recipe, progress=progress)
    empty = [name for name, count in found.counts().items() if not count and name != "train"]
    if empty:
        raise DataError(f"no samples are left for {', '.join(empty)}: {found.counts()}", next_step="give more samples")
    return found


def open_split(recipe: Recipe, found: SplitIndices, *, name: SplitName, signature: Signature) -> Prepared:
    """Return one split, ready to feed a model with this signature, under the recipe's preprocessing."""
    split = found.get(name)
    return Prepared(_open(split.source, recipe), split.indices, resolve_preprocess(recipe), signature)


def check_labels(recipe: Recipe, found: SplitIndices) -> None:
    """Raise Unlabelled where samples lack the labels that a step learns or the metric judges by.

    And DataError where only some of those that a step trains on have labels.
    """
    train = found.train
    demand = learnt_from(recipe)
    if demand is not None and train.unlabelled:
        raise _unlabelled(recipe, found, name="train", demand=demand)
    if must_train(recipe) and 0 < train.unlabelled < len(train.indices):
        raise DataError(
            f"{_missing(recipe, found, name='train')}, and the others have one",
            next_step="give all of them labels, or none: then a teacher alone teaches",
        )
    judge = judged_by(recipe.data.metric)
    if judge is None or answers_of(recipe.data.metric) is None:  # a metric of the user's may take None for a label
        return
    for name in ("selection", "evaluation"):
        if found.get(name).unlabelled:
            raise _unlabelled(recipe, found, name=name, demand=judge)


def _unlabelled(recipe: Recipe, found: SplitIndices, *, name: SplitName, demand: Demand) -> Unlabelled:
    aside = "; or give `data.pool` beside `data.train`: it is judged on alone"
    step = demand.next_step + (aside if name == "selection" and found.selection.source == "train" else "")
    return Unlabelled(f"{demand.who}, and {_missing(recipe, found, name=name)}", next_step=step)


def _missing(recipe: Recipe, found: SplitIndices, *, name: SplitName) -> str:
    """Say how many samples of a split have no label, and name the first."""
    split, purpose = found.get(name), "training" if name == "train" else name
    samples = open_samples(getattr(_check(recipe.data), split.source), recipe, labelled=False)
    first = next(index for index in split.indices if samples[index][1] is None)
    count = f"{split.unlabelled} of {len(split.indices)} {purpose} samples"
    return f"{count} (`data.{split.source}`) have no label, first {sample_name(samples, first)}"


def _check(data: DataSpec) -> DataSpec:
    """Return the spec with `pool` set where one source stands for all; refuse what cannot be split honestly."""
    import msgspec

    if data.pool is not None and data.evaluate is not None:
        raise RecipeError("`data.pool` is split into what `data.evaluate` would hold", next_step="drop one")
    if data.pool is not None and _same(data.train, data.pool):
        return msgspec.structs.replace(data, train=None)
    if data.pool is None and data.evaluate is None:
        raise RecipeError("`data.evaluate` is missing", next_step="give `evaluate`, or one `pool` for everything")
    if data.pool is None and _same(data.train, data.evaluate):
        return msgspec.structs.replace(data, train=None, evaluate=None, pool=data.train)
    return data


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, str | Path) and isinstance(other, str | Path) and str(one) == str(other))


def _demand(name: SourceName, recipe: Recipe) -> Demand | None:
    """Who needs labels of a source: a step that is taught by it, or the metric that judges on it; None: nobody."""
    data = _check(recipe.data)
    rest: SourceName = "pool" if data.pool is not None else "calibration"
    taught: SourceName = "train" if data.train is not None else rest
    judged = {"pool"} if data.pool is not None else {taught, "evaluate"}
    demand = learnt_from(recipe) if name == taught else None
    return demand or (judged_by(data.metric) if name in judged else None)


def _open(name: SourceName, recipe: Recipe) -> Samples:
    """Open a source of the recipe; where labels are missing, say who needs them."""
    demand = _demand(name, recipe)
    try:
        return open_samples(getattr(_check(recipe.data), name), recipe, labelled=demand is not None)
    except Unlabelled as error:
        if demand is None:
            raise
        raise Unlabelled(f"{demand.who}, and {error}", next_step=f"{demand.next_step} ({error.next_step})") from None


def _own_calibration(data: DataSpec, recipe: Recipe) -> bool:
    """Say whether calibration has samples of its own: not those of another source, not just a preprocessing."""
    if data.calibration is None or any(_same(data.calibration, other) for other in (data.pool, data.train)):
        return False
    named = named_set(data.calibration, recipe)
    return named is None or bool(named[0].source)


def _read(name: SourceName, recipe: Recipe, *, progress: Progress) -> _Source:
    """Open a source and take every sample's digest; a NaN anywhere ends it here, with the sample's name."""
    samples = _open(name, recipe)
    found = _Source(name, samples, [], set())
    for index in range(len(samples)):
        arrays, target = read_raw(samples, index)
        found.digests.append(sample_digest(arrays))
        if target is None:
            found.unlabelled.add(index)
        if index % _REPORT_EVERY == 0:
            progress(f"reading {name} samples", index / len(samples))
    return found


def _rank(digests: set[str], purpose: str) -> list[str]:
    """Put digests into an order that depends on them and on `purpose` (which names the seed), on nothing else."""
    return sorted(digests, key=lambda digest: hashlib.sha256(f"{purpose}:{digest}".encode()).digest())


def _calibrate(source: _Source, candidates: Sequence[int], *, data: DataSpec) -> Split:
    """Take a seeded sample of the candidates, duplicates left out, in the source's order."""
    places = {source.digests[index]: index for index in reversed(candidates)}
    chosen = _rank(set(places), f"calibrate {data.seed}")[: data.calibration_count]
    return source.split(sorted(places[digest] for digest in chosen))


def _among(source: _Source, digests: set[str]) -> list[int]:
    return [index for index, digest in enumerate(source.digests) if digest in digests]


def _from_pool(data: DataSpec, recipe: Recipe, *, progress: Progress) -> SplitIndices:
    pool = _read("pool", recipe, progress=progress)
    ranked = _rank(set(pool.digests), f"split {data.seed}")
    ends = [round(sum(data.split[:count]) * len(ranked)) for count in (1, 2, 3)]
    first, selection = set(ranked[: ends[0]]), set(ranked[ends[0] : ends[1]])
    evaluation = set(ranked[ends[1] : ends[2]])
    train = _among(pool, first)
    calibration = _calibrate(pool, train, data=data)
    warnings: list[str] = []
    if _own_calibration(data, recipe):
        own = _read("calibration", recipe, progress=progress)
        _refuse_overlap(own, pool, judged=evaluation)
        calibration, warnings = _calibrate_own(own, selection, data=data)
    return SplitIndices(
        train=pool.split(train),
        calibration=calibration,
        selection=pool.split(_among(pool, selection)),
        evaluation=pool.split(_among(pool, evaluation)),
        warnings=tuple(warnings),
    )


def _from_sources(data: DataSpec, recipe: Recipe, *, progress: Progress) -> SplitIndices:
    evaluate = _read("evaluate", recipe, progress=progress)
    own = _read("calibration", recipe, progress=progress) if _own_calibration(data, recipe) else None
    judged = set(evaluate.digests)
    if own is not None:
        _refuse_overlap(own, evaluate, judged=judged)
    if data.train is None and own is None:
        raise RecipeError("nothing to calibrate and select on", next_step="give `data.train`, or `pool` for everything")
    base = own if data.train is None and own is not None else _read("train", recipe, progress=progress)
    _check_classes(base, evaluate)
    warnings = _drop_overlap(base, evaluate)
    clean = set(base.digests) - judged
    count = min(max(1, round(data.selection_share * len(clean))), data.selection_max)
    selection = set(_rank(clean, f"split {data.seed}")[:count])
    rest = _among(base, clean - selection)
    calibration = _calibrate(base, rest, data=data)
    if own is not None and own is not base:
        calibration, more = _calibrate_own(own, selection, data=data)
        warnings += more
    return SplitIndices(
        train=base.split(rest),
        calibration=calibration,
        selection=base.split(_among(base, selection)),
        evaluation=evaluate.split(range(len(evaluate.digests))),
        warnings=tuple(warnings),
    )


def _from_both(data: DataSpec, recipe: Recipe, *, progress: Progress) -> SplitIndices:
    train = _read("train", recipe, progress=progress)
    pool = _read("pool", recipe, progress=progress)
    _check_classes(train, pool)
    warnings = _drop_overlap(train, pool)
    ranked = _rank(set(pool.digests), f"split {data.seed}")
    share = data.split[1] / (data.split[1] + data.split[2])
    count = min(round(share * len(ranked)), data.selection_max)
    selection, evaluation = set(ranked[:count]), set(ranked[count:])
    rest = _among(train, set(train.digests) - set(pool.digests))
    calibration = _calibrate(train, rest, data=data)
    if _own_calibration(data, recipe):
        own = _read("calibration", recipe, progress=progress)
        _refuse_overlap(own, pool, judged=evaluation)
        calibration, more = _calibrate_own(own, selection, data=data)
        warnings += more
    return SplitIndices(
        train=train.split(rest),
        calibration=calibration,
        selection=pool.split(_among(pool, selection)),
        evaluation=pool.split(_among(pool, evaluation)),
        warnings=tuple(warnings),
    )


def _calibrate_own(own: _Source, selection: set[str], *, data: DataSpec) -> tuple[Split, list[str]]:
    """Take calibration samples from their own source, without those that selection judges on."""
    free = _among(own, set(own.digests) - selection)
    left = len(own.digests) - len(free)
    warnings = [f"{left} calibration samples are also in the selection split and were left out"] if left else []
    return _calibrate(own, free, data=data), warnings


def _pairs(one: _Source, other: _Source, *, shared: set[str]) -> str:
    """Name up to three overlapping samples on both sides."""
    named = []
    for left in _among(one, shared)[:3]:
        right = other.digests.index(one.digests[left])
        names = sample_name(one.samples, left), sample_name(other.samples, right)
        named.append(f"{one.name}[{left}] ({names[0]}) = {other.name}[{right}] ({names[1]})")
    return "; ".join(named)


def _refuse_overlap(own: _Source, other: _Source, *, judged: set[str]) -> None:
    shared = set(own.digests) & judged
    if shared:
        raise DataError(
            f"{len(shared)} calibration samples are also evaluation samples: {_pairs(own, other, shared=shared)}",
            next_step="calibrate on samples that are not evaluated",
        )


def _drop_overlap(train: _Source, evaluate: _Source) -> list[str]:
    """Return a warning for a few train samples that are also evaluated; raise when there are many."""
    shared = set(train.digests) & set(evaluate.digests)
    if not shared:
        return []
    count = len(_among(train, shared))
    message = f"{count} of {len(train.digests)} {train.name} samples are also evaluation samples"
    if count >= _FEW * len(train.digests):
        raise DataError(
            f"{message}: {_pairs(train, evaluate, shared=shared)}",
            next_step="give disjoint sources, or one `pool` to be split",
        )
    return [f"{message} and were left out: {_pairs(train, evaluate, shared=shared)}"]


def _check_classes(train: _Source, evaluate: _Source) -> None:
    """Class folders are numbered by the alphabet in each source, so both must have the same ones."""
    one, other = train.samples, evaluate.samples
    if train.name != "train" or not isinstance(one, Pictures) or not isinstance(other, Pictures) or not one.classes:
        return
    if one.classes != other.classes:
        odd = sorted(set(one.classes) ^ set(other.classes))
        raise DataError(
            f"train has {len(one.classes)} classes, evaluate {len(other.classes)}; only one has {', '.join(odd[:5])}",
            next_step="list all classes in a file and name it in `data.classes`",
        )
