"""Spoken digits, one speaker held out, and a small keyword net with its log-mel front-end inside the graph.

The net is a DS-CNN (Zhang et al. 2017, arXiv:1711.07128): one convolution, then depthwise-separable blocks.
"""

from __future__ import annotations

import io
import os
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("EDGEEXPORT_DATA") or HERE.parents[2] / "shared" / "data")
HELD_OUT = "yweweler"
RATE, SAMPLES, FRAME, HOP, MELS = 8000, 8000, 256, 128, 40
STEP, KEPT = 16, 9
WIDEST = 0.5  # octaves of playback speed
KNOTS = 7  # places of an equalizer
# The front-end's convolutions in the exported graph; powers span too many decades for 8 bits.
FRONT = ("conv", "conv_2", "conv_3")


class Clips:
    """Labelled clips of one second, float32 in [-1, 1], cut or padded with silence at the end."""

    def __init__(self, keep: Callable[[str], bool]) -> None:
        self._zip = DATA / "spoken_digits" / "recordings.zip"
        with zipfile.ZipFile(self._zip) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".wav"))
            kept = [name for name in names if keep(Path(name).stem.split("_")[1])]
            self._clips = [(_samples(archive.read(name)), int(Path(name).stem[0])) for name in kept]

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._clips[index]


def _samples(content: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(content)) as clip:
        values = np.frombuffer(clip.readframes(clip.getnframes()), np.int16).astype(np.float32) / 32768
    return np.pad(values[:SAMPLES], (0, max(0, SAMPLES - len(values))))


def train() -> Clips:
    """All speakers but one."""
    return Clips(lambda speaker: speaker != HELD_OUT)


def test() -> Clips:
    """The speaker that the net never heard."""
    return Clips(lambda speaker: speaker == HELD_OUT)


