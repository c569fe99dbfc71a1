"""However a converter ends, the parent says how."""

from __future__ import annotations

import sys

import pytest

from edgeexport.errors import MachineError, ModelError, UnsupportedOperator
from edgeexport.runtimes.litert.process import run_worker


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Run a worker that consists of the given lines."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(code: str, *, seconds: float = 30.0, memory_bytes: int | None = None) -> None:
        (tmp_path / "fake_worker.py").write_text(f"import os, sys\n{code}\n", encoding="utf-8")
        run_worker(tmp_path, "lower", settings={}, seconds=seconds, memory_bytes=memory_bytes, module="fake_worker")

    return run


def test_a_death_by_signal_names_the_signal(worker) -> None:
    with pytest.raises(MachineError, match=r"SIGABRT.*length_error"):
        worker("print('length_error', file=sys.stderr, flush=True); os.abort()")


def test_a_hang_is_stopped(worker) -> None:
    with pytest.raises(MachineError, match="did not finish in 1 s"):
        worker("import time; time.sleep(60)", seconds=1.0)


def test_the_end_of_stderr_enters_the_message(worker) -> None:
    with pytest.raises(ModelError, match="the last word"):
        worker("sys.exit('a first word\\nthe last word')")


def test_a_missing_lowering_is_an_unsupported_operator(worker) -> None:
    with pytest.raises(UnsupportedOperator, match=r"'aten\.linalg_det\.default'$"):
        worker("raise RuntimeError('Lowering not found: aten.linalg_det.default')")


def test_out_of_memory_says_so(worker) -> None:
    with pytest.raises(MachineError, match="needs more than"):
        worker("raise MemoryError")


def test_what_the_converter_prints_stays_inside(worker, capfd) -> None:
    worker("print('noise'); print('more noise', file=sys.stderr)")
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="missing: linux")
def test_the_real_worker_takes_its_memory_limit(tmp_path) -> None:
    spine = tmp_path / "none.onnx"
    with pytest.raises(MachineError):
        run_worker(tmp_path, "lower", settings={"spine": str(spine)}, memory_bytes=30_000_000)
