"""Spine → fp32 .tflite, in the worker: lift, torch.export, litert-torch; then every tensor named as in the spine.

The rule: pictures are NHWC in the file, batch is 1, and the bytes hold no class names, paths or times, so that the
same spine gives the same file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.errors import ModelError
from edgeexport.records.artifact import Signature, TensorSpec
from edgeexport.runtimes.litert import flatbuffer, pairing
from edgeexport.runtimes.protocol import adapt_feeds

if TYPE_CHECKING:
    import torch

    from edgeexport.runtimes.protocol import Feeds

FLOAT_FILE = "float.tflite"
PAIRS_FILE = "pairs.json"
# LiteRT runs 32-bit numbers; litert-torch narrows wider ones.
_NARROWED = {"int64": "int32", "float64": "float32"}


def lower(folder: Path, settings: dict[str, Any]) -> None:
    """Read `settings["spine"]` and the probes in `folder`, write `float.tflite` and `pairs.json` there."""
    from edgeexport import graph

    spine = Path(settings["spine"])
    model = graph.load(spine)
    ours = graph.signature(model)
    file = file_signature(ours)
    feeds = pairing.with_amplified(read_samples(folder))
    out = folder / FLOAT_FILE
    _convert(graph.lift(model), feeds[0], ours=ours, file=file, out=out)
    names = pairing.pair_activations(spine, out, spine=ours, file=file, feeds=feeds)
    weights = {name: values for name, values in graph.initializers(model).items() if values.dtype.name == "float32"}
    tree = flatbuffer.read(out)
    constants = pairing.pair_constants(tree, weights)
    own = _own_names(tree, file)
    firsts = {index: fits[0] for index, fits in names.items() if fits}
    flatbuffer.rename_tensors(tree, {**constants, **firsts, **own})
    flatbuffer.write(tree, out)
    tensors = tree.subgraphs[0].tensors
    pairs = {flatbuffer.tensor_name(tensors[index]): list(fits) for index, fits in names.items()}
    held = {flatbuffer.tensor_name(tensors[index]): name for index, name in constants.items()}
    content = {"activations": pairs, "weights": held}
    (folder / PAIRS_FILE).write_text(json.dumps(content, sort_keys=True), encoding="utf-8")


def file_signature(spine: Signature) -> Signature:
    """Return the signature of the .tflite file of a spine: batch 1, 32-bit numbers, pictures NHWC.

    Raises ModelError for a free dimension other than the batch.
    """
    return Signature(
        inputs=tuple(_file_spec(spec) for spec in spine.inputs),
        outputs=tuple(_file_spec(spec) for spec in spine.outputs),
    )


def write_samples(samples: Sequence[Feeds], folder: Path, *, start: int = 0) -> None:
    """Store feeds as `sample-<n>.npz` for the worker, n counting from `start`."""
    import numpy as np

    for index, feeds in enumerate(samples, start):
        arrays: dict[str, Any] = {f"a{position}": value for position, value in enumerate(feeds.values())}
        np.savez(folder / f"sample-{index:06d}.npz", names=np.array(list(feeds)), **arrays)


def read_samples(folder: Path) -> list[Feeds]:
    """Return the feeds that `write_samples` stored, in order."""
    return [read_sample(path) for path in sorted(folder.glob("sample-*.npz"))]


def read_sample(path: Path) -> Feeds:
    """Return one stored sample."""
    import numpy as np

    with np.load(path, allow_pickle=False) as stored:
        return {str(name): stored[f"a{position}"] for position, name in enumerate(stored["names"])}


def _file_spec(spec: TensorSpec) -> TensorSpec:
    shape = tuple(1 if axis == 0 and isinstance(size, str) else size for axis, size in enumerate(spec.shape))
    free = [size for size in shape if isinstance(size, str)]
    if free:
        raise ModelError(
            f"{spec.name!r} has the free dimensions {free} in shape {spec.shape}: LiteRT needs fixed ones",
            next_step="give the shape under [model] inputs",
        )
    picture = spec.layout == "NCHW"
    return TensorSpec(
        name=spec.name,
        dtype=_NARROWED.get(spec.dtype, spec.dtype),
        shape=(shape[0], *shape[2:], shape[1]) if picture else shape,
        layout="NHWC" if picture else spec.layout,
    )


def _convert(module: torch.nn.Module, feeds: Feeds, *, ours: Signature, file: Signature, out: Path) -> None:
    """Lower the module and give the file the spine's names for its inputs and outputs."""
    import litert_torch
    import torch

    pictures = [index for index, spec in enumerate(file.inputs) if spec.layout == "NHWC"]
    results = [index for index, spec in enumerate(file.outputs) if spec.layout == "NHWC"]
    wrapped = litert_torch.to_channel_last_io(_keeping_rank(module.eval()), args=pictures, outputs=results)
    moved = adapt_feeds(feeds, ours, to=file)
    arrays = [moved[spec.name].astype(source.dtype) for spec, source in zip(file.inputs, ours.inputs, strict=True)]
    with torch.no_grad():
        lowered = litert_torch.convert(wrapped.eval(), tuple(torch.from_numpy(array) for array in arrays))
    tree = flatbuffer.parse(lowered.model_content(), origin=out.name)
    inputs = {f"args_{index}": spec.name for index, spec in enumerate(file.inputs)}
    outputs = {f"output_{index}": spec.name for index, spec in enumerate(file.outputs)}
    flatbuffer.name_signature(tree, inputs=inputs, outputs=outputs)
    flatbuffer.put_signature(tree, file)
    flatbuffer.write(tree, out)


def _keeping_rank(module: torch.nn.Module) -> torch.nn.Module:
    """Let reductions of pictures keep their axes and squeeze after: litert-torch stays in NHWC for rank 4 only.

    A mean that drops its axes at once costs a TRANSPOSE of the whole picture.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    reductions = {torch.mean, torch.Tensor.mean, torch.amax, torch.Tensor.amax, torch.sum, torch.Tensor.sum}

    class RankKept(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            options = dict(kwargs or {})
            given = dict(zip(("input", "dim", "keepdim"), args, strict=False)) | options
            dims = given.get("dim")
            if func not in reductions or dims is None or given.get("keepdim") or given["input"].ndim != 4:
                return func(*args, **options)
            dims = (dims,) if isinstance(dims, int) else tuple(dims)
            rest = {name: value for name, value in options.items() if name not in ("input", "dim", "keepdim")}
            return func(given["input"], dims, keepdim=True, **rest).squeeze(dims)

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: torch.Tensor) -> Any:
            with RankKept():
                return self.module(*inputs)

    return Wrapped()


def _own_names(tree: Any, file: Signature) -> dict[int, str]:
    """Tensor index -> name of the graph's inputs and outputs, which keep the spine's names."""
    graph = tree.subgraphs[0]
    outputs = dict(zip(graph.outputs, (spec.name for spec in file.outputs), strict=True))
    return {**outputs, **dict(zip(graph.inputs, (spec.name for spec in file.inputs), strict=True))}
