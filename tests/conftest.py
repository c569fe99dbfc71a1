"""What all tests share: the rule about skips, two threads at most, and the folder of real data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.needs import DATA, need, pytest_configure, pytest_make_collect_report, pytest_runtest_makereport

__all__ = ["pytest_configure", "pytest_make_collect_report", "pytest_runtest_makereport"]

# Two cores are shared by all workers of pytest-xdist: each with two threads, they would wait for one another.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, 2 // _WORKERS)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first: of two workers, none waits minutes for the other at the end."""
    real, slow = ({item.path for item in items if item.get_closest_marker(name)} for name in ("real", "slow"))
    items.sort(key=lambda item: (item.path not in real & slow, item.path not in slow))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; asking for it skips the test where there is none."""
    need("data")
    return DATA
