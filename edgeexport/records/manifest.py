"""Manifest: the first file in a bundle. It names every other file with its digest, how to use and how to check them."""

from __future__ import annotations

from typing import Any

from edgeexport.records.artifact import Signature
from edgeexport.records.base import Record
from edgeexport.records.measurement import Comparison, Measurement
from edgeexport.records.recipe import Preprocess
from edgeexport.records.target import Target
from edgeexport.records.verdict import Drop, Score, Verdict

FORMAT_VERSION = 1


class FileEntry(Record):
    """One file of the bundle: its digest and its size in bytes."""

    digest: str
    bytes: int


class Ancestor(Record):
    """One step of the lineage, oldest first: what made it, its digest, and its size in bytes."""

    maker: str
    digest: str
    bytes: int
    note: str = ""


class Golden(Record):
    """One stored example: input name -> .npy path, output name -> .npy path, and the largest |difference| allowed."""

    inputs: dict[str, str]
    outputs: dict[str, str]
    tolerance: dict[str, float]


class Manifest(Record):
    """What a bundle is. Published as JSON schema; every field is needed to run the model or to check the claim.

    model: path of the model file in the bundle. floor: oldest runtime version that can load it, as far as known.
    files: every file but manifest.json -> entry. labels: class names in index order, or empty.
    """

    format_version: int
    name: str
    tool_version: str
    target: Target
    runtime: str
    runtime_version: str
    floor: str
    model: str
    model_digest: str
    signature: Signature
    preprocess: Preprocess | None
    labels: tuple[str, ...]
    session_options: dict[str, Any]
    lineage: tuple[Ancestor, ...]
    goldens: tuple[Golden, ...]
    files: dict[str, FileEntry]
    metric: str
    score: Score | None
    source_score: Score | None
    drop: Drop | None
    verdict: Verdict | None
    measurement: Measurement | None
    source_measurement: Measurement | None
    comparison: Comparison | None
    licences: tuple[str, ...] = ()


class Difference(Record):
    """One way in which a bundle is not what was packed: which file or field, what was expected, what is there."""

    what: str
    expected: str
    actual: str


class Verification(Record):
    """The result of verifying a bundle. `checked` and `skipped` list what was and was not done (with the reason)."""

    bundle: str
    holds: bool
    differences: tuple[Difference, ...]
    checked: tuple[str, ...]
    skipped: tuple[str, ...]
