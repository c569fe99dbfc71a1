"""Goldens: real inputs with the outputs that a file gives for them, for its bundle and its measurement."""

from __future__ import annotations

from edgeexport import runtimes
from edgeexport.bundles.pack import Example, golden_tolerance
from edgeexport.pipeline.lower import Candidate
from edgeexport.pipeline.road import Road
from edgeexport.records.target import Target
from edgeexport.runtimes.protocol import adapt_feeds

GOLDENS = 3


def examples_of(road: Road, target: Target, *, candidate: Candidate) -> list[Example]:
    """Run a candidate's file on a few calibration samples, in its own signature."""
    lowered, spine = candidate.lowered.record, candidate.rung.spine.record.signature
    session = runtimes.get(target.runtime).open(candidate.path, threads=target.threads, options=lowered.session_options)
    samples = road.prepared("calibration", spine)
    steps = _steps(target, candidate) if candidate.quantized is not None else None
    examples = []
    for index in range(min(GOLDENS, len(samples))):
        feeds = adapt_feeds(samples.feeds(index), spine, to=lowered.signature)
        outputs = session.run(feeds)
        allowed = golden_tolerance(outputs, lowered.signature, tolerance=target.tolerance, steps=steps)
        examples.append(Example(feeds, outputs, allowed))
    return examples


def _steps(target: Target, candidate: Candidate) -> dict[str, float]:
    """Return output name -> size of one quantization step, in the output's own numbers.

    An output that is no quantization point itself carries the steps of what is: elsewhere it may be off by as much as
    int8 is off from float here.
    """
    assert candidate.quantized is not None
    plan = candidate.quantized.record.plan
    points = plan.activations if plan else {}
    errors = {output.output: output.max_abs_error for output in candidate.quantized.record.parity.outputs}
    names = zip(candidate.rung.spine.record.signature.outputs, candidate.lowered.record.signature.outputs, strict=True)
    return {
        own.name: points[given.name].scale
        if given.name in points
        else errors[given.name] / target.tolerance.golden_steps
        for given, own in names
    }
