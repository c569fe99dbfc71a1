"""Training: how long and how a network is trained, and TrainingRecord: what a training did.

The rule: a record has no wall time, so that the same training has the same record.
"""

from __future__ import annotations

from typing import Literal

from edgeexport.errors import RecipeError
from edgeexport.records.base import Record
from edgeexport.records.bounds import (
    BELOW_ONE,
    COUNT,
    INNER_SHARE,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    check_bounds,
    check_named,
)

OPTIMIZERS = ("sgd", "adamw", "adamw-relative")
LOSSES = ("cross_entropy", "smooth_cross_entropy", "mse", "bce")
AUGMENTATIONS = ("crop-flip",)
HOW_LONG = "give epochs, steps or budget_minutes"


class Training(Record):
    """How long and how a network is trained. `epochs` may be a fraction; `budget_minutes` is turned into steps once.

    steps: optimizer steps, in place of both. optimizer: "sgd", "adamw", "adamw-relative" (rates for
    weights of size 1: each tensor's is times its own), or "module:function" (groups, learning_rate).
    clip_norm: the largest norm of a step's gradients. ema: decay of a moving average of the weights, which is what is
    kept; 0 is none. keep: the "last" weights, or those that are "best" on `held_out` of the training samples, looked at
    20 times; the training ends early after `patience` looks without gain. precision: "auto" is bfloat16 on a CPU with
    AMX. views: epochs whose batches are new; after them the same ones come again, in another order, and the
    outputs of a teacher (not its features) are remembered, up to 1 GiB (Shen and Xing 2022, arXiv:2112.01528). None:
    every epoch is new.
    """

    epochs: float = 1.0
    budget_minutes: float | None = None
    steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    loss: str = "cross_entropy"
    augment: str | None = None
    seed: int = 0
    clip_norm: float | None = None
    ema: float = 0.0
    keep: Literal["last", "best"] = "last"
    patience: int | None = None
    held_out: float = 0.1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    views: int | None = None

    def __post_init__(self) -> None:
        check_bounds(self, "training", epochs=NOT_NEGATIVE, budget_minutes=POSITIVE, batch_size=COUNT, steps=COUNT)
        check_bounds(self, "training", clip_norm=POSITIVE, ema=BELOW_ONE, patience=COUNT, held_out=INNER_SHARE)
        if self.patience is not None and self.keep == "last":
            raise RecipeError("`training.patience` needs samples to look at", next_step='say keep = "best" as well')
        check_bounds(self, "training", learning_rate=POSITIVE, weight_decay=NOT_NEGATIVE, seed=SEED, views=COUNT)
        check_named(self, "training", optimizer=OPTIMIZERS, loss=LOSSES, augment=AUGMENTATIONS)

    @property
    def asked(self) -> bool:
        """Whether any training is asked for: `epochs` = 0 says none, unless steps or minutes are given in its place."""
        return self.epochs > 0 or self.steps is not None or self.budget_minutes is not None


class Tuning(Training):
    """A Training of weights that are good already, as before int8: small steps, and nothing decays."""

    learning_rate: float = 0.005
    weight_decay: float = 0.0


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
