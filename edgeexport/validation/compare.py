"""Compare: how far do two artifacts disagree on the same inputs, and where does it begin.

The rule: a comparison never passes by accident. Missing outputs, other shapes, NaN and Inf fail it by name, and no
samples is an error, not agreement.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from edgeexport.errors import DataError, MissingExtra, ModelError
from edgeexport.records.parity import Divergence, OutputParity, Parity

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

    from edgeexport.runtimes.protocol import Feeds, Outputs

CAP_DB = 200.0
WORST = sys.float_info.max


class _Tally:
    """What is summed up about one output, sample after sample, so that no outputs need to be kept."""

    def __init__(self) -> None:
        self.signal = self.noise = self.other = self.product = 0.0
        self.peak = self.error = 0.0
        self.broken = ""

    def add(self, reference: NDArray[Any], candidate: NDArray[Any]) -> None:
        """Add one pair of equal shape, or remember why it cannot be compared."""
        import numpy as np

        if reference.shape != candidate.shape:
            self.broken = self.broken or f"shape {candidate.shape} instead of {reference.shape}"
            return
        left, right = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
        for values, side in ((left, "reference"), (right, "candidate")):
            bad = int(np.count_nonzero(~np.isfinite(values)))
            if bad:
                self.broken = self.broken or f"{bad} of {values.size} values of the {side} are NaN or Inf"
        if self.broken or not left.size:
            return
        difference = left - right
        self.signal += _inner(left, left)
        self.other += _inner(right, right)
        self.noise += _inner(difference, difference)
        self.product += _inner(left, right)
        self.peak = max(self.peak, float(np.abs(left).max()))
        self.error = max(self.error, float(np.abs(difference).max()))

    def parity(self, output: str) -> OutputParity:
        """Return the figures; the worst there are for an output that cannot be compared."""
        if self.broken:
            return OutputParity(output, max_abs_error=WORST, relative_error=WORST, sqnr_db=-CAP_DB, cosine=-1.0)
        relative = self.error / self.peak if self.peak else (WORST if self.error else 0.0)
        return OutputParity(
            output,
            max_abs_error=min(self.error, WORST),
            relative_error=min(relative, WORST),
            sqnr_db=_decibel(self.signal, self.noise),
            cosine=_cosine(self.signal, self.other, product=self.product),
        )


def compare_outputs(reference: Outputs, candidate: Outputs) -> tuple[OutputParity, ...]:
    """Compare the outputs of one run, name by name.

    sqnr_db = 10 log10(sum reference² / sum difference²), within ±200; cosine is taken over all values of an output.
    An output that is missing, of another shape or not finite has the worst figures (-200 dB, cosine -1).
    """
    return tuple(tally.parity(name) for name, tally in _tallies([(reference, candidate)]).items())


def compare_sessions(
    run_reference: Callable[[Feeds], Outputs],
    run_candidate: Callable[[Feeds], Outputs],
    *,
    samples: Iterable[Feeds],
    artifacts: tuple[str, str],
    float_error: float | None = None,
    sqnr_db: float | None = None,
) -> Parity:
    """Run both on every sample and judge each output over all of them together.

    Both callables take and give the same signature (see `runtimes.adapt_feeds`). artifacts: digests of reference and
    candidate. The gate: relative_error <= float_error and SQNR >= sqnr_db; at least one must be given.
    Raises DataError when there are no samples.
    """
    if float_error is None and sqnr_db is None:
        raise ValueError("a comparison without a tolerance cannot fail: give float_error or sqnr_db")
    count = 0

    def pairs() -> Iterable[tuple[Outputs, Outputs]]:
        nonlocal count
        for feeds in samples:
            count += 1
            yield run_reference(feeds), run_candidate(feeds)

    tallies = _tallies(pairs())
    if not count:
        raise DataError("no samples to compare two artifacts on")
    outputs = tuple(tally.parity(name) for name, tally in tallies.items())
    reasons = [f"output {name!r}: {tally.broken}" for name, tally in tallies.items() if tally.broken]
    reasons += [
        reason
        for parity in outputs
        if not tallies[parity.output].broken
        for reason in _misses(parity, float_error=float_error, sqnr_db=sqnr_db)
    ]
    if not outputs:
        reasons = ["there are no outputs"]
    return Parity(*artifacts, samples=count, outputs=outputs, holds=not reasons, reason="; ".join(reasons))


def first_divergence(
    reference: ModelProto, candidate: ModelProto, *, feeds: Feeds, sqnr_db: float
) -> Divergence | None:
    """Return the first float tensor, in graph order, that differs by more than `sqnr_db` between two ONNX models.

    Tensors are paired by name, so candidate is a rewritten or QDQ form of reference. Both run unoptimized, so that no
    fusion swallows a tensor; a fault that lies in a fused kernel alone is not seen: then, and when all tensors are
    close enough, the answer is None.
    """
    from edgeexport import graph

    there = set(graph.float_tensors(candidate))
    shared = [name for name in graph.float_tensors(reference) if name in there]
    left = _run_exposed(reference, shared, feeds=feeds)
    right = _run_exposed(candidate, shared, feeds=feeds)
    in_order = ((node, name) for node in reference.graph.node for name in node.output)
    for node, name in in_order:
        if name in left and name in right:
            found = _tensor_sqnr(left[name], right[name])
            if found < sqnr_db:
                return Divergence(tensor=name, node=node.name, op=node.op_type, sqnr_db=found)
    return None


def _tallies(pairs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, _Tally]:
    import numpy as np

    tallies: dict[str, _Tally] = {}
    for reference, candidate in pairs:
        for name in [*reference, *(other for other in candidate if other not in reference)]:
            tally = tallies.setdefault(name, _Tally())
            if name not in candidate or name not in reference:
                side = "candidate" if name not in candidate else "reference"
                tally.broken = tally.broken or f"the {side} does not have it"
                continue
            tally.add(np.asarray(reference[name]), np.asarray(candidate[name]))
    return tallies


def _misses(parity: OutputParity, *, float_error: float | None, sqnr_db: float | None) -> list[str]:
    reasons = []
    if float_error is not None and not parity.relative_error <= float_error:
        reasons.append(f"output {parity.output!r}: relative error {parity.relative_error:.3g}, allowed {float_error:g}")
    if sqnr_db is not None and not parity.sqnr_db >= sqnr_db:
        reasons.append(f"output {parity.output!r}: SQNR {parity.sqnr_db:.1f} dB, at least {sqnr_db:g} dB needed")
    return reasons


def _inner(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Inner product by pairwise summation, so that figures do not depend on BLAS or its threads."""
    return float((left * right).sum())


