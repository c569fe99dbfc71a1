"""What a user sees: progress on stderr, records on stdout as a table or as JSON.

The rule: this module decides how things look, never what they are. Without a terminal, progress is one line per step.
A reader that goes away ends the talk, not the work.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

import click

from edgeexport.records.base import to_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID
    from rich.table import Table

    from edgeexport.records.benchmark import BenchRecord, Entry, Gated, Tuning
    from edgeexport.records.data_check import DataCheckReport
    from edgeexport.records.device import Reachability
    from edgeexport.records.inspection import Inspection
    from edgeexport.records.manifest import Verification
    from edgeexport.records.run import RunRecord
    from edgeexport.records.shrink import ShrinkRecord
    from edgeexport.records.target import Target

PIPE_WIDTH = 120
QUIET_SECONDS = 10.0


class Display:
    """A progress callback that draws a bar on a terminal; elsewhere it prints a line per step, and few more.

    A text is "step" or "step: detail"; one that begins with a colon is a detail of the step told last. Without a
    terminal a detail is printed only when nothing was for ten seconds, so that a log shows that work goes on.
    Once nobody reads stderr any more, it goes on silently.
    """

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = _console(stderr=True)
        self._live = self._console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._step = ""
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._progress.stop()

    def __call__(self, text: str, fraction: float | None = None) -> None:
        """Show `text` and the fraction done."""
        step, _, detail = (part.strip() for part in f"{text} ".partition(": "))
        step = step or self._step
        text = f"{step}: {detail}" if detail else step
        if step != self._step:
            self._step = step
            self._announce(step)
        elif not self._live and detail and time.monotonic() - self._said >= QUIET_SECONDS:
            self._say(text)
        if self._live and self._task is not None:
            total = None if fraction is None else 1.0
            self._progress.update(self._task, description=text, completed=fraction or 0.0, total=total)

    def _announce(self, step: str) -> None:
        self._say(step)
        if not self._live:
            return
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(step, total=None)

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        line = f"{self._said - self._began:6.1f} s  {text}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=not self._live)


def console() -> Console:
    """Return the console for stdout; wide enough for every column when stdout is no terminal."""
    out = _console()
    return out if out.is_terminal else _console(width=max(out.width, PIPE_WIDTH))


def _console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Return a console that goes on silently when its reader is gone; rich itself would end the process."""
    from rich.console import Console

    class Patient(Console):
        def on_broken_pipe(self) -> None:
            silence(sys.stderr if self.stderr else sys.stdout)

    return Patient(stderr=stderr, width=width)


def silence(stream: TextIO) -> None:
    """Let all that is still written to a stream whose reader is gone vanish, what it holds in its buffer included."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def printing() -> Iterator[None]:
    """Print results: all of it reaches stdout before this ends, or vanishes because nobody reads it any more."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)


@printing()
def show_run(record: RunRecord, out: Path, *, as_json: bool) -> None:
    """Show the ladder and the verdicts, and where the bundles and the report are."""
    if as_json:
        _print_json(record)
        return
    from edgeexport.report import ladder_table, verdict_lines

    screen = console()
    screen.print(ladder_table(record, screen.width))
    screen.print()
    for line in verdict_lines(record):
        _print_line(screen, line)
    for result in record.targets:
        if result.bundle:
            screen.print(f"bundle  {out / result.bundle}", highlight=False, markup=False, soft_wrap=True)
    screen.print(f"report  {out / 'report.html'}", highlight=False, markup=False, soft_wrap=True)


@printing()
def show_shrink(record: ShrinkRecord, out: Path, *, as_json: bool) -> None:
    """Show every student of a search, what was found or why nothing was, and what the road made of it."""
    if as_json:
        _print_json(record)
        return
    from edgeexport.report.shrink import HEADER, shrink_lines, trial_rows

    screen = console()
    if rows := trial_rows(record):
        screen.print(_table(HEADER, rows))
        screen.print()
    for line in shrink_lines(record):
        _print_line(screen, line)
    if record.run is not None:
        screen.print()
        show_run(record.run, out, as_json=False)
    if record.recipe_file:
        screen.print(f"recipe  {out / record.recipe_file}", highlight=False, markup=False, soft_wrap=True)
    screen.print(f"search  {out / 'shrink.html'}", highlight=False, markup=False, soft_wrap=True)


