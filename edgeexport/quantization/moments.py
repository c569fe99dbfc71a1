"""What a layer's inputs look like, in float and in the quantized model, as sums of fixed size.

The rule: memory does not grow with the samples' size: a layer keeps means and second moments of rows taken at a bounded
number of seeded places. A model is run from the last tensor that all later ones are made from, and no further than
asked; such tensors are kept for all samples while they fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.quantization.layers import Layer
from edgeexport.runtimes.ort import open_session
from edgeexport.runtimes.protocol import Feeds

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

# Places of one sample that a layer looks at; more tell little that is new, neighbours being alike.
PLACES = 128
SEED = 20_26
KEPT_BYTES = 256 * 2**20
_QUIET = {"config_entries": {"session.intra_op.allow_spinning": "0"}}


@dataclass
class Moments:
    """Per group, of rows x (float model) and q (quantized model): means, E[q qᵀ] and E[x qᵀ], all float64.

    independent: as how many independent rows those seen count.
    """

    mean: NDArray[Any]
    quantized_mean: NDArray[Any]
    second: NDArray[Any]
    cross: NDArray[Any]
    count: int = 0
    independent: float = 0.0

    def add(self, rows: NDArray[Any], quantized: NDArray[Any], *, samples: int | None = None) -> None:
        """Take in rows of shape (groups, places, width), from so many samples; unsaid, each row is one.

        Places of one sample being alike, they count as the square root of their number.
        """
        import numpy as np

        transposed = quantized.transpose(0, 2, 1)
        self.mean += rows.sum(axis=1, dtype=np.float64)
        self.quantized_mean += quantized.sum(axis=1, dtype=np.float64)
        self.second += transposed @ quantized
        self.cross += rows.transpose(0, 2, 1) @ quantized
        self.count += rows.shape[1]
        self.independent += (rows.shape[1] * (samples or rows.shape[1])) ** 0.5

    def covariances(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return Cov(q, q) and Cov(x, q) per group, of averages.

        Both are drawn towards variances alone, the more the fewer rows there are for the width (a linear shrinkage, as
        Ledoit and Wolf 2004): what few samples seem to have in common, others do not share.
        """
        import numpy as np

        behind = self.quantized_mean[:, None, :]
        second = self.second - self.quantized_mean[:, :, None] * behind
        cross = self.cross - self.mean[:, :, None] * behind
        width = second.shape[-1]
        share = width / (width + self.independent)
        alone = second * np.eye(width)
        return second + share * (alone - second), cross + share * (alone - cross)

    def averages(self) -> Moments:
        """Return the sums divided by the count."""
        means = (self.mean / self.count, self.quantized_mean / self.count)
        products = {"second": self.second / self.count, "cross": self.cross / self.count}
        return Moments(*means, **products, count=self.count, independent=self.independent)


@dataclass
class Walk:
    """A model that is run to one tensor after the other, in graph order; `model` may change behind the walk."""

    model: ModelProto
    samples: Sequence[Feeds]
    kept: list[Feeds] = field(default_factory=list)

    def values(self, tensor: str) -> Iterator[NDArray[Any]]:
        """Yield the tensor for each sample; keep it as the new start if all that follows is made from it."""
        starts = self.kept or self.samples
        if tensor in starts[0]:
            yield from (feeds[tensor] for feeds in starts)
            return
        session = open_session(
            between(self.model, tensor, starts=starts[0]).SerializeToString(), threads=0, options=_QUIET
        )
        inputs = [spec.name for spec in session.signature.inputs]
        keeping, size = splits(self.model, tensor), 0
        kept: list[Feeds] = []
        for feeds in starts:
            value = session.run({name: feeds[name] for name in inputs})[tensor]
            yield value
            size += value.nbytes
            keeping = keeping and size <= KEPT_BYTES
            kept = [*kept, {tensor: value}] if keeping else []
        self.kept = kept or self.kept


def observe(layer: Layer, walks: tuple[Walk, Walk], *, source: str, width: int) -> Moments:
    """Sum up what the layer's input shows in the float and in the quantized model, where it is called `source`."""
    import numpy as np

    one, two = (layer.groups, width), (layer.groups, width, width)
    found = Moments(np.zeros(one), np.zeros(one), second=np.zeros(two), cross=np.zeros(two))
    random = np.random.default_rng(SEED)
    for value, other in zip(walks[0].values(layer.source), walks[1].values(source), strict=True):
        sizes = layer.positions(value.shape)
        total = int(np.prod(sizes))
        limit = PLACES * (sizes[0] if sizes else 1)
        flat = np.sort(random.choice(total, limit, replace=False)) if total > limit else np.arange(total)
        places = np.unravel_index(flat, sizes)
        found.add(layer.rows(value, places), layer.rows(other, places), samples=sizes[0] if sizes else 1)
    return found.averages()


def splits(model: ModelProto, tensor: str) -> bool:
    """True when everything that the model computes after `tensor` is made from it and stored numbers alone."""
    made = {tensor, *graph.initializers(model), *graph.constants(model), ""}
    ancestors = _ancestors(model, tensor)
    for index, node in enumerate(model.graph.node):
        if index not in ancestors:
            if not all(name in made for name in node.input):
                return False
            made.update(node.output)
    return all(value.name in made for value in model.graph.output)


def between(model: ModelProto, tensor: str, *, starts: Feeds) -> ModelProto:
    """Return the part of a model that makes `tensor` from the tensors `starts` (float) or the model's inputs."""
    import onnx

    chosen = _ancestors(model, tensor, starts=starts)
    kept = [node for index, node in enumerate(model.graph.node) if index in chosen]
    read = {name for node in kept for name in node.input}
    cut = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    cut.graph.name = model.graph.name
    cut.graph.node.extend(kept)
    cut.graph.initializer.extend(item for item in model.graph.initializer if item.name in read)
    given = {value.name: value for value in model.graph.input}
    for name in [name for name in starts if name in read]:
        shape = [f"{name}_{axis}" for axis in range(starts[name].ndim)]
        free = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        cut.graph.input.append(given.get(name, free))
    cut.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    return cut


def _ancestors(model: ModelProto, tensor: str, *, starts: Any = ()) -> set[int]:
    """The positions of the nodes that `tensor` is made by, back to `starts`."""
    needed, found = {tensor}, set()
    for index in range(len(model.graph.node) - 1, -1, -1):
        node = model.graph.node[index]
        if any(name in needed for name in node.output):
            found.add(index)
            needed.update(name for name in node.input if name not in starts)
    return found
