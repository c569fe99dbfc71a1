from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from edgeexport.records.base import from_json
from edgeexport.records.emulation import EmulatedRun, EmulationRecord
from edgeexport.records.run import RunRecord
from edgeexport.records.verdict import Drop, Score
from edgeexport.report import ladder_table, to_json, verdict_lines
from edgeexport.report.figures import (
    drop_text,
    ladders,
    latency_text,
    lineage,
    number,
    samples,
    score_span,
    score_text,
)
from tests.report.samples import rung, sample_run


def printed(run: RunRecord, width: int = 160) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(ladder_table(run, width))
    return stream.getvalue()


def test_reasons_are_lines_below_the_table_and_never_in_it() -> None:
    assert "6.3 points lost" not in printed(sample_run())
    lines = verdict_lines(sample_run())
    assert lines[0] == "  rolled back  pruned 2: 6.3 points lost on the selection split, 1 allowed"
    after = lines.index("x86-64-vnni: ships pruned 1 int8 percentile, top1 97.90 % (source 98.30 %); every limit holds")
    assert lines[after + 1].startswith("  rolled back  pruned 1 int8 minmax: int8 differs from float: 6.1 dB")


@pytest.mark.parametrize("width", [80, 100, 120, 140])
def test_every_rung_is_one_line_that_fits(width: int) -> None:
    rows = printed(sample_run(), width).rstrip().splitlines()
    assert max(map(len, rows)) <= width
    folds = 2 if width == 80 else 0  # "pruned 1 int8 percentile", twice: beside six figures there is no room for it
    sections, blanks, heads, notes = 3, 4, 1, 1
    assert len(rows) == len(sample_run().rungs) + sections + blanks + heads + notes + folds


@pytest.mark.parametrize(("width", "left_out"), [(80, ("memory", "95 %")), (100, ("95 %",)), (140, ())])
def test_narrow_tables_leave_columns_out(width: int, left_out: tuple[str, ...]) -> None:
    head = printed(sample_run(), width).splitlines()[0]
    assert [part for part in ("memory", "95 %") if part not in head] == list(left_out)
    assert all(part in head for part in ("rung", "drop", "size MB", "latency ms", "status"))


def test_the_sections_of_a_table_line_up() -> None:
    rows = [row.rstrip() for row in printed(sample_run()).splitlines()]
    head = rows[0].index("status")
    assert {row.rindex("  ") + 2 for row in rows if row.endswith("shipped")} == {head}
    assert "rolled back" in {row[head:].strip() for row in rows}


def test_the_table_says_which_samples_its_scores_are_on() -> None:
    assert "360 selection samples; verdicts below: 1078 others" in printed(sample_run())


def test_the_table_shows_shared_rungs_once_and_a_section_for_each_target() -> None:
    text = printed(sample_run())
    assert text.count("distilled") == 1
    assert [text.index(name) for name in ("x86-64-vnni (ort)", "raspberry-pi-5 (ort)", "phone (litert)")] == sorted(
        text.index(name) for name in ("x86-64-vnni (ort)", "raspberry-pi-5 (ort)", "phone (litert)")
    )
    assert "0.0920 (13×)" in text
    assert "0.112 (2.8×)" in text


def test_what_was_not_measured_on_a_target_is_unproven() -> None:
    rows = ladders(sample_run())[1].rows
    assert [latency_text(row) for row in rows[-3:]] == ["unproven", "–", "unproven"]
    assert latency_text(rows[0]) == "–"


def test_an_invalid_measurement_gives_no_figure() -> None:
    run = sample_run()
    broken = [
        msgspec.structs.replace(each, measurement=msgspec.structs.replace(each.measurement, valid=False))
        if each.measurement
        else each
        for each in run.rungs
    ]
    row = ladders(sample_run(rungs=tuple(broken)))[0].rows[-1]
    assert (row.latency, row.memory_mb, latency_text(row)) == (None, None, "unproven")


def test_markup_in_names_is_not_read_as_markup() -> None:
    run = sample_run(rungs=(rung("[red]x[/red] [bold", 10, value=50.0),), targets=())
    assert "[red]x[/red] [bold" in printed(run)


