from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest

from edgeexport.records.run import RunRecord
from edgeexport.report import html
from edgeexport.report.figures import ladders
from edgeexport.report.plots import ladder_plot
from tests.needs import need
from tests.report.samples import rung, sample_run

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'--><svg/onload=alert(1)>", "</style><b>")
VOID = {"meta", "br", "img"}


class Tags(HTMLParser):
    """Counts elements and attributes, and checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] += 1
        self.found.update(f"@{name}" for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] += 1
        self.found.update(f"@{name}" for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def poisoned(run: RunRecord, text: str) -> RunRecord:
    """The run with `text` in place of every string that is free text."""
    kept = {"status", "form", "state", "split", "claim", "mode", "format", "arch", "method"}

    def walk(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: walk(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [walk(item, key) for item in value]
        links = key in kept or (key == "target" and value is None)
        return value if not isinstance(value, str) or links or not value else text

    tree = msgspec.to_builtins(run)
    return msgspec.convert(walk(tree), RunRecord)


def test_the_page_tells_the_whole_run() -> None:
    text = html(sample_run())
    for part in ("pruned 1 int8 percentile", "every limit holds", "infeasible", "nearest is pruned 1 int8 mse"):
        assert part in text
    for part in ("6.3 points lost", "differs first at layer3.0.relu", "sha256:736f7572", "2 of 361 train"):
        assert part in text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_add_no_element_and_no_attribute(text: str) -> None:
    harmless, hostile = (Tags(html(poisoned(sample_run(), each))) for each in ("a name", text))
    assert hostile.found == harmless.found
    assert hostile.open == []
    assert not any(name.startswith("@on") for name in hostile.found)


def test_names_are_not_run_as_templates() -> None:
    text = html(poisoned(sample_run(), "{{ 7919 * 7919 }}{% if %}"))
    assert "{{ 7919 * 7919 }}{% if %}" in text
    assert str(7919 * 7919) not in text


def test_the_check_for_hostile_names_can_fail() -> None:
    assert Tags(f"<p>{HOSTILE[0]}</p>").found != Tags("<p>a name</p>").found


def test_nothing_is_fetched() -> None:
    text = html(sample_run())
    assert not re.search(r"https?://|src=|href=|url\(|@import|<script|<link", text)
    assert "default-src 'none'" in text


def test_the_same_record_gives_the_same_bytes_in_any_process() -> None:
    code = "import sys; from tests.report.samples import sample_run; from edgeexport.report import html\n"
    code += "sys.stdout.buffer.write(html(sample_run()).encode())"
    words, root = [sys.executable, "-c", code], Path(__file__).parents[2]
    for seed in ("1", "2"):
        run = subprocess.run(words, env={"PYTHONHASHSEED": seed}, cwd=root, capture_output=True, check=True)
        assert run.stdout == html(sample_run()).encode()


def test_a_run_without_targets_or_figures_still_has_a_page() -> None:
    bare = rung("source", 0, value=50.0)
    bare = msgspec.structs.replace(bare, score=None, drop=None)
    text = html(sample_run(rungs=(bare,), targets=(), warnings=(), splits={}))
    assert Tags(text).open == []
    assert Tags(html(sample_run(rungs=(), targets=()))).open == []


def test_plots_are_well_formed_and_hold_every_rung() -> None:
    rows = ladders(sample_run())[0].rows
    tree = ET.fromstring(ladder_plot(rows, metric='a "metric" <&>'))
    titles = [node.text or "" for node in tree.iter("title")]
    assert [title.partition(":")[0] for title in titles] == [row.rung.name for row in rows]


def test_bars_are_as_long_as_their_figures() -> None:
    rows = [row for row in ladders(sample_run())[0].rows if row.shared]
    tree = ET.fromstring(ladder_plot(rows, metric="top1"))
    bars = [float(node.attrib["width"]) for node in tree.iter("rect") if node.attrib["class"] == "bar"]
    sizes = [row.size_mb for row in rows]
    assert [bar / bars[0] for bar in bars] == pytest.approx([size / sizes[0] for size in sizes], abs=0.02)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -3.0, 1e30])
def test_odd_scores_are_drawn_without_a_fault(value: float) -> None:
    odd = rung("odd", 10, value=value)
    for rungs in ((odd,), (rung("source", 10, value=1.0), odd)):
        text = ladder_plot(ladders(sample_run(rungs=rungs, targets=()))[0].rows, metric="m")
        assert 'cx="nan"' not in text
        ET.fromstring(text)


def test_a_browser_renders_it(tmp_path: Path) -> None:
    need("browser")
    import shutil

    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(html(sample_run()), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    words = [browser, *flags, f"--screenshot={picture}", "--window-size=1120,900", page.as_uri()]
    subprocess.run(words, capture_output=True, check=True, timeout=60)
    assert picture.read_bytes().startswith(b"\x89PNG")
