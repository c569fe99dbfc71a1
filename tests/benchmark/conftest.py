"""A short mode for tests that really measure, and records made by hand for those that need not."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeexport.validation.measure import PLANS, Plan
from tests.device_bench.tiny import dense_model
from tests.needs import need


@pytest.fixture
def short_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode `brief` with short launches."""
    plan = Plan(6, 5, 0.0, 64, 0.0, cap_seconds=30, most=6, memory_launches=1)
    monkeypatch.setitem(PLANS, "brief", plan)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    need("ort")
    return dense_model(tmp_path / "m.onnx", 2, width=128)