def test_sizes_are_against_the_source_in_the_targets_own_format() -> None:
    rows = ladders(sample_run())[0].rows
    assert rows[-1].size_ratio == pytest.approx(1_204_000 / 92_000)
    assert rows[1].size_ratio == pytest.approx(1_210_000 / 402_000)


def test_verdict_lines_name_every_limit_and_the_nearest_miss() -> None:
    lines = verdict_lines(sample_run())
    assert "x86-64-vnni: ships pruned 1 int8 percentile, top1 97.90 % (source 98.30 %); every limit holds" in lines
    assert "  holds     not larger than fp32: 0.0920 MB of 1.204 MB" in lines
    assert "  holds     not slower than fp32: 0.390× its time (bound 0.390×)" in lines
    assert "  holds     accuracy lost: 0.400 (bound 0.920, allowed 1)" in lines
    assert any(line.startswith("  unproven  not slower than fp32") and "aarch64" in line for line in lines)
    assert any(line.startswith("phone: infeasible") and "1.4 lost" in line for line in lines)
    assert lines[-1].startswith("warning: 2 of 361")


def test_json_is_the_record_itself() -> None:
    run = sample_run()
    assert from_json(to_json(run).encode(), RunRecord, origin="x") == run


def test_lineage_goes_from_the_source_over_what_stands_to_what_ships() -> None:
    names = [name for name, _, _ in lineage(sample_run(), "x86-64-vnni")]
    assert names == ["source", "distilled", "pruned 1", "between", "pruned 1 int8 percentile"]
    assert lineage(sample_run(), "phone") == []


def test_lineage_follows_digests_before_names() -> None:
    source = rung("source", 10, value=50.0)
    shipped = rung("other", 5, value=50.0, target="t", status="shipped", parent=source.artifact.digest)
    run = sample_run(rungs=(source, rung("pruned", 8, value=50.0), shipped))
    assert [name for name, _, _ in lineage(run, "t")] == ["source", "other"]


def test_splits_come_in_the_order_of_the_road() -> None:
    run = sample_run(splits={"evaluation": 4, "other": 5, "selection": 3, "train": 1})
    assert [name for name, _, _ in samples(run)] == ["train", "selection", "evaluation", "other"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1.00"), (0.0123, "0.0123"), (1234567.0, "1234567"), (1e-9, "1e-09"), (None, "–")],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_scores_and_drops_read_in_their_units() -> None:
    assert score_text(Score("top1", 83.2, "points", 10, "")) == "83.20 %"
    assert score_text(Score("mse", 0.01234, "", 10, "")) == "0.01234"
    assert score_text(Score("mse", 1.8e-5, "", 10, "")) == "1.8e-05"
    assert drop_text(Drop(-0.001, -0.002, 0.003, 0.0, "bootstrap", 10)) == "-0.0010 [-0.0020, 0.0030]"
    assert drop_text(Drop(-0.0, -0.2, 0.3, 0.0, "bootstrap", 10)) == "0.00 [-0.20, 0.30]"


@pytest.mark.parametrize(("higher", "expected"), [(True, (8.0, 11.0)), (False, (9.0, 12.0))])
def test_the_interval_of_a_score_is_that_of_its_drop(higher: bool, expected: tuple[float, float]) -> None:
    span = score_span(Score("m", 10.0, "", 5, "", higher_is_better=higher), Drop(1.0, 0.0, 3.0, 2.0, "bootstrap", 5))
    assert span is not None
    assert (span.low, span.high) == expected


def test_what_emulated_cpus_made_of_the_file_stands_below_its_verdict() -> None:
    run = sample_run()
    runs = (EmulatedRun("emulated:armv8.2", "cortex-a76", "1.32.0", holds=True),)
    record = EmulationRecord("x86-64-vnni", "sha256:a", holds=True, runs=runs)
    absent = EmulationRecord("x86-64-vnni", "sha256:a", holds=True, notes=("not validated under emulation",))
    for emulation, line in (
        (record, "  emulated  emulated:armv8.2: agrees with this machine"),
        (absent, "  emulated  not validated under emulation"),
    ):
        rungs = tuple(
            msgspec.structs.replace(each, emulation=emulation) if each.status == "shipped" else each
            for each in run.rungs
        )
        assert line in verdict_lines(msgspec.structs.replace(run, rungs=rungs))
    assert not [line for line in verdict_lines(run) if "emulated" in line]
