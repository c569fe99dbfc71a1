"""What the stages of the road publish beside their files: one record per stage, read back instead of doing the work."""

from __future__ import annotations

from typing import Any

from edgeexport.records.artifact import Artifact, Signature
from edgeexport.records.base import Record
from edgeexport.records.measurement import Comparison, Measurement
from edgeexport.records.parity import Parity
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.ranges import Ranges
from edgeexport.records.students import SLACK
from edgeexport.records.verdict import Drop, Score


class Spine(Record):
    """A cleaned fp32 ONNX file. parity: against what it was exported or cleaned from. exporter: the route kept.

    operators: the types of the main graph's nodes, so that a finished run knows them without reading the file.
    """

    artifact: Artifact
    signature: Signature
    exporter: str
    parity: Parity | None
    notes: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()


class ExternalFiles(Record):
    """The files beside an .onnx file that hold tensors of it, named as it names them."""

    locations: tuple[str, ...]


class Quantized(Record):
    """A reduced ONNX file. parity: against the spine.

    ranges, plan: what made a statically quantized file; None for one that takes its ranges at run time, or is float16.
    """

    artifact: Artifact
    ranges: Ranges | None
    plan: QuantizationPlan | None
    parity: Parity
    notes: tuple[str, ...] = ()


class Refined(Record):
    """A spine whose weights were changed to suit a plan, kept beside this record. plan: the one it is quantized by."""

    artifact: Artifact
    plan: QuantizationPlan
    notes: tuple[str, ...] = ()


class Lowered(Record):
    """A file that runs on a target. parity: against the ONNX file it stands for. See `runtimes.protocol.Converted`."""

    artifact: Artifact
    signature: Signature
    session_options: dict[str, Any]
    floor: str
    parity: Parity
    notes: tuple[str, ...] = ()


class Predicted(Record):
    """Outputs of one artifact on one split, kept in `outputs.npz`."""

    artifact: str
    samples: int
    samples_digest: str


class Scored(Record):
    """A score on one split and, except for the source itself, the drop against the source on the same samples."""

    score: Score
    drop: Drop | None


class MetricUnit(Record):
    """The unit of a user's metric, so that a finished run need not ask the user's code again."""

    unit: str


class Timed(Record):
    """Measurements of candidate and source, interleaved, and their latency ratio. reason: why there are none."""

    source: Measurement | None = None
    candidate: Measurement | None = None
    comparison: Comparison | None = None
    reason: str = ""


class PlannedRound(Record):
    """A pruning round before it is retrained.

    timed: beside the network before it, both in the form that ships. bytes: of these files, 0 where none was built.
    faster: whether being faster is asked of it. instructions: millions of an inference before and after, counted on an
    emulated CPU where no device may time it.
    """

    plan: PruningPlan
    timed: Timed
    bytes_before: int = 0
    bytes_after: int = 0
    faster: bool = False
    instructions: tuple[float, float] | None = None

    @property
    def slower(self) -> str:
        """Why the round is not worth retraining; empty where nothing was measured or counted, or faster it is."""
        found = self.timed.comparison
        if not self.faster:
            return ""
        if found is not None:
            told = f"measured at {found.ratio.value:.3f} of the time before: {found.claim}"
            return "" if found.claim == "faster" else told
        if self.instructions is None:
            return ""
        before, after = self.instructions
        told = f"counted at {after / before:.3f} of the instructions before, not {SLACK:.0%} fewer"
        return "" if after < before * (1 - SLACK) else told
