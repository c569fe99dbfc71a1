"""An inspection for the terminal: the file in a few lines, each target in a few more, its float islands as rows.

The rule: what is a reason stands in full; equal reasons stand once, with the number of nodes they hold for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from edgeexport.records.artifact import TensorSpec
from edgeexport.records.audit import Audit, Island
from edgeexport.records.inspection import Inspection, TargetInspection
from edgeexport.records.target import NumberFormat

MOST_ROWS = 12
_PLACES = {"head": "before the integers", "between": "between integers", "tail": "after the integers"}


def head_lines(inspection: Inspection) -> list[str]:
    """Return what the file is and holds."""
    size = f"{inspection.bytes / 1e6:.3g} MB, {inspection.parameters:,} parameters"
    work = f"{inspection.macs / 1e6:,.1f} M MACs" if inspection.macs is not None else "MACs unknown: free shapes"
    ops = ", ".join(f"{op} {count}" for op, count in inspection.operators.items())
    lines = [
        f"file       {inspection.path}: {inspection.form}, {size}, {work}",
        f"versions   opset {inspection.opset}, IR {inspection.ir_version}: onnxruntime {inspection.floor} or newer",
        f"inputs     {_specs(inspection.inputs)}",
        f"outputs    {_specs(inspection.outputs)}",
        f"operators  {ops}",
    ]
    if inspection.subgraph_nodes:
        lines.append(f"subgraphs  {inspection.subgraph_nodes} nodes inside If, Loop or Scan: those stay in float")
    return lines


def target_lines(found: TargetInspection) -> list[str]:
    """Return what a target makes of the file, but the islands."""
    lines = [f"{found.target} ({found.runtime}, {_format(found.numbers)})"]
    lines += [f"  refused  {text}" for text in found.refused]
    if not found.refused:
        lines.append("  runs     nothing known stands against it")
    if found.basis:
        lines.append(f"  int8     {found.basis}")
    lines += [f"  float    {text}" for text in _grouped(found.kept_float)]
    if found.audit is not None:
        lines += _audit_lines(found.audit)
    return [*lines, *(f"  note     {text}" for text in found.notes)]


def island_rows(found: TargetInspection) -> list[tuple[str, str, str, str]]:
    """Return (nodes, where, cost, cause) of the islands that cost most; a last row says how many are left out."""
    islands = found.audit.lost if found.audit is not None else ()
    rows = [_row(island) for island in islands[:MOST_ROWS]]
    if len(islands) > MOST_ROWS:
        rest = islands[MOST_ROWS:]
        rows.append((f"{len(rest)} more", "", _cost(rest), "--json lists them"))
    return rows


def _audit_lines(audit: Audit) -> list[str]:
    kernels = ", ".join(f"{op} {count}" for op, count in audit.counts.items()) or "none"
    convolutions = f"{audit.integer_convolutions} of {audit.convolutions} convolutions"
    weighted = f"{audit.integer_weighted} of {audit.weighted} weighted operators"
    lines = [f"  fused    {convolutions}, {weighted} in integers: {kernels}"]
    if audit.us is not None:
        lost, extra = (_cost(group) for group in (audit.lost, _edges(audit)))
        lines.append(f"  cost     {audit.us:.0f} µs a run, islands {lost}, the model's own ends {extra}")
    if audit.transposes:
        lines.append(f"  layout   {audit.transposes} Transposes are left between NCHW and NHWC")
    return lines


def _edges(audit: Audit) -> tuple[Island, ...]:
    return tuple(island for island in audit.islands if island.place in {"entry", "exit"})


def _row(island: Island) -> tuple[str, str, str, str]:
    ops = Counter(kernel.op for kernel in island.kernels if kernel.kind == "float")
    what = " ".join(island.origin) or ", ".join(ops) or " ".join(island.tensors)
    where = _PLACES.get(island.place, "one tensor, two points")
    causes = island.causes or ("no known cause: " + ", ".join(f"{op} {count}" for op, count in ops.items()),)
    return what, where, _cost([island]), "\n".join(text.removeprefix(f"{what}: ") for text in causes)


def _cost(islands: Sequence[Island]) -> str:
    if any(island.us is None for island in islands):
        return "–"
    us, share = (sum(getattr(island, name) or 0.0 for island in islands) for name in ("us", "share"))
    return f"{us:.0f} µs, {100 * share:.1f} %"


def _grouped(reasons: Mapping[str, str]) -> list[str]:
    """One line for each reason, with the nodes that it holds for."""
    nodes: dict[str, list[str]] = {}
    for node, reason in reasons.items():
        nodes.setdefault(reason, []).append(node)
    return [f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}: {reason}"
            for reason, names in nodes.items()]  # fmt: skip


def _specs(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in specs)


def _format(numbers: NumberFormat) -> str:
    name = {"uint8": "U8S8", "int8": "S8S8"}[numbers.activations]
    rest = [
        "per channel" if numbers.per_channel else "per tensor",
        *(["7-bit weights"] if numbers.reduce_range else []),
        *(["pairs of weights fit 16-bit sums"] if numbers.fit_pairs else []),
    ]
    return f"int8 as {name}, {', '.join(rest)}"