def _print_line(screen: Console, line: str) -> None:
    """Print one line; on a terminal that is too narrow, what is left of it goes on indented."""
    folded = textwrap.wrap(line, screen.width, subsequent_indent=" " * 4) if screen.is_terminal else [line]
    for part in folded:
        screen.print(part, highlight=False, markup=False, soft_wrap=True)


@printing()
def show_verification(verification: Verification, *, as_json: bool) -> None:
    """Show what was checked, what was skipped and why, and every difference."""
    if as_json:
        _print_json(verification)
        return
    for item in verification.checked:
        click.echo(f"checked  {item}")
    for item in verification.skipped:
        click.echo(f"skipped  {item}")
    for difference in verification.differences:
        click.echo(f"differs  {difference.what}: expected {difference.expected}, found {difference.actual}")
    if verification.holds:
        click.echo(f"holds    {verification.bundle} is what was packed")


@printing()
def show_targets(targets: Sequence[Target], *, as_json: bool) -> None:
    """Show targets as a table: where, runtime, file format, numbers, default limits."""
    if as_json:
        _print_json(list(targets))
        return
    rows = [(t.name, t.title, t.runtime, f".{t.format}", t.arch, _numbers(t)) for t in targets]
    console().print(_table(("target", "what it is", "runtime", "file", "CPU", "int8"), rows))


def _numbers(target: Target) -> str:
    numbers = target.numbers()
    name = {"uint8": "U8S8", "int8": "S8S8"}[numbers.activations]
    more = {"7-bit weights": numbers.reduce_range, "fitted pairs": numbers.fit_pairs}
    return ", ".join([name, *(words for words, given in more.items() if given)])


@printing()
def show_devices(found: Sequence[Reachability], *, as_json: bool) -> None:
    """Show devices as a table: name, whether it answers, and what it is or why it does not."""
    if as_json:
        _print_json(list(found))
        return
    rows = [(each.device, "reachable" if each.reachable else "not reachable", each.reason) for each in found]
    console().print(_table(("device", "state", "what it is, or why not"), rows))


@printing()
def show_explanation(values: Mapping[str, Mapping[str, Any]], *, as_json: bool) -> None:
    """Show every value in force, section by section."""
    if as_json:
        _print_json(values)
        return
    from edgeexport.records.recipe_text import toml_value

    for section, entries in values.items():
        click.echo(f"[{section}]")
        for key, value in entries.items():
            click.echo(f"{key} = {toml_value(_flat(value))}" if value is not None else f"# {key} is not set")
        click.echo()


def _flat(value: Any) -> Any:
    """A text in one line; anything else as it is."""
    return " ".join(value.split()) if isinstance(value, str) else value


@printing()
def show_diagnosis(diagnosis: Mapping[str, Any], *, as_json: bool) -> None:
    """Show what this machine can do, and the commands that add the rest."""
    if as_json:
        _print_json(diagnosis)
        return
    click.echo(f"machine  {diagnosis['machine']}")
    rows = [(row["what"], row["state"], row["next"]) for row in diagnosis["abilities"]]
    console().print(_table(("ability", "state", "what adds it"), rows))


@printing()
def show_inspection(inspection: Inspection, *, as_json: bool) -> None:
    """Show what a file holds, then target by target what will not run, what does not fuse, and what it costs."""
    if as_json:
        _print_json(inspection)
        return
    from edgeexport.report.inspection import head_lines, island_rows, target_lines

    screen = console()
    for line in head_lines(inspection):
        _print_line(screen, line)
    for found in inspection.targets:
        screen.print()
        for line in target_lines(found):
            _print_line(screen, line)
        if rows := island_rows(found):
            screen.print(_table(("float island", "where", "cost", "cause"), rows))


@printing()
def show_data_check(report: DataCheckReport, *, as_json: bool) -> None:
    """Show what is wrong with calibration samples, and whether there are enough."""
    if as_json:
        _print_json(report)
        return
    from edgeexport.report.data_check import data_check_lines

    for line in data_check_lines(report):
        _print_line(console(), line)


