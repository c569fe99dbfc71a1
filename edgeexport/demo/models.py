"""The demo's networks: a small convolutional teacher and a student of the same shape, less wide."""

from __future__ import annotations

from torch import Tensor, nn


def block(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3 convolution that keeps height and width, with batch normalization and ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class DigitNet(nn.Module):
    """Classify 8x8 grey pictures, shape (batch, 1, 8, 8), into ten digits; returns logits, shape (batch, 10)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            block(1, width), block(width, width), nn.MaxPool2d(2), block(width, 2 * width), block(2 * width, 2 * width)
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Average the last feature map over its area, then classify."""
        logits: Tensor = self.head(self.features(image).mean((2, 3)))
        return logits


def teacher() -> DigitNet:
    """The source: 96 channels."""
    return DigitNet(96)


def student() -> DigitNet:
    """Two thirds as wide."""
    return DigitNet(64)
