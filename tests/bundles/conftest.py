"""The tiny bundle, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bundles.making import make
from tests.needs import need


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("ort")
    return make(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def content(tiny: Path) -> bytes:
    return tiny.read_bytes()
