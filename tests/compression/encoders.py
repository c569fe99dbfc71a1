"""A tiny encoder whose parts are named as those of `transformers`, and blocks in the shapes that depth meets."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

SEQUENCE = {"sequence": np.random.default_rng(0).standard_normal((1, 6, 32)).astype(np.float32)}


class Attention(nn.Module):
    def __init__(self, width, heads, *, flat=False, keys=None):
        super().__init__()
        self.num_attention_heads = heads
        self.size, self.flat = width // heads, flat
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, keys or width)
        self.value = nn.Linear(width, keys or width)

    def split(self, x):
        """(n, length, width) to (n, heads, length, size); flat: by a number of heads that the code has fixed."""
        heads = 4 if self.flat else -1
        return x.view(x.shape[0], x.shape[1], heads, self.size).transpose(1, 2)

    def forward(self, x):
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        if k.shape[1] < q.shape[1]:
            k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], dim=1) for each in (k, v))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / self.size**0.5, dim=-1) @ v
        return mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)


class Layer(nn.Module):
    """Norm first, as in ViT."""

    def __init__(self, width=32, heads=4, **attention):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.output = Attention(width, heads, **attention), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 64), nn.Linear(64, width)

    def forward(self, x, scale=None):
        x = x + self.output(self.attention(self.norm1(x)))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x)))) * (1.0 if scale is None else scale)


class After(Layer):
    """Norm last, as in BERT, and the result in a tuple."""

    def forward(self, x, scale=None):  # noqa: ARG002 # called as the other layer is
        x = self.norm1(x + self.output(self.attention(x)))
        return (self.norm2(x + self.down(nn.functional.gelu(self.up(x)))),)


class Encoder(nn.Module):
    def __init__(self, layer=Layer, layers=3, **attention):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32))
        self.layer = nn.ModuleList(layer(**attention) for _ in range(layers))
        self.last = nn.Linear(32, 5)

    def forward(self, sequence):
        x = self.first(sequence)
        for layer in self.layer:
            x = layer(x, scale=torch.ones(1))
            x = x[0] if isinstance(x, tuple) else x
        return self.last(x.mean(dim=1))
