"""A training for integers that is killed goes on where it was, and ends in the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeexport.quantization.qat import Lesson, train_quantized
from edgeexport.records.base import to_json
from edgeexport.records.plan import QuantizationPlan
from edgeexport.records.recipe import Tuning
from edgeexport.training import unfinished
from tests.quantization.nets import FORMATS, small_mobilenet
from tests.quantization.qat.making import noise, planned

Seen = Callable[[int], None]
pytestmark = pytest.mark.faults
STEPS, KILLED_AT = 9, 6
SETTINGS = Tuning(steps=STEPS, batch_size=16)
KILLED = f"""
import os, signal, sys
import torch
from pathlib import Path
from edgeexport.quantization.qat import Lesson
from edgeexport.training import unfinished
from tests.quantization.qat import test_resumed

torch.set_num_threads(1)
unfinished.SAVE_SECONDS = unfinished.SAVE_RATIO = 0.0


def killing(calls):
    if calls == {KILLED_AT}:
        os.kill(os.getpid(), signal.SIGKILL)


path, plan, state = (Path(each) for each in sys.argv[1:])
test_resumed.taught(path, plan, path.with_name("never.onnx"), state=state, seen=killing)
"""


def taught(path: Path, plan: Path, out: Path, *, state: Path | None, seen: Seen | None = None) -> list[int]:
    """Train with learnt steps; return the numbers of the batches that were taken."""
    from edgeexport.records.base import from_json

    calls: list[int] = []

    def augment(batch: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        calls.append(len(calls) + 1)
        if seen is not None:
            seen(len(calls))
        return batch + generator.standard_normal(batch.shape).astype(np.float32) / 8

    plain = noise(32)
    data = type(plain)(plain.arrays, augment=augment)
    numbers = from_json(plan.read_bytes(), QuantizationPlan, origin=str(plan))
    train_quantized(path, numbers, data=data, out=out, lesson=Lesson(SETTINGS, learn_steps=True, state=state))
    return calls


def test_a_killed_training_for_integers_ends_in_the_same_bytes(tmp_path: Path) -> None:
    path, plan, state = small_mobilenet(tmp_path / "net.onnx"), tmp_path / "plan.json", tmp_path / "state"
    plan.write_bytes(to_json(planned(path, FORMATS["per-channel"])))
    command = [sys.executable, "-c", KILLED, str(path), str(plan), str(state)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (state / unfinished.NAME).is_file()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed = taught(path, plan, tmp_path / "resumed.onnx", state=state)
        whole = taught(path, plan, tmp_path / "whole.onnx", state=None)
    finally:
        torch.set_num_threads(threads)
    assert (len(resumed), len(whole)) == (STEPS - (KILLED_AT - 1), STEPS)
    assert (tmp_path / "resumed.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
