"""The page of bench records: one HTML file without anything from outside, readable in light and dark.

The rule: everything from a record is escaped by the template engine; only our own SVG goes in as markup.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeexport.records.benchmark import BenchRecord, Entry
from edgeexport.records.emulation import InstructionCounts
from edgeexport.report.bench_plots import bars_plot, launches_plot, time_plot
from edgeexport.report.figures import number

if TYPE_CHECKING:
    from edgeexport.validation.launches import Launch

TEMPLATE = "bench.html.j2"
MOST_NODES = 15


@dataclass(frozen=True)
class Drawn:
    """An entry of a record, its raw launches where they are at hand, and the name of the record's file."""

    record: BenchRecord
    entry: Entry
    launches: Sequence[Launch]
    file: str


def bench_html(drawn: Sequence[Drawn]) -> str:
    """Return the whole page. The same records always give the same text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number}
    source = (importlib.resources.files(__package__) / TEMPLATE).read_text(encoding="utf-8")
    sections = [_section(each) for each in drawn]
    compared = [(each.file, row) for each in _first_of_each(drawn) for row in each.record.compared]
    return environment.from_string(source).render(sections=sections, compared=compared)


def _first_of_each(drawn: Sequence[Drawn]) -> list[Drawn]:
    return [each for index, each in enumerate(drawn) if all(each.record is not other.record for other in drawn[:index])]


def _section(drawn: Drawn) -> dict[str, Any]:
    from markupsafe import Markup

    found, plots = drawn.entry.measurement, []
    if drawn.launches:
        plots += [("Launches", launches_plot(drawn.launches)), ("Over time", time_plot(drawn.launches))]
    if found.memory is not None:
        plots.append(("Memory, in launches of its own", bars_plot(_memory_rows(drawn.entry), title="MB resident")))
    if drawn.entry.counts is not None:
        plots.append(("Instructions", bars_plot(_count_rows(drawn.entry.counts), title="of one inference")))
    if drawn.entry.nodes:
        rows = [
            (f"{node.name} ({node.op})", node.us, f"{number(node.us)} µs") for node in drawn.entry.nodes[:MOST_NODES]
        ]
        title = f"µs of one inference, the {len(rows)} longest of {len(drawn.entry.nodes)} nodes, under the profiler"
        plots.append(("Operators", bars_plot(rows, title=title)))
    return {
        "entry": drawn.entry,
        "found": found,
        "file": drawn.file,
        "record": drawn.record,
        # Markup is right here: the plots escape every text they draw
        "plots": [(title, Markup(plot)) for title, plot in plots],  # noqa: S704
        "rows": _rows(drawn.entry),
        "without_raw": not drawn.launches,
    }


def _count_rows(counts: InstructionCounts) -> list[tuple[str, float, str]]:
    kinds = ("total", "simd", "multiply_accumulate", "dot_product", "loads", "stores")
    values = [(kind.replace("_", " "), getattr(counts, kind)) for kind in kinds]
    return [(name, value, f"{value:,} ({value / counts.total:.1%})") for name, value in values]


def _memory_rows(entry: Entry) -> list[tuple[str, float, str]]:
    memory = entry.measurement.memory
    if memory is None:
        return []
    rows = [
        ("before the model is loaded", memory.before_load_bytes),
        ("after the model is loaded", memory.after_load_bytes),
        ("least peak of the launches", memory.least_peak_bytes),
        (f"peak ({memory.method})", memory.peak_bytes),
        ("share at the end (PSS)", memory.pss_bytes),
        ("private and written to", memory.private_dirty_bytes),
        ("swapped out", memory.swap_bytes),
    ]
    return [(name, value / 1e6, f"{number(value / 1e6)} MB") for name, value in rows if value is not None]


def _rows(entry: Entry) -> list[tuple[str, str]]:
    """Figures and conditions, as rows of name and text."""
    at, latency = entry.measurement.conditions, entry.measurement.latency
    rows = [
        ("device", f"{at.device}, {at.cpu}, {at.cores} cores, {at.arch}"),
        ("runtime", f"{at.runtime} {at.runtime_version} on {at.accelerator or 'cpu'}, threads: {at.threads}"),
        ("processors", ", ".join(map(str, at.affinity)) or "not confined"),
        ("governor", at.governor or "not told"),
        ("inputs", at.inputs or "not told"),
        ("mode", f"{at.mode}, memory arena {'–' if at.arena is None else 'on' if at.arena else 'off'}"),
    ]
    if latency is not None:
        tails = [
            f"p{name} {number(value)} ms" for name, value in (("90", latency.p90_ms), ("99", latency.p99_ms)) if value
        ]
        rows += [
            ("load, first, warm, sustained", _states(entry)),
            ("tails (99 % sure)", ", ".join(tails) or "too few iterations"),
            ("outliers", f"{latency.outliers} of {latency.iterations}, {latency.severe_outliers} far; none left out"),
        ]
    if entry.counts is None:
        rows += _steadiness(entry)
    rails = [f"{rail.name}: {1e3 * rail.j_per_inference:.3g} mJ an inference" for rail in entry.energy.rails]
    rows.append(("energy", "; ".join(rails) or entry.energy.reason))
    if entry.nodes_reason:
        rows.append(("operators", entry.nodes_reason))
    return rows


def _steadiness(entry: Entry) -> list[tuple[str, str]]:
    """How steady the machine was, and whether the figure came out again."""
    drift, before, after = entry.measurement.sentinel_drift, entry.measurement.before, entry.measurement.after
    moved = "not known" if drift is None else f"the fixed workload beside it moved by {100 * drift:.1f} %"
    again = entry.replicable
    rows = [("drift", moved)]
    if before is not None and after is not None and before.thermal_status is not None:
        rows.append(("thermal status", f"{before.thermal_status} before, {after.thermal_status} after (2 slows down)"))
    close = f"{again.tries} tries within {100 * (again.spread or 0):.1f} %"
    return [*rows, ("replicable", f"yes: {close}" if again.state == "holds" else again.reason or "not known")]


def _states(entry: Entry) -> str:
    latency = entry.measurement.latency
    assert latency is not None
    values = (latency.load_ms, latency.first_ms, latency.warm_ms, latency.sustained_ms)
    return " · ".join(f"{number(value)} ms" if value is not None else "–" for value in values)
