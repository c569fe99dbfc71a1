"""The rule about skips is itself tested by what it must reject."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import ROOT

GONE = "import pytest\nfrom tests import needs\nneeds.NEEDS['strace'] = lambda: False\n"
SPECIMENS = {
    "need": GONE + "def test_a():\n    needs.need('strace')\n",
    "module": GONE + "needs.need('strace')\ndef test_a(): pass\n",
    "plain": "import pytest\ndef test_a():\n    pytest.skip('no time')\n",
    "mark": "import pytest\n@pytest.mark.skipif(True, reason='tired')\ndef test_a(): pass\n",
    "importorskip": "import pytest\npytest.importorskip('nowhere_to_be_found')\ndef test_a(): pass\n",
    "fixture": GONE + "@pytest.fixture\ndef f():\n    needs.need('strace')\ndef test_a(f): pass\n",
}


def _outcome(folder: Path, kind: str, required: str) -> tuple[int, str]:
    (folder / "test_specimen.py").write_text(SPECIMENS[kind])
    command = [sys.executable, "-m", "pytest", "-p", "tests.needs", "-p", "no:cacheprovider", "-q", "test_specimen.py"]
    environment = {**os.environ, "EDGEEXPORT_REQUIRE": required, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["need", "fixture", "plain"])
def test_a_missing_thing_skips_when_nothing_is_required(tmp_path: Path, kind: str) -> None:
    code, text = _outcome(tmp_path, kind, "")
    assert code == 0, text
    assert "1 skipped" in text


@pytest.mark.parametrize("kind", SPECIMENS)
def test_a_skip_fails_when_its_need_is_required_or_unnamed(tmp_path: Path, kind: str) -> None:
    code, text = _outcome(tmp_path, kind, "data,strace")
    assert code in (1, 2), text
    assert "EDGEEXPORT_REQUIRE" in text


def test_a_need_that_is_not_required_may_still_skip(tmp_path: Path) -> None:
    code, text = _outcome(tmp_path, "need", "data")
    assert code == 0, text


def test_a_misspelt_requirement_is_refused(tmp_path: Path) -> None:
    code, text = _outcome(tmp_path, "need", "strase")
    assert code == 4, text
    assert "strase" in text
