"""Pack what ships for a target: model, goldens run on real samples, records, report; then verify the file it made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeexport import __version__, data, runtimes
from edgeexport.bundles.pack import Parts, pack
from edgeexport.bundles.verify import verify
from edgeexport.errors import CheckFailed
from edgeexport.pipeline.goldens import examples_of
from edgeexport.pipeline.lower import Candidate
from edgeexport.pipeline.road import Road
from edgeexport.pipeline.ship import Choice, result
from edgeexport.records.artifact import Artifact
from edgeexport.records.base import digest, file_digest
from edgeexport.records.manifest import FORMAT_VERSION, Ancestor, Manifest
from edgeexport.records.run import RunRecord, TargetResult
from edgeexport.records.target import Target
from edgeexport.workspace import publish

if TYPE_CHECKING:
    from collections.abc import Iterator


def bundle_name(target: str) -> str:
    """Return the file name of a target's bundle."""
    return f"{target}.bundle"


def packed(road: Road, target: Target, *, choice: Choice, record: RunRecord, out: Path) -> TargetResult:
    """Write `<target>.bundle` into `out` when something ships; return the target's result with the bundle's name.

    The bundle holds the part of the run record that concerns its target, and a report drawn from it.
    """
    if choice.shipped is None:
        return result(choice, target, bundle=None, bundle_bytes=None)
    name = bundle_name(target.name)
    shipped = choice.shipped
    own = _own_record(record, target)

    def make(folder: Path) -> Manifest:
        from edgeexport.report import html

        road.progress(f"pack {name}", None)
        draft = _draft(road, target, choice=choice, shipped=shipped)
        examples = examples_of(road, target, candidate=shipped)
        plan = shipped.quantized.record.plan if shipped.quantized else None
        records = {"run": own} | ({"plan": plan} if plan else {})
        manifest = pack(folder / name, draft, parts=Parts(shipped.path, examples, records, html(own)))
        check = verify(folder / name)
        if not check.holds:
            raise CheckFailed(f"{name} does not verify: {'; '.join(d.what for d in check.differences)}")
        return manifest

    key = {
        "lowered": shipped.lowered.key,
        "record": digest(own),
        "splits": road.splits_key,
        "labels": list(data.class_names(road.recipe)),
        **road.data_key("calibration"),
    }
    stage = road.workspace.stage("pack", key=key, make=make, kind=Manifest)
    final = out / name
    if not final.is_file() or file_digest(final) != file_digest(stage.folder / name):
        publish(final, (stage.folder / name).read_bytes())
    return result(choice, target, bundle=name, bundle_bytes=final.stat().st_size)


def _own_record(record: RunRecord, target: Target) -> RunRecord:
    """The part of a run that concerns one target."""
    rungs = tuple(rung for rung in record.rungs if rung.target in (None, target.name))
    targets = tuple(row for row in record.targets if row.target == target.name)
    return msgspec.structs.replace(record, rungs=rungs, targets=targets)


def _draft(road: Road, target: Target, *, choice: Choice, shipped: Candidate) -> Manifest:
    lowered = shipped.lowered.record
    figures = result(choice, target, bundle=None, bundle_bytes=None)
    return Manifest(
        format_version=FORMAT_VERSION,
        name=road.recipe.name,
        tool_version=__version__,
        target=target,
        runtime=target.runtime,
        runtime_version=runtimes.get(target.runtime).version(),
        floor=lowered.floor,
        model="",
        model_digest="",
        signature=lowered.signature,
        preprocess=road.preprocess,
        labels=data.class_names(road.recipe),
        session_options=lowered.session_options,
        lineage=tuple(_lineage(shipped)),
        goldens=(),
        files={},
        metric=figures.score.metric if figures.score else "",
        score=figures.score,
        source_score=figures.source_score,
        drop=figures.drop,
        verdict=figures.verdict,
        measurement=figures.measurement,
        source_measurement=figures.source_measurement,
        comparison=figures.comparison,
        licences=tuple(filter(None, [road.recipe.model.licence])),
    )


def _lineage(shipped: Candidate) -> Iterator[Ancestor]:
    """Yield what the shipped file was made from, oldest first."""
    rung = shipped.rung
    artifacts: list[tuple[Artifact, str]] = []
    if rung.weights is not None:
        artifacts.append((rung.weights.record.artifact, rung.name))
    artifacts += [(artifact, "") for artifact in shipped.before]
    artifacts.append((rung.spine.record.artifact, rung.spine.record.exporter))
    if shipped.quantized is not None:
        ranges = shipped.quantized.record.ranges
        artifacts.append((shipped.quantized.record.artifact, f"ranges: {ranges.method}" if ranges else ""))
    artifacts.append((shipped.lowered.record.artifact, ""))
    parent = artifacts[0][0].parent
    if parent:
        yield Ancestor("parent", parent, 0)
    for artifact, note in artifacts:
        yield Ancestor(artifact.maker, artifact.digest, artifact.bytes, note)
