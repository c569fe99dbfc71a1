"""Small networks of many families with random weights: nothing is downloaded, only configuration classes are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

Example = dict[str, np.ndarray]
PICTURE: Example = {"image": np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)}
TOKENS: Example = {"ids": np.random.default_rng(0).integers(0, 99, (1, 16)).astype(np.int64)}
SEQUENCE: Example = {"sequence": np.random.default_rng(0).standard_normal((1, 12, 32)).astype(np.float32)}
ROW: Example = {"row": np.random.default_rng(0).standard_normal((1, 24)).astype(np.float32)}


class First(nn.Module):
    """A network of `transformers` with one plain input and its first output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x, return_dict=False)[0]


def vision(family: str, head: str = "ForImageClassification", **config: Any) -> Callable[[], nn.Module]:
    """A picture network of a family."""
    return _made(family, head, {"num_labels": 10, **config})


def text(family: str, head: str = "ForSequenceClassification", **config: Any) -> Callable[[], nn.Module]:
    """A text network of a family: 64 wide, two layers, unless `config` says otherwise."""
    usual = {
        "vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
        "max_position_embeddings": 64, "pad_token_id": 0, "num_labels": 3,
    }  # fmt: skip
    return _made(family, head, {**usual, **config})


def _made(family: str, head: str, config: dict[str, Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        kind, settings = getattr(transformers, family + head), getattr(transformers, family + "Config")
        return First(kind(settings(**config, attn_implementation="eager")))

    return make


VIT = {"image_size": 64, "patch_size": 16, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
       "intermediate_size": 128}  # fmt: skip
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}


class Shuffle(nn.Module):
    """ShuffleNet's unit: grouped 1x1 convolutions, a channel shuffle, a depthwise convolution, a shortcut."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, wide, 1, groups=2), nn.BatchNorm2d(wide), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.BatchNorm2d(wide))
        self.expand = nn.Sequential(nn.Conv2d(wide, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.reduce(x)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return torch.relu(x + self.expand(self.depthwise(y)))


class ShuffleNet(nn.Module):
    """A stem, two shuffle units, a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.units = nn.Sequential(Shuffle(32, 32), Shuffle(32, 32))
        self.tail = nn.Sequential(nn.Conv2d(32, 96, 3, 2, 1), nn.ReLU(), nn.Conv2d(96, 64, 3, 2, 1), nn.ReLU())
        self.last = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.last(self.tail(self.units(self.stem(image))).mean(dim=(2, 3)))


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    """Down, across and up again, with skip connections that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _pair(3, 16), _pair(16, 32), _pair(32, 64)
        self.up2, self.up1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.across2, self.across1 = _pair(64, 32), _pair(32, 16)
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first = self.down1(image)
        second = self.down2(nn.functional.max_pool2d(first, 2))
        x = self.bottom(nn.functional.max_pool2d(second, 2))
        x = self.across2(torch.cat([self.up2(x), second], dim=1))
        return self.last(self.across1(torch.cat([self.up1(x), first], dim=1)))


class Recurrent(nn.Module):
    """Linear layers around an LSTM, whose gates no dependency graph may cut."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 32))
        self.lstm = nn.LSTM(32, 32, batch_first=True)
        self.after = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 4))

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(self.before(sequence))
        return self.after(states[:, -1])


