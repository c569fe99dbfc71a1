"""ResNet-44 in the place of ResNet-56: the same compression of another checkpoint."""

from __future__ import annotations

from functools import partial

from tests.benchmarks import resnet56

run = partial(resnet56.run, "resnet44")