def shifted(batch: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Augmentation: every clip moved by up to 0.1 s and made up to 6 dB softer or louder."""
    moves = generator.integers(-RATE // 10, RATE // 10 + 1, len(batch))
    gains = 2.0 ** generator.uniform(-1, 1, (len(batch), 1))
    rolled = np.stack([np.roll(clip, move) for clip, move in zip(batch, moves, strict=True)])
    return (rolled * gains).astype(np.float32)


def varied(batch: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Augmentation that makes other voices, rooms and microphones, since there are few speakers.

    Clips are played back at 0.7 to 1.4 times the speed (as Ko et al. 2015, Audio augmentation for speech recognition,
    but wider), moved by up to 0.1 s without wrapping, `equalized`, silent for 0.1 s, made up to 6 dB softer or louder,
    and noise of -80 to -34 dB is added.
    """
    places = np.arange(SAMPLES)
    made = np.zeros_like(batch)
    for row, clip in zip(made, batch, strict=True):
        speed = 2.0 ** generator.uniform(-WIDEST, WIDEST)
        start = generator.integers(-RATE // 10, RATE // 10 + 1)
        row[:] = np.interp(places * speed + start, places, clip, left=0, right=0)
    made = equalized(made, generator)
    for row, masked in zip(made, generator.integers(0, SAMPLES - RATE // 10, len(made)), strict=True):
        row[masked : masked + RATE // 10] = 0
    gains = 2.0 ** generator.uniform(-1, 1, (len(batch), 1))
    noise = generator.normal(0, 1, batch.shape) * 10 ** generator.uniform(-4, -1.7, (len(batch), 1))
    return (made * gains + noise).astype(np.float32)


def equalized(batch: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Augmentation: a random smooth frequency response for every clip, and half of the clips lack a band.

    Gains are drawn at KNOTS places of the mel scale, with a standard deviation of 5 dB. A band that is taken out, up to
    a fifth of the scale, is left at -40 dB: the frequency masks of SpecAugment (Park et al. 2019, arXiv:1904.08779).
    """
    pitch = np.log1p(np.fft.rfftfreq(SAMPLES, 1 / RATE) / 700) / np.log1p(RATE / 2 / 700)
    decibels = np.stack([np.interp(pitch, np.linspace(0, 1, KNOTS), generator.normal(0, 5, KNOTS)) for _ in batch])
    widths = generator.uniform(0, 0.2, (len(batch), 1))
    lowest = generator.uniform(0, 1 - widths)
    lacking = generator.random((len(batch), 1)) < 0.5
    decibels[lacking & (pitch >= lowest) & (pitch <= lowest + widths)] = -40
    return np.fft.irfft(np.fft.rfft(batch) * 10 ** (decibels / 20), SAMPLES).astype(np.float32)


def mixed(batch: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Augmentation without labels: `varied`, and into every clip of the first half of the batch another one is mixed.

    The shares of the two are uniform, as in mixup (Zhang et al. 2018, arXiv:1710.09412): for trainings in which a
    teacher says what is to be heard.
    """
    made = varied(batch, generator)
    others, half = made[::-1], len(made) // 2
    shares = generator.uniform(0, 1, (half, 1)).astype(np.float32)
    return np.concatenate([made[:half] * (1 - shares) + others[:half] * shares, made[half:]])


def _mel_filters() -> np.ndarray:
    """Triangular filters, evenly spaced on the mel scale (O'Shaughnessy), as (MELS, FRAME // 2 + 1)."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), MELS + 2) / 2595) - 1)
    bins = np.arange(FRAME // 2 + 1) * RATE / FRAME
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


class LogMel(nn.Module):
    """Waveform (n, SAMPLES) to log-mel frames (n, 1, MELS, frames): windowed Fourier transform, power, filters.

    The transform of FRAME = 16 x 16 samples takes two steps (Cooley and Tukey 1965), X[c + 16 d] over x[16 a + b]: one
    filter of 16 taps for each b and c, with window and twiddle factor in it, then one matrix for all c. That is a
    fifth of the multiplications and a tenth of the constants of a plain one; of real input, c <= 8 gives all powers.
    """

    def __init__(self) -> None:
        super().__init__()
        a, c = np.arange(STEP), np.arange(KEPT)
        window = np.hanning(FRAME).reshape(STEP, STEP)
        twiddled = _turn(np.multiply.outer(a, c) / STEP + np.multiply.outer(a, c)[:, None] / FRAME)  # (b, a, c)
        taps = (twiddled * window.T[:, :, None]).transpose(0, 2, 1)
        first = np.concatenate([taps.real, taps.imag], axis=1).reshape(-1, 1, STEP)
        turn = _turn(np.multiply.outer(a, a) / STEP)
        second = np.block([[turn.real, -turn.imag], [turn.imag, turn.real]])
        bins = np.arange(STEP)[:, None] * STEP + c
        filters = np.zeros((MELS, bins.size), np.float32)
        places = np.unique(np.minimum(bins, FRAME - bins).ravel(), return_index=True)[1]
        filters[:, places] = _mel_filters()
        for name, values in {"first": first, "second": second[..., None], "filters": filters[..., None]}.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        columns = audio[:, : SAMPLES // HOP * HOP].reshape(-1, SAMPLES // HOP * HOP // STEP, STEP).transpose(1, 2)
        inner = nn.functional.conv1d(columns, self.first, stride=HOP // STEP, groups=STEP)
        frames = inner.shape[2]
        inner = inner.reshape(-1, STEP, 2, KEPT, frames).permute(0, 2, 1, 3, 4).reshape(-1, 2 * STEP, KEPT * frames)
        parts = nn.functional.conv1d(inner, self.second).reshape(-1, 2, STEP * KEPT, frames)
        squares = parts * parts
        mel = nn.functional.conv1d(squares[:, 0] + squares[:, 1], self.filters)
        return torch.log(mel + 1e-4).unsqueeze(1)


def _turn(angle: np.ndarray) -> np.ndarray:
    """e^(-2 pi i angle)."""
    return np.exp(-2j * np.pi * angle)


def _block(channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class KeywordNet(nn.Module):
    """Audio (n, SAMPLES) to ten logits; `width` channels, `blocks` separable blocks, the first one with `stride`.

    hop: the stride of the first convolution over frames; over mels it is 2.
    """

    def __init__(self, width: int, blocks: int, *, stride: int = 1, hop: int = 2) -> None:
        super().__init__()
        self.front = LogMel()
        self.norm = nn.BatchNorm2d(1)
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, (10, 4), stride=(2, hop), padding=(4, 1), bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(_block(width, stride), *(_block(width, 1) for _ in range(blocks - 1)))
        self.head = nn.Linear(width, 10)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        features = self.blocks(self.stem(self.norm(self.front(audio))))
        logits: torch.Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def keyword_net() -> KeywordNet:
    """About 23,000 parameters."""
    return KeywordNet(width=64, blocks=4)


def ds_cnn() -> KeywordNet:
    """DS-CNN-M, with its width, blocks and strides of the paper, over 40 mels: 136,000 parameters."""
    return KeywordNet(width=172, blocks=4, stride=2, hop=1)


def small_ds_cnn() -> KeywordNet:
    """A small one of its kind, that looks at every second frame: 34,000 parameters."""
    return KeywordNet(width=80, blocks=4, stride=2)
