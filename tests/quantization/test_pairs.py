"""Scales that make room for pairs of weights: nearest rounding always fits them, and they waste little."""

from __future__ import annotations

import numpy as np
import pytest

from edgeexport.quantization.moments import Moments
from edgeexport.quantization.pairs import MOST_TOGETHER, pair_scales, room
from edgeexport.quantization.plan import weight_scales
from edgeexport.quantization.rounding import Grid, compensated, nearest
from edgeexport.runtimes.ort_saturation import neighbours

ROOM = 127


def scales_of(rows: np.ndarray, met: np.ndarray) -> np.ndarray:
    """As a plan has them: in float32, full 8 bits where no pair asks for more."""
    full = weight_scales(rows, 0, reduce_range=False)
    return np.maximum(full, pair_scales(rows, met=met[None])).astype(np.float32).astype(np.float64)[:, None]


def largest(integers: np.ndarray, met: np.ndarray) -> float:
    """The largest sum of two neighbours of one sign."""
    others = integers[..., met]
    apart = met != np.arange(len(met))
    return float(np.abs(np.where((integers * others > 0) & apart, integers + others, 0)).max())


def test_nearest_rounding_fits_every_pair_even_where_both_halves_round_up() -> None:
    random = np.random.default_rng(0)
    met = neighbours(np.arange(2))
    splits = random.integers(1, 128, 20_000) + random.choice([0.5, 0.5 - 1e-9, 0.5 + 1e-9, 0.25], 20_000)
    rows = (np.stack([splits, MOST_TOGETHER - splits], axis=1) * random.uniform(0.001, 9, (20_000, 1))).astype(
        np.float32
    )
    integers = np.rint(rows / scales_of(rows, met).astype(np.float32))
    assert largest(integers, met) == MOST_TOGETHER


def test_scales_are_full_eight_bits_where_no_large_weights_of_one_sign_meet() -> None:
    rows = np.array([[127.0, -127.0, 1.0, 127.0, 90.0], [127.0, 127.0, 0.0, 0.0, 0.0]])
    scales = scales_of(rows, neighbours(np.arange(5)))
    assert scales[0, 0] == pytest.approx(1.0)  # 1 + 127 fits, and the last weight meets no other
    assert scales[1, 0] == pytest.approx(254 / 128, rel=1e-5)


def test_random_weights_keep_most_of_their_eighth_bit() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 288))
    scales = scales_of(rows, neighbours(np.arange(288)))
    assert 1.0 < (scales[:, 0] / (np.abs(rows).max(axis=1) / 127)).mean() < 1.4  # 7 bits: 2.0


def test_room_leaves_what_the_other_weight_does_not_take() -> None:
    least, most = room(np.array([[0, 1, 100, -100, -127], [0, 0, 9, 1, -127]]), limit=127)
    assert least.tolist() == [-127, -127, -127, -28, -1]
    assert most.tolist() == [127, 127, 28, 127, 127]


@pytest.mark.parametrize("groups", [1, 3])
def test_compensated_integers_fit_too_and_those_without_room_do_not(groups: int) -> None:
    random = np.random.default_rng(1)
    width, outputs = 15, 40
    rows = random.standard_normal((groups, 300, width)) @ random.standard_normal((width, width))
    moments = Moments(
        np.zeros((groups, width)), np.zeros((groups, width)),
        second=np.zeros((groups, width, width)), cross=np.zeros((groups, width, width)),
    )  # fmt: skip
    moments.add(rows, rows + random.standard_normal(rows.shape))
    matrix = random.standard_normal((groups, outputs, width))
    met = neighbours(np.arange(width))
    scales = scales_of(matrix.reshape(-1, width), met).reshape(groups, outputs, 1)
    tight = 0.75 * scales
    fitting, _ = compensated(matrix, Grid(tight, ROOM, met[None]), moments=moments.averages())
    loose, _ = compensated(matrix, Grid(tight, ROOM), moments=moments.averages())
    assert largest(fitting, met) <= MOST_TOGETHER < largest(loose, met)
    assert largest(nearest(matrix, Grid(scales, ROOM, met[None])), met) <= MOST_TOGETHER
    assert np.mean(np.abs(fitting) > ROOM) == 0
