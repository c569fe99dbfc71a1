"""Drawn pages of words with masks of where the words are, for a text detector; and how well masks are met."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE, COUNT = 256, 240
WORDS = [
    "edge",
    "board",
    "phone",
    "latency",
    "memory",
    "bundle",
    "verify",
    "signed",
    "target",
    "kernel",
    "integer",
    "sample",
    "range",
    "scale",
    "gate",
    "rung",
]


class Pages:
    """Page i: RGB uint8 (SIZE, SIZE, 3), and a mask (SIZE, SIZE) of 0 and 1 around its words. Seeded by i."""

    def __init__(self, first: int, count: int) -> None:
        self._first, self._count = first, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        rng = np.random.default_rng(self._first + index)
        paper = tuple(int(value) for value in rng.integers(150, 256, 3))
        page, mask = Image.new("RGB", (SIZE, SIZE), paper), Image.new("L", (SIZE, SIZE))
        pen, marker = ImageDraw.Draw(page), ImageDraw.Draw(mask)
        for row in range(int(rng.integers(2, 5))):
            font = ImageFont.load_default(size=int(rng.integers(14, 30)))
            ink = tuple(int(value) for value in rng.integers(0, 90, 3))
            place = (int(rng.integers(4, 60)), 10 + row * 58 + int(rng.integers(0, 16)))
            text = " ".join(rng.choice(WORDS, 2))
            pen.text(place, text, fill=ink, font=font)
            marker.rectangle(pen.textbbox(place, text, font=font), fill=1)
        noise = rng.normal(0, 6, (SIZE, SIZE, 1))
        return np.clip(np.asarray(page) + noise, 0, 255).astype(np.uint8), np.asarray(mask)


def pool() -> Pages:
    """All pages."""
    return Pages(0, COUNT)


def overlap(outputs: dict[str, np.ndarray], targets: list[np.ndarray]) -> float:
    """Mean intersection over union of detected and drawn text, in points."""
    found = next(iter(outputs.values()))[:, 0] > 0.3
    drawn = np.stack([np.asarray(target) for target in targets]) > 0
    both, either = (found & drawn).sum(axis=(1, 2)), (found | drawn).sum(axis=(1, 2))
    return float(100 * np.mean(both / np.maximum(either, 1)))
