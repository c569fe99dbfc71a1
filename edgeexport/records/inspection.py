"""Inspection: what an .onnx file holds, and for each target what will not run there, not fuse there, and why."""

from __future__ import annotations

from typing import Literal

from edgeexport.records.artifact import TensorSpec
from edgeexport.records.audit import Audit
from edgeexport.records.base import Record
from edgeexport.records.target import NumberFormat

# int8: with QuantizeLinear and DequantizeLinear around float operators, or written with integer operators.
Form = Literal["float", "int8", "dynamic int8"]


class TargetInspection(Record):
    """A file on one target. refused: what will not run there, a sentence each.

    numbers: how int8 is written there. kept_float: nodes that int8 would leave in float, name -> reason. notes: what
    had to be changed before, and what is not known. audit: of the file if it is int8, else of a trial whose ranges
    `basis` names; None when there is none, and `notes` say why. Nodes of a trial are called as a run's cleaning calls
    them.
    """

    target: str
    runtime: str
    numbers: NumberFormat
    refused: tuple[str, ...] = ()
    kept_float: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    basis: str = ""
    audit: Audit | None = None


class Inspection(Record):
    """One file. parameters: stored float or weight values; macs: of one sample, None when shapes are not known.

    subgraph_nodes: nodes inside If, Loop and Scan, which nothing here quantizes. floor: the oldest onnxruntime that
    loads it.
    """

    path: str
    digest: str
    bytes: int
    form: Form
    opset: int
    ir_version: int
    floor: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: dict[str, int]
    parameters: int
    macs: int | None
    subgraph_nodes: int = 0
    targets: tuple[TargetInspection, ...] = ()
