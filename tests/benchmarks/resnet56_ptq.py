"""ResNet-56, post-training int8: size and speed against fp32 and against every peer, in the same run."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.bar import Bar
from tests.benchmarks.peers import compared

SIZE_RATIO = 3.5


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Quantize by all tools and compare; peers that cannot be installed are among the figures, with the reason."""
    figures = compared("resnet56")
    ours = figures["ours"]
    peers = {name: ratio for name, ratio in ours["faster_than"].items() if name != "ours"}
    return figures, {
        "size_ratio": Bar(ours["size_ratio"], SIZE_RATIO, "peers: 3.41 times smaller than fp32", "min"),
        "speed_to_best_peer": Bar(
            min(peers.values(), default=float("nan")), 1.0, "median ratio to the fastest peer, round by round", "min"
        ),
        "peers": Bar(len(peers), 1, "at least one peer ran", "min"),
    }
