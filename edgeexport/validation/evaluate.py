"""Evaluate: how good is a model at its task. Predictions once, stored; scores from the stored predictions.

The rule: predicting and scoring are apart, so that a new metric or a paired comparison never runs a model again.
A metric reads the first output ("cosine" the worst of all); `"top1:name"` reads the one called `name`. A part before
the colon that is no built-in metric is a module: `"metrics:f1"` is the function `f1(outputs, targets) -> float` of the
user's metrics.py.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgeexport.errors import CorruptFile, DataError, ModelError, RecipeError
from edgeexport.progress import Progress, silent
from edgeexport.records.verdict import Score
from edgeexport.validation.metrics import METRICS, Function, Metric, first_or_named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgeexport.runtimes.protocol import Feeds, Outputs


class Samples(Protocol):
    """What predictions need of `data.Prepared`."""

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterator[tuple[Feeds, list[Any]]]:
        """Yield feeds of up to `size` samples with their targets."""
        ...


@dataclass(frozen=True)
class Predictions:
    """Outputs of one model over all samples (first axis), and the samples' targets in the same order."""

    outputs: Outputs
    targets: list[Any]


def predictions(
    run: Callable[[Feeds], Outputs], samples: Samples, *, batch: int = 32, progress: Progress = silent
) -> Predictions:
    """Run a model over all samples. `run` takes feeds of up to `batch` samples; 1 for a file of fixed batch 1.

    Raises DataError when there are no samples, ModelError when an output has not one row for each sample.
    """
    import numpy as np

    parts: dict[str, list[NDArray[Any]]] = {}
    targets: list[Any] = []
    for feeds, batch_targets in samples.batches(batch):
        for name, values in run(feeds).items():
            rows_ = np.asarray(values)
            if rows_.ndim == 0 or rows_.shape[0] != len(batch_targets):
                raise ModelError(
                    f"output {name!r} has shape {rows_.shape} for {len(batch_targets)} samples",
                    next_step="the first axis must be the batch; predict with batch 1 if the file's batch is fixed",
                )
            parts.setdefault(name, []).append(rows_)
        targets += batch_targets
        progress("evaluating", len(targets) / max(1, len(samples)))
    if not targets:
        raise DataError("no samples to evaluate on")
    return Predictions({name: np.concatenate(each) for name, each in parts.items()}, targets)


def resolve_metric(metric: Any, folder: Path) -> Metric:
    """Return the metric that a recipe names: a built-in one, "module:function" in `folder`, or a live callable.

    A callable may carry `unit` (str) and `higher_is_better` (bool) as attributes. Raises RecipeError.
    """
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        return _custom(metric, str(getattr(metric, "__name__", "metric")), folder=None)
    if not isinstance(metric, str):
        raise RecipeError(f"`data.metric` is {metric!r}, expected a name or a function")
    name, _, rest = metric.partition(":")
    if name in METRICS:
        return first_or_named(METRICS[name], rest)
    if not rest:
        raise RecipeError(f"no metric {metric!r}", next_step="known: " + ", ".join(METRICS) + ', or "module:function"')
    from edgeexport import data

    function = data.resolve_reference(metric, folder)
    if not callable(function):
        raise RecipeError(f"metric {metric!r} is {type(function).__name__}, expected a function")
    return _custom(function, metric, folder=folder)


def score(
    metric: Metric,
    outputs: Outputs,
    *,
    targets: Sequence[Any] = (),
    reference: Outputs | None = None,
    samples_digest: str = "",
) -> Score:
    """Score stored outputs. reference: the source's outputs on the same samples, for "agreement" and "cosine".

    Raises DataError for targets that do not fit, ModelError for outputs that do not.
    """
    values = per_sample(metric, outputs, targets=targets, reference=reference)
    value = metric.whole(outputs, targets) if values is None else metric.factor * float(values.mean())
    return Score(
        metric=metric.name,
        value=value,
        unit=metric.unit,
        samples=rows(outputs),
        samples_digest=samples_digest,
        higher_is_better=metric.higher_is_better,
        per_class=_per_class(values, targets) if metric.classes else (),
    )


