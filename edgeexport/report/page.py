"""The report page: one HTML file without anything from outside, readable in light and dark.

The rule: everything from a record is escaped by the template engine; only our own SVG goes in as markup.
"""

from __future__ import annotations

import importlib.resources
from typing import Any

from edgeexport.records.measurement import Measurement
from edgeexport.records.run import RunRecord
from edgeexport.report.figures import (
    LIMIT_NAMES,
    Ladder,
    classes,
    drop_parts,
    drop_text,
    ladders,
    latency_text,
    limit_figures,
    lineage,
    memory_text,
    number,
    outcome,
    parity_text,
    ratio_text,
    samples,
    score_text,
)
from edgeexport.report.plots import ladder_plot

TEMPLATE = "page.html.j2"
MOST_CLASSES = 60


def html(run: RunRecord) -> str:
    """Return the whole page. The same record always gives the same text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "ratio": ratio_text, "score": score_text, "drop": drop_text}
    environment.filters |= {"short": _short, "parity": parity_text, "latency": latency_text, "memory": memory_text}
    environment.filters["drop_parts"] = drop_parts
    source = (importlib.resources.files(__package__) / TEMPLATE).read_text(encoding="utf-8")
    targets = [_target(run, ladder) for ladder in ladders(run)]
    return environment.from_string(source).render(run=run, targets=targets, samples=samples(run))


def _target(run: RunRecord, ladder: Ladder) -> dict[str, Any]:
    """What the template shows of one target (or of the shared rungs, when there is none)."""
    from markupsafe import Markup

    result = ladder.result
    return {
        "result": result,
        "state": outcome(result) if result is not None else "",
        "rows": ladder.rows,
        # Markup is right here: ladder_plot escapes every text it draws
        "plot": Markup(ladder_plot(ladder.rows, metric=run.metric)),  # noqa: S704
        "limits": [
            (LIMIT_NAMES.get(limit.limit, limit.limit), *limit_figures(limit), limit)
            for limit in (result.verdict.limits if result is not None and result.verdict is not None else ())
        ],
        "tried": [row.rung for row in ladder.rows if row.rung.status in ("rolled back", "not chosen")],
        "notes": [(row.rung.name, note) for row in ladder.rows for note in row.rung.notes],
        "lineage": lineage(run, result.target) if result is not None else [],
        "conditions": _conditions(result.measurement) if result is not None else [],
        "classes": classes(result)[:MOST_CLASSES] if result is not None else [],
    }


def _short(digest: str) -> str:
    """The first twelve hex digits of a digest."""
    return digest.partition(":")[2][:12] or digest[:12]


def _conditions(found: Measurement | None) -> list[tuple[str, str]]:
    """The conditions of a measurement, as rows of name and text."""
    if found is None:
        return []
    at = found.conditions
    rows = [
        ("device", f"{at.device}, {at.cpu}, {at.cores} cores, {at.arch}"),
        ("CPU features", ", ".join(at.features) or "–"),
        ("runtime", f"{at.runtime} {at.runtime_version}, threads: {at.threads}"),
        ("mode", f"{at.mode}; measuring program {_short(at.bench_digest)}"),
    ]
    if found.latency is not None:
        timing = found.latency
        launches = f"{len(timing.launch_medians_ms)} fresh processes, {timing.iterations} iterations each"
        rows.append(("latency", f"median of {launches}; {timing.outliers} outliers"))
        rows.append(("start", f"load {number(timing.load_ms)} ms, first inference {number(timing.first_ms)} ms"))
    if found.sentinel_drift is not None:
        rows.append(("drift", f"the fixed workload beside it moved by {100 * found.sentinel_drift:.1f} %"))
    rows += [("not valid", reason) for reason in found.reasons]
    return rows + [("warning", warning) for warning in found.warnings]
