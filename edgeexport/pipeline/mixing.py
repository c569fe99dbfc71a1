"""Which layers to leave in float: what each costs when it alone is int8, for what int8 wins there.

The rule: wins are measured where the machine at hand may judge the target, and predicted from multiply-accumulates
elsewhere; the record says which.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from edgeexport import quantization
from edgeexport.pipeline.encoders import first_feeds
from edgeexport.pipeline.forms import PACKAGES
from edgeexport.pipeline.lower import INT8, Candidate, Lane
from edgeexport.pipeline.timing import device_for, lasting
from edgeexport.records.sensitivity import Sensitivity
from edgeexport.workspace import versions

if TYPE_CHECKING:
    from edgeexport.records.plan import QuantizationPlan
    from edgeexport.records.stages import Quantized
    from edgeexport.workspace import Stage

SAMPLES = 16
# Of all that int8 wins, what may be given back: more would hardly be faster than float, and is judged by that anyway.
SHARE = 0.75
LOCAL = "local"


def float_layers(lane: Lane, tried: Candidate) -> list[dict[str, str]]:
    """Return the layers of a static form that could go back to float, worst first: node -> reason, layer by layer."""
    if tried.quantized is None or tried.quantized.record.plan is None:
        return []
    found = _sensitivity(lane, tried, plan=tried.quantized.record.plan, below=tried.quantized)
    order = quantization.choose_float(found, share=SHARE).items()
    return [dict(layer) for _, layer in itertools.groupby(order, key=lambda item: item[1])]


def _sensitivity(lane: Lane, tried: Candidate, *, plan: QuantizationPlan, below: Stage[Quantized]) -> Sensitivity:
    road, spine = lane.road, tried.rung.path
    machine, _ = device_for(lane.target, lane.device)
    here = machine if machine is not None and machine.name == LOCAL and lane.target.runtime == "ort" else None
    options = tried.lowered.record.session_options

    def make(_: Path) -> Sensitivity:
        road.progress(f"find what each layer of {tried.rung.name} costs in int8", 0.0)
        feeds = first_feeds(lane, tried.rung, count=SAMPLES)
        won = (
            None
            if here is None
            else quantization.measured_wins(spine, below.folder / INT8, feeds=feeds[:1], options=options)
        )
        return quantization.sensitivity(spine, plan, samples=feeds, won_ms=won, progress=road.detail)

    key = {
        "form": below.key,
        "measured on": None if here is None else lasting(here.describe()),
        "options": options,
        "samples": SAMPLES,
        "versions": versions(*PACKAGES),
        **road.data_key("calibration"),
    }
    return road.workspace.stage("sensitivity", key=key, make=make, kind=Sensitivity).record