@printing()
def show_bench(record: BenchRecord, gated: Sequence[Gated], *, as_json: bool) -> None:
    """Show each model's figures, how it compares with the first, and what the gate says."""
    if as_json:
        _print_json({"record": record, "gated": gated} if gated else record)
        return
    timed = [_bench_row(entry) for entry in record.entries if not _is_emulated(entry)]
    counted = [_count_row(entry) for entry in record.entries if _is_emulated(entry)]
    if timed:
        header = ("model", "device", "ms [95 %]", "p90", "load ms", "first ms", "peak MB", "status")
        console().print(_table(header, timed))
    if counted:
        kinds = ("instructions", "SIMD", "multiply-add", "dot products", "loads", "stores")
        console().print(_table(("model", "device", *kinds, "status"), counted))
    for each in record.compared:
        ratio = each.comparison.ratio
        between = f" [{ratio.low:.3g}, {ratio.high:.3g}]" if ratio.low is not None and ratio.high is not None else ""
        click.echo(f"{each.candidate} takes {ratio.value:.3g}{between} of {each.baseline}: {each.comparison.claim}")
    for entry in record.entries:
        for line in entry.throughput:
            rate = f"{line.samples_per_second:.4g} samples a second"
            click.echo(f"{entry.measurement.label}: {line.threads} threads, batch {line.batch}: {rate}")
        for text in (*entry.measurement.reasons, *entry.measurement.warnings):
            click.echo(f"{entry.measurement.label}: {text}", err=True)
    for figure in gated:
        told = f"{figure.state:9} {figure.label}: {figure.what} {figure.ratio.value:.3g} times that of the record"
        click.echo(f"{told}{'; ' if figure.reason else ''}{figure.reason}")


def _bench_row(entry: Entry) -> Sequence[str]:
    from edgeexport.records.benchmark import NOT_FOR_TARGET

    found = entry.measurement
    if found.latency is None:
        return found.label, entry.device, "–", "–", "–", "–", "–", "invalid: " + "; ".join(found.reasons)
    at, tail = found.latency.median_ms, found.latency.p90_ms
    between = f" [{at.low:.4g}, {at.high:.4g}]" if at.low is not None and at.high is not None else ""
    peak = f"{found.memory.peak_bytes / 1e6:.1f}" if found.memory is not None else "–"
    times = f"{found.latency.load_ms:.3g}", f"{found.latency.first_ms:.3g}"
    shown = f"{at.value:.4g}{between}", f"{tail:.4g}" if tail is not None else "–"
    doubts = [text for text in found.warnings if text.startswith(NOT_FOR_TARGET)]
    doubts += [entry.replicable.reason] if entry.replicable.state == "fails" else []
    status = "; ".join(["valid", *doubts])
    return found.label, entry.device, *shown, *times, peak, status


def _is_emulated(entry: Entry) -> bool:
    return entry.device.startswith("emulated:")


def _count_row(entry: Entry) -> Sequence[str]:
    label, counts = entry.measurement.label, entry.counts
    if counts is None:
        return label, entry.device, *"––––––", "invalid: " + "; ".join(entry.measurement.reasons)
    kinds = (counts.simd, counts.multiply_accumulate, counts.dot_product, counts.loads, counts.stores)
    return label, entry.device, f"{counts.total:,}", *(f"{count / counts.total:.1%}" for count in kinds), "valid"


@printing()
def show_tuning(tuning: Tuning, *, as_json: bool) -> None:
    """Show what was tried, what was kept, and the new bundle."""
    if as_json:
        _print_json(tuning)
        return
    rows = []
    for trial in tuning.trials:
        ratio = "–" if trial.ratio is None else f"{trial.ratio.value:.3g}"
        told = "kept" if trial.kept else trial.claim or f"invalid: {trial.reason}"
        rows.append((trial.setting, trial.value, ratio, told))
    console().print(_table(("setting", "value", "time, as a share", "result"), rows))
    click.echo(f"bundle  {tuning.out}" if tuning.changed else "nothing is faster than the bundle's own settings")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _print_json(record: object) -> None:
    sys.stdout.write(to_json(record).decode())
