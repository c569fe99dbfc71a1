"""What all tests share: the rule about skips, two threads at most, and the folder of real data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.needs import DATA, need, pytest_configure, pytest_make_collect_report, pytest_runtest_makereport

__all__ = ["pytest_configure", "pytest_make_collect_report", "pytest_runtest_makereport"]

os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; asking for it skips the test where there is none."""
    need("data")
    return DATA