def _decibel(signal: float, noise: float) -> float:
    """SQNR in dB, within ±CAP_DB; equal tensors have the cap, also when both are all zero."""
    if noise == 0.0:
        return CAP_DB
    if signal == 0.0:
        return -CAP_DB
    return max(-CAP_DB, min(CAP_DB, 10.0 * (math.log10(signal) - math.log10(noise))))


def _cosine(left: float, right: float, *, product: float) -> float:
    """Cosine from two squared norms and the inner product; two zero vectors agree, a zero and another do not."""
    if left == 0.0 or right == 0.0:
        return 1.0 if left == right else 0.0
    return max(-1.0, min(1.0, product / (math.sqrt(left) * math.sqrt(right))))


def _tensor_sqnr(reference: NDArray[Any], candidate: NDArray[Any]) -> float:
    """SQNR of an inner tensor. Equal non-finite values are left out: a mask may well hold -Inf."""
    import numpy as np

    if reference.shape != candidate.shape:
        return -CAP_DB
    finite = np.isfinite(reference) & np.isfinite(candidate)
    if not np.array_equal(reference[~finite], candidate[~finite], equal_nan=True):
        return -CAP_DB
    left = reference[finite].astype(np.float64)
    difference = left - candidate[finite].astype(np.float64)
    return _decibel(_inner(left, left), _inner(difference, difference))


def _run_exposed(model: ModelProto, names: list[str], *, feeds: Feeds) -> dict[str, NDArray[Any]]:
    from edgeexport import graph

    try:
        import onnxruntime as ort
    except ModuleNotFoundError as error:
        raise MissingExtra("onnxruntime", extra="export", purpose="finding the first diverging tensor") from error

    exposed = graph.expose(model, names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    missing = {value.name for value in exposed.graph.input} - set(feeds)
    if missing:
        raise ModelError(f"the samples lack the inputs {sorted(missing)} of the model")
    session = ort.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = [value.name for value in session.get_outputs() if value.name in set(names)]
    return dict(zip(wanted, session.run(wanted, feeds), strict=True))
