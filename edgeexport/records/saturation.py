"""Saturation: where the 8-bit dot product of x86 CPUs without VNNI could give another sum than everyone else's."""

from __future__ import annotations

from edgeexport.records.base import Record

LEAST, MOST = -(2**15), 2**15 - 1


class LayerSaturation(Record):
    """The pair sums of one node's int8 weight, with activations at their largest, 255. op: the node's operator.

    lowest, highest: the extreme sums of two weights that the kernel adds, either of which may count for nothing.
    pairs, over: how many such pairs there are, and how many of them leave 16 bits.
    """

    node: str
    op: str
    weight: str
    lowest: int
    highest: int
    pairs: int
    over: int

    @property
    def possible(self) -> bool:
        """Whether some activations could saturate it."""
        return self.lowest < LEAST or self.highest > MOST


class Saturation(Record):
    """All integer layers of an int8 file."""

    layers: tuple[LayerSaturation, ...]

    @property
    def possible(self) -> bool:
        """Whether any layer could differ on AVX2 without VNNI; False is a proof that none does."""
        return any(layer.possible for layer in self.layers)

    def sentence(self) -> str:
        """Say it for a report."""
        hit = [layer for layer in self.layers if layer.possible]
        if not hit:
            return f"no sum can saturate without VNNI: all pairs of the {len(self.layers)} integer layers fit 16 bits"
        share = sum(layer.over for layer in hit) / max(1, sum(layer.pairs for layer in hit))
        first = max(hit, key=lambda layer: layer.over / max(1, layer.pairs))
        return (
            f"{len(hit)} of {len(self.layers)} integer layers could saturate on AVX2 without VNNI "
            f"({share:.2%} of their pairs of weights, most in {first.node!r}); whether they do depends on the input"
        )
