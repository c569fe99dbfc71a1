"""TrainingRecord: what a training did, without wall time, so that the same training has the same record."""

from __future__ import annotations

from edgeexport.records.base import Record


class TrainingRecord(Record):
    """One finished training.

    steps: optimizer steps, the figure a replay uses. epochs: steps x batch / samples. from_budget: `steps` came from
    timing `budget_minutes` once. learning_rate: the peak. final_loss: mean over the last tenth of the steps.
    threads: torch's thread count; weights repeat bit for bit on the same machine, versions and threads.
    precision: of forward and backward, as it was chosen. processes: how many shared each batch (`torchrun`).
    held_out: samples that were not trained on; best_step: whose weights were kept, with best_loss on those samples.
    stopped_at: the step after which `patience` ended the training; None where it took all its steps.
    """

    steps: int
    epochs: float
    samples: int
    batch_size: int
    optimizer: str
    learning_rate: float
    final_loss: float
    threads: int
    seed: int
    from_budget: bool = False
    precision: str = "float32"
    processes: int = 1
    held_out: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    stopped_at: int | None = None
