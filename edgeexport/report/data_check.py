"""A look at calibration samples, for the terminal: what they hold, what is wrong, whether there are enough."""

from __future__ import annotations

from edgeexport.records.data_check import Convergence, DataCheckReport


def data_check_lines(report: DataCheckReport) -> list[str]:
    """Return a report in a few lines, findings first."""
    lines = [f"samples   {report.check.count} of {report.recipe}"]
    lines += [
        f"input     {name}: {facts.low:.4g} to {facts.high:.4g}, mean {facts.mean:.4g}, deviation {facts.std:.4g}"
        for name, facts in report.check.inputs.items()
    ]
    for finding in report.check.findings:
        where = f" ({finding.input})" if finding.input else ""
        which = f": {', '.join(map(str, finding.samples))}{' ...' if finding.count > len(finding.samples) else ''}"
        lines.append(f"{finding.kind}{where}: {finding.text}{which if finding.samples else ''}")
    if not report.check.findings:
        lines.append("nothing is wrong with them")
    lines.append(_settled(report.convergence) if report.convergence else f"ranges    {report.note}")
    return lines


def _settled(found: Convergence) -> str:
    if found.enough is not None:
        return f"ranges    have settled ({found.method}): {found.enough} samples would have done"
    half = found.prefixes[0]
    return (
        f"ranges    have not settled ({found.method}): those of the first {half.count} samples are"
        f" {100 * half.change:.1f} % off on average, {half.worst!r} {100 * half.worst_change:.0f} %; give more samples"
    )