class Encoder(nn.Module):
    """torch's own encoder layers, whose attention is one module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 64)
        layer = nn.TransformerEncoderLayer(64, 4, dim_feedforward=64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.last = nn.Linear(64, 4)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        return self.last(self.encoder(self.first(sequence)).mean(dim=1))


def tabular() -> nn.Module:
    """A multilayer perceptron with batch norms."""
    return nn.Sequential(
        nn.Linear(24, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(),
        nn.Linear(64, 1),
    )  # fmt: skip


def lite0() -> nn.Module:
    """EfficientNet-Lite0 as its package builds it, with random weights."""
    from efficientnet_lite_pytorch import EfficientNet

    net: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return net


# name -> how it is built, and what it is fed.
ARCHITECTURES: Mapping[str, tuple[Callable[[], nn.Module], Example]] = {
    "ResNet": (vision("ResNet", embedding_size=32, hidden_sizes=[32, 64, 64], depths=[1, 2, 1],
                      layer_type="basic"), PICTURE),
    "ResNet, bottleneck": (vision("ResNet", embedding_size=32, hidden_sizes=[64, 128], depths=[2, 2]), PICTURE),
    "RegNet": (vision("RegNet", embedding_size=32, hidden_sizes=[32, 64], depths=[1, 2], groups_width=16), PICTURE),
    "ConvNeXt": (vision("ConvNext", hidden_sizes=[32, 64], depths=[1, 2], num_stages=2), PICTURE),
    "ConvNeXtV2": (vision("ConvNextV2", hidden_sizes=[32, 64], depths=[1, 2], num_stages=2), PICTURE),
    "MobileNetV1": (vision("MobileNetV1", image_size=64, depth_multiplier=0.5), PICTURE),
    "MobileNetV2": (vision("MobileNetV2", image_size=64, depth_multiplier=0.5), PICTURE),
    "MobileViT": (vision("MobileViT", image_size=64, hidden_sizes=[32, 48, 64], neck_hidden_sizes=[16, 32, 32, 48, 64,
                         64, 128], num_attention_heads=4), PICTURE),
    "MobileViTV2": (vision("MobileViTV2", image_size=64, width_multiplier=0.5), PICTURE),
    "EfficientNet": (vision("EfficientNet", image_size=64, width_coefficient=0.5, depth_coefficient=0.5,
                            hidden_dim=640), PICTURE),
    "ViT": (vision("ViT", **VIT), PICTURE),
    "DeiT": (vision("DeiT", **VIT), PICTURE),
    "ViT-MSN": (vision("ViTMSN", **VIT), PICTURE),
    "BEiT": (vision("Beit", **VIT), PICTURE),
    "Data2Vec": (vision("Data2VecVision", **VIT), PICTURE),
    "DINOv2": (vision("Dinov2", **{**VIT, "mlp_ratio": 2}), PICTURE),
    "Swin": (vision("Swin", **SWIN), PICTURE),
    "SwinV2": (vision("Swinv2", **SWIN), PICTURE),
    "FocalNet": (vision("FocalNet", image_size=64, embed_dim=32, depths=[1, 1], focal_levels=[2, 2],
                        focal_windows=[3, 3]), PICTURE),
    "SegFormer": (vision("Segformer", hidden_sizes=[32, 64], depths=[1, 1], num_attention_heads=[1, 2],
                         sr_ratios=[2, 1], num_encoder_blocks=2, patch_sizes=[7, 3], strides=[4, 2],
                         mlp_ratios=[4, 4]), PICTURE),
    "PoolFormer": (vision("PoolFormer", hidden_sizes=[32, 64], depths=[1, 1], num_encoder_blocks=2, patch_sizes=[7, 3],
                          strides=[4, 2], padding=[2, 1], mlp_ratio=2.0), PICTURE),
    "PVT": (vision("Pvt", image_size=64, hidden_sizes=[32, 64], depths=[1, 1], num_attention_heads=[1, 2],
                   sequence_reduction_ratios=[2, 1], num_encoder_blocks=2, patch_sizes=[4, 2], strides=[4, 2],
                   mlp_ratios=[4, 4]), PICTURE),
    "LeViT": (vision("Levit", image_size=64, hidden_sizes=[64, 96, 128], depths=[1, 1, 1],
                     num_attention_heads=[2, 3, 4], key_dim=[16, 16, 16]), PICTURE),
    "BiT": (vision("Bit", embedding_size=64, hidden_sizes=[128, 256], depths=[1, 1]), PICTURE),
    "SwiftFormer": (vision("SwiftFormer", image_size=64, depths=[1, 1, 1, 1], embed_dims=[32, 48, 64, 64]), PICTURE),
    "TextNet": (vision("TextNet"), PICTURE),
    "HGNetV2": (vision("HGNetV2"), PICTURE),
    "BERT": (text("Bert"), TOKENS),
    "DistilBERT": (text("DistilBert", dim=64, hidden_dim=128, n_heads=4, n_layers=2), TOKENS),
    "RoBERTa": (text("Roberta"), TOKENS),
    "ALBERT": (text("Albert", embedding_size=32), TOKENS),
    "ELECTRA": (text("Electra", embedding_size=32), TOKENS),
    "MobileBERT": (text("MobileBert", embedding_size=32, intra_bottleneck_size=32), TOKENS),
    "SqueezeBERT": (text("SqueezeBert", embedding_size=64), TOKENS),
    "MPNet": (text("MPNet"), TOKENS),
    "ModernBERT": (text("ModernBert", bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2), TOKENS),
    "RoFormer": (text("RoFormer", embedding_size=64), TOKENS),
    "GPT-2": (text("GPT2", n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2), TOKENS),
    "EfficientNet-Lite0": (lite0, PICTURE),
    "ShuffleNet-like": (ShuffleNet, PICTURE),
    "U-Net-like": (UNet, PICTURE),
    "LSTM": (Recurrent, SEQUENCE),
    "nn.TransformerEncoder": (Encoder, SEQUENCE),
    "tabular MLP": (tabular, ROW),
}  # fmt: skip


def built(name: str, seed: int = 0) -> tuple[nn.Module, Example]:
    """Return a network in eval mode with statistics that training would leave, and what it is fed."""
    from tests.compression.nets import settled

    factory, example = ARCHITECTURES[name]
    return settled(factory, seed), example
