"""Every emulated Arm CPU, both runtimes, fp32 and int8: real networks compute there what they compute here."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeexport.validation.emulation import validate_emulated
from tests.benchmarks.emulated import TARGETS, cases
from tests.needs import need


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("network", ["digits", "resnet20"])
def test_a_real_network_computes_on_every_emulated_cpu_what_it_does_here(
    network: str, target: str, tmp_path: Path
) -> None:
    for name in ("emulated", "torch", "litert", "data"):
        need(name)
    for case in cases(tmp_path, [network], [target]):
        record = validate_emulated(case.subject, case.target, int8=case.int8)
        assert record.holds, f"{case.name}: {record.reason}"
        assert len(record.runs) == 3
        assert not [note for note in record.notes if "missed" in note]
        counts = {run.device: run.counts for run in record.runs}
        dots = [found.dot_product if found else None for found in counts.values()]
        assert dots[0] == 0
        assert all(dots[1:]) if case.int8 else not any(dots)
        # A runtime three years older may round the last step otherwise than this CPU's kernels: that is told.
        old = [note for note in record.notes if "tflite-runtime" in note and ("agrees" in note or "runs it" in note)]
        assert case.target.runtime == "ort" or old, record.notes
