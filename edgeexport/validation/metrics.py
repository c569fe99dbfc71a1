"""Metrics: one small function each, outputs and targets in, one number for each sample out.

The rule: all metrics stand in the table METRICS; nothing registers itself.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeexport.errors import DataError, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgeexport.runtimes.protocol import Outputs

SHOWN = 80
Function: TypeAlias = "Callable[[dict[str, Any], list[Any]], float]"
Each: TypeAlias = "Callable[[NDArray[Any], Any], NDArray[Any]]"


@dataclass(frozen=True)
class Metric:
    """What a score means.

    each_function: (output, targets) -> one value for each sample, where a metric has those; label_free metrics get the
        source's output in place of targets.
    function: (outputs, targets) -> float, for user metrics. Neither: the area under the ROC curve.
    factor: from the mean of the samples to the score (100 for points). binary: samples are right (1) or wrong (0).
    classes: targets are class indices, so that it can be told per class. output: which output, None for the first,
        or for the worst of all where `worst_output` says so.
    """

    name: str
    unit: str
    higher_is_better: bool = True
    factor: float = 1.0
    binary: bool = False
    classes: bool = False
    label_free: bool = False
    each_function: Each | None = None
    function: Function | None = None
    output: str | None = None
    worst_output: bool = False

    def pick(self, outputs: Outputs) -> NDArray[Any]:
        """Return the output this metric reads. Raises ModelError naming the outputs there are."""
        if self.output is None:
            return next(iter(outputs.values()))
        if self.output not in outputs:
            raise ModelError(f"metric {self.name!r}: no output {self.output!r}; there are {sorted(outputs)}")
        return outputs[self.output]

    def each(
        self, outputs: Outputs, *, targets: Sequence[Any], reference: Outputs | None = None
    ) -> NDArray[Any] | None:
        """Return one value for each sample, or None for a metric of all samples together."""
        if self.each_function is None:
            return None
        if not self.label_free:
            return self.each_function(self.pick(outputs), targets)
        if reference is None:
            raise DataError(f"metric {self.name!r} compares with the source's outputs, and there are none")
        if not self.worst_output or self.output is not None:
            return self.each_function(self.pick(outputs), self.pick(reference))
        import numpy as np

        values = [self.each_function(values, reference[name]) for name, values in outputs.items()]
        return np.asarray(np.min(values, axis=0))

    def whole(self, outputs: Outputs, targets: Sequence[Any]) -> float:
        """Return the score over all samples together. Raises ModelError for a user metric that is not a number."""
        if self.function is None:
            scores, labels = auc_inputs(self.pick(outputs), targets)
            return self.factor * float(placements(scores, labels)[0].mean())
        found: Any = self.function(dict(outputs), list(targets))
        value = found.item() if getattr(found, "ndim", None) == 0 else found
        if isinstance(value, numbers.Real) and math.isfinite(value):
            return float(value)
        said = f"{type(value).__name__} {value!r}"[:SHOWN]
        where = getattr(self.function, "where", f"metric {self.name!r}")
        raise ModelError(f"{where} returned {said}, expected a finite number")


def first_or_named(metric: Metric, output: str) -> Metric:
    """Return `metric` reading the output called `output`, or the first one when the name is empty."""
    return dataclasses.replace(metric, name=f"{metric.name}:{output}", output=output) if output else metric


def top_k(k: int) -> Each:
    """Return the metric function: 1 if the target is among the k largest scores, else 0.

    Among equal scores the lower class index ranks first, as argmax has it. A row with NaN or Inf counts as wrong.
    """

    def each(output: NDArray[Any], targets: Any) -> NDArray[Any]:
        import numpy as np

        scores = class_scores(output)
        labels = class_labels(targets, scores.shape[1])
        own = np.take_along_axis(scores, labels[:, None], axis=1)
        earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
        rank = (scores > own).sum(axis=1) + ((scores == own) & earlier).sum(axis=1)
        return np.asarray((rank < k) & np.isfinite(scores).all(axis=1), dtype=np.float64)

    return each


def agreement(output: NDArray[Any], reference: NDArray[Any]) -> NDArray[Any]:
    """1 where the largest score is at the same class as the source's, else 0."""
    import numpy as np

    scores, source = class_scores(output), class_scores(reference)
    same = scores.argmax(axis=1) == source.argmax(axis=1)
    return np.asarray(same & np.isfinite(scores).all(axis=1), dtype=np.float64)


NOISE = 1e-6  # about eight steps of float32 at 1.0, the scale of what a network computes with


