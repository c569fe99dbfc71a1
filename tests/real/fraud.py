"""A tabular scorer: made-up card transactions with a few frauds, and a small MLP that gives each a fraud score."""

from __future__ import annotations

import numpy as np
from torch import nn

FEATURES = 24
ROWS = 8000


class Transactions:
    """Rows of features and a label, 1 for fraud (about one in twelve); amounts are heavy-tailed as real ones are."""

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        plain = generator.standard_normal((ROWS, FEATURES - 4))
        amounts = generator.lognormal(3.0, 1.2, (ROWS, 4))
        self.rows = np.concatenate([plain, amounts], axis=1).astype(np.float32)
        risk = 1.5 * plain[:, 0] * plain[:, 1] + plain[:, 2] ** 2 + 0.02 * amounts[:, 0] - 0.5 * plain[:, 3]
        noisy = risk + generator.normal(0, 0.7, ROWS)
        self.labels = (noisy > np.quantile(noisy, 11 / 12)).astype(np.int64)

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.rows[index], int(self.labels[index])


def train() -> Transactions:
    """Return the rows to learn from."""
    return Transactions(seed=1)


def test() -> Transactions:
    """Return other rows of the same kind."""
    return Transactions(seed=2)


def mlp() -> nn.Module:
    """Return a scorer of (batch, 24) features, one logit each."""
    return nn.Sequential(
        nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1)
    )