def per_sample(
    metric: Metric, outputs: Outputs, *, targets: Sequence[Any] = (), reference: Outputs | None = None
) -> NDArray[Any] | None:
    """Return one float64 for each sample, whose mean times `metric.factor` is the score; None where none exists."""
    if not metric.label_free and len(targets) != rows(outputs):
        raise DataError(f"{rows(outputs)} predictions, but {len(targets)} targets")
    return metric.each(outputs, targets=targets, reference=reference)


def rows(outputs: Outputs) -> int:
    """Return how many samples stored outputs hold. Raises ModelError when there are none."""
    for values in outputs.values():
        return int(values.shape[0])
    raise ModelError("the model has no outputs to score")


def save_outputs(path: Path, outputs: Outputs) -> None:
    """Write outputs as an .npz whose bytes depend on the values only, into a folder that the caller publishes whole."""
    import zipfile

    import numpy as np

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for index, (name, values) in enumerate(outputs.items()):
            for entry, array in ((f"{index}.npy", values), (f"{index}.name.npy", np.array(name))):
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, np.asarray(array, order="C"), allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(entry), buffer.getvalue())


def load_outputs(path: Path) -> Outputs:
    """Read what `save_outputs` wrote, in the same order. Raises CorruptFile."""
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            count = len(archive.files) // 2
            stored = {str(archive[f"{index}.name"]): archive[str(index)] for index in range(count)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptFile(
            f"{path}: not stored predictions: {error}", next_step="delete it; it is made again"
        ) from error
    if not stored:
        raise CorruptFile(f"{path}: not stored predictions: it holds no outputs")
    return stored


def save_targets(path: Path, targets: Sequence[Any]) -> None:
    """Write targets so that `load_targets` gives equal ones of the same types; write nothing when that cannot be done.

    Numbers of one type, or arrays of one type and shape, can be written. Integers of Python must fit into 64 bits.
    """
    import numpy as np

    kinds = {type(target) for target in targets}
    if len(kinds) != 1:
        return
    kind = kinds.pop()
    if kind in (int, float, bool):
        try:
            save_outputs(path, {kind.__name__: np.array(targets, {int: np.int64, float: np.float64, bool: bool}[kind])})
        except OverflowError:
            return
    elif _stackable(targets, kind):
        save_outputs(path, {"numpy": np.stack(targets)})


def load_targets(path: Path) -> list[Any] | None:
    """Read what `save_targets` wrote; None when it wrote nothing. Raises CorruptFile."""
    if not path.exists():
        return None
    ((name, values),) = load_outputs(path).items()
    return list(values) if name == "numpy" else list(values.tolist())


def _stackable(targets: Sequence[Any], kind: type) -> bool:
    """Whether stacking targets and taking them apart again gives the same: a 0-d array would come back as a number."""
    import numpy as np

    if not issubclass(kind, np.number | np.bool_) and not (kind is np.ndarray and targets[0].ndim):
        return False
    return len({(target.dtype, target.shape) for target in targets}) == 1 and targets[0].dtype.kind in "biufc"


def _custom(function: Function, name: str, *, folder: Path | None) -> Metric:
    from edgeexport.data.userfunction import UserFunction

    return Metric(
        name=name,
        unit=str(getattr(function, "unit", "")),
        higher_is_better=bool(getattr(function, "higher_is_better", True)),
        function=UserFunction(f"the metric {name!r}", function, folder),
    )


def _per_class(values: NDArray[Any] | None, targets: Sequence[Any]) -> tuple[tuple[str, int, float], ...]:
    """Rows of (class, count, points) for samples judged right (1) or wrong (0) against their class."""
    import numpy as np

    if values is None:
        return ()
    labels = np.asarray(targets).astype(np.int64).ravel()
    return tuple(
        (str(label), int((labels == label).sum()), 100.0 * float(values[labels == label].mean()))
        for label in np.unique(labels)
    )