def cosine(output: NDArray[Any], reference: NDArray[Any]) -> NDArray[Any]:
    """Cosine between a sample's output and the source's, flattened.

    Both have NOISE added as a direction of their own that they share: two outputs of nothing but float32 noise agree,
    as do two zero vectors, and outputs of ordinary size do not feel it.
    """
    import numpy as np

    left, right = _flat(output, "cosine"), _flat(reference, "cosine")
    if left.shape != right.shape:
        raise ModelError(f"metric 'cosine': outputs of shape {output.shape} against the source's {reference.shape}")
    noise = left.shape[1] * NOISE**2
    norms = np.sqrt(((left**2).sum(axis=1) + noise) * ((right**2).sum(axis=1) + noise))
    return np.asarray(((left * right).sum(axis=1) + noise) / norms)


def error_of(power: int) -> Each:
    """Return the metric function: mean of |output - target| ** power over a sample's values."""

    def each(output: NDArray[Any], targets: Any) -> NDArray[Any]:
        import numpy as np

        values = _flat(output, "mse or mae")
        wanted = np.stack([_numbers(target, index, count=values.shape[1]) for index, target in enumerate(targets)])
        if not np.isfinite(wanted).all():
            raise DataError(f"the target of sample {int(np.argmin(np.isfinite(wanted).all(axis=1)))} is NaN or Inf")
        return np.asarray((np.abs(values - wanted) ** power).mean(axis=1))

    return each


def _numbers(target: Any, index: int, *, count: int) -> NDArray[Any]:
    import numpy as np

    try:
        found = np.asarray(target, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        said = f"{type(target).__name__} {target!r}"[:SHOWN]
        raise DataError(f"the target of sample {index} is {said}, expected {count} number(s)") from error
    if found.size != count:
        raise DataError(f"targets have {found.size} values a sample, the output has {count} (sample {index})")
    return found


def class_scores(output: NDArray[Any]) -> NDArray[Any]:
    """Return (samples, classes) scores; trailing axes of length 1 are dropped. Raises ModelError for other shapes."""
    if output.ndim < 2 or output.size != output.shape[0] * output.shape[1] or output.shape[1] < 2:
        raise ModelError(
            f"an output of shape {output.shape} holds no class scores (samples, classes)",
            next_step='choose the output ("top1:name") or another metric',
        )
    return output.reshape(output.shape[:2])


def class_labels(targets: Sequence[Any], classes: int) -> NDArray[Any]:
    """Return targets as int64 class indices. Raises DataError for one that is no index below `classes`."""
    import numpy as np

    try:
        values = np.asarray(targets)
    except ValueError as error:
        raise DataError(f"targets must be class indices, found values of several shapes ({error})") from error
    if values.dtype.kind not in "iub" or values.size != len(targets):
        raise DataError(f"targets must be class indices, found {type(targets[0]).__name__} {targets[0]!r}")
    labels = values.astype(np.int64).ravel()
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(f"sample {wrong[0]} has class {labels[wrong[0]]}, the output has {classes} classes")
    return labels


def auc_inputs(output: NDArray[Any], targets: Sequence[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (scores, labels 0/1) for binary data; of two columns the score is the second minus the first."""
    import numpy as np

    columns = _flat(output, "auc")
    if columns.shape[1] > 2:
        raise ModelError(f"metric 'auc' needs one score (or two) a sample, the output has shape {output.shape}")
    labels = class_labels(targets, 2)
    if not 0 < labels.sum() < labels.size:
        raise DataError(f"metric 'auc' needs samples of both classes, all {labels.size} are of class {labels[0]}")
    scores = columns[:, 0] if columns.shape[1] == 1 else columns[:, 1] - columns[:, 0]
    return np.asarray(scores), labels


def placements(scores: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (share of negatives below each positive, share of positives above each negative), ties half.

    The mean of either is the area under the ROC curve (Mann and Whitney 1947); together they are the structural
    components of DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988).
    """
    import numpy as np

    positive, negative = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])

    def share_below(values: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
        both = np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")
        return both / (2.0 * others.size)

    return share_below(scores[labels == 1], negative), 1.0 - share_below(scores[labels == 0], positive)


def _flat(output: NDArray[Any], metric: str) -> NDArray[Any]:
    import numpy as np

    values = output.reshape(output.shape[0], -1).astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if wrong.size:
        raise ModelError(f"metric {metric!r}: {wrong.size} predictions are NaN or Inf, first that of sample {wrong[0]}")
    return values


METRICS: Mapping[str, Metric] = MappingProxyType({
    "top1": Metric("top1", "points", factor=100.0, binary=True, classes=True, each_function=top_k(1)),
    "top5": Metric("top5", "points", factor=100.0, binary=True, classes=True, each_function=top_k(5)),
    "auc": Metric("auc", "points", factor=100.0),
    "mse": Metric("mse", "", higher_is_better=False, each_function=error_of(2)),
    "mae": Metric("mae", "", higher_is_better=False, each_function=error_of(1)),
    "agreement": Metric(
        "agreement", "points", factor=100.0, binary=True, label_free=True, each_function=agreement
    ),
    "cosine": Metric(
        "cosine", "points", factor=100.0, label_free=True, each_function=cosine, worst_output=True
    ),
})  # fmt: skip
