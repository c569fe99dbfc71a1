"""fp16: the model in half precision for CPUs that compute in it, inputs and outputs still float32.

The rule: refused rather than wrong. Every float tensor is watched while samples run, inner ones of a fused operator
too, for an emulated or x86 CPU computes fp16 in fp32 and never shows the overflow that a phone turns into NaN.
The graph is rewritten by `onnxruntime.transformers.float16`, which would clip what does not fit without a word.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edgeexport import graph
from edgeexport.errors import DataError, MissingExtra, ModelError
from edgeexport.progress import Progress, silent
from edgeexport.quantization.calibrate import watch
from edgeexport.records.base import file_digest
from edgeexport.records.half import LARGEST_HALF, LEAST_NORMAL_HALF, Half
from edgeexport.runtimes.protocol import Feeds

if TYPE_CHECKING:
    from onnx import ModelProto

# What was seen must fit four times: kernels add up in fp16, and other inputs reach further than the samples.
HEADROOM = 4.0


def to_half(model_path: Path, samples: Iterable[Feeds], *, out: Path, progress: Progress = silent) -> Half:
    """Write the fp16 form of an fp32 .onnx file to `out`. The bytes depend on the model and versions only.

    samples: feeds in the model's signature, any batch size. Raises ModelError, naming tensor and value, when a weight
    or an activation does not fit fp16 with HEADROOM to spare; DataError for no samples.
    """
    model = graph.load(model_path)
    share = _subnormal_share(model)
    name, largest, count = _largest(model, samples, progress=progress)
    if largest * HEADROOM > LARGEST_HALF:
        raise ModelError(
            f"{model_path}: {name!r} reaches {largest:.6g}; fp16 ends at {LARGEST_HALF:.0f}, and {HEADROOM:g} times "
            "what was seen must fit",
            next_step="stay with int8 or fp32 on this target, or scale the weights before this tensor",
        )
    graph.save(_converted(model), out)
    return Half(
        model_digest=file_digest(model_path),
        samples=count,
        tensor=name,
        largest=largest,
        headroom=LARGEST_HALF / largest if largest else LARGEST_HALF,
        subnormal_share=share,
    )


def _largest(model: ModelProto, samples: Iterable[Feeds], *, progress: Progress) -> tuple[str, float, int]:
    """Return the tensor of the largest magnitude, that magnitude, and the number of samples."""
    names = graph.float_tensors(model)
    largest = dict.fromkeys(names, 0.0)
    count = 0
    for count, seen in enumerate(watch(model, names, samples=samples), 1):
        progress(f"fp16: watch sample {count}", None)
        for name, (low, high) in seen.items():
            largest[name] = max(largest[name], -low, high)
    if not count:
        raise DataError("there are no samples to watch for values beyond fp16", next_step="give at least one")
    name = max(largest, key=lambda each: largest[each])
    return name, largest[name], count


def _subnormal_share(model: ModelProto) -> float:
    """Refuse weights that fp16 cannot hold; return the share of those that it holds with fewer bits."""
    import numpy as np

    small = total = 0
    for name, value in {**graph.constants(model), **graph.initializers(model)}.items():
        if value.dtype != np.float32 or not value.size:
            continue
        magnitude = np.abs(value)
        if not magnitude.max() <= LARGEST_HALF:
            raise ModelError(
                f"weight {name!r} holds {value.ravel()[magnitude.argmax()]:.6g}; fp16 ends at {LARGEST_HALF:.0f}",
                next_step="a mask of the lowest float32 may be -10000 as well; else stay with int8 or fp32",
            )
        small += int(np.count_nonzero((magnitude > 0) & (magnitude < LEAST_NORMAL_HALF)))
        total += value.size
    return small / total if total else 0.0


def _converted(model: ModelProto) -> ModelProto:
    try:
        from onnxruntime.quantization.onnx_model import ONNXModel
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ModuleNotFoundError as error:
        raise MissingExtra("onnxruntime", extra="export", purpose="writing fp16 ONNX") from error
    copy = type(model)()
    copy.CopyFrom(model)
    made: ModelProto = convert_float_to_float16(copy, keep_io_types=True)
    ONNXModel(made).topological_sort()
    del made.graph.value_info[:]
    return made
