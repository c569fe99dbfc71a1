"""Trainings that go on beside each other, each in a process of one thread that computes nothing else."""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

THREADS = 1
SIDES = 2


def sides() -> ProcessPoolExecutor:
    """Return a pool of SIDES processes."""
    return ProcessPoolExecutor(SIDES, get_context("spawn"), initializer=_begin)


def results(pending: list[Future[Any]]) -> list[Any]:
    """Return what each side returned; why one failed is said at once: the others may have long to go."""
    for side in pending:
        side.add_done_callback(_blame)
    return [side.result() for side in pending]


def _begin() -> None:
    """Compute in one thread, and end with the process that started this one: one left behind holds its workspace."""
    torch.set_num_threads(THREADS)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _blame(side: Future[Any]) -> None:
    if (error := side.exception()) is not None:
        sys.stderr.write(f"failed: {error}\n")
