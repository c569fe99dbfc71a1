"""Whether a model's batch axis can be left free, found out by running it.

The rule: a model that has its batch size built in (a Reshape to a fixed shape, say) may fail on another batch or
answer wrongly without an error, so a batch of two must give what two batches of one give.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgeexport.graph.files import need

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, ValueInfoProto

_SEED = 20_26
_TOLERANCE = 1e-3


def batch_refusal(freed: ModelProto, inputs: Mapping[str, tuple[int, ...]]) -> str | None:
    """Say why `freed`, a model whose batch axis is free, does not work on a batch of two; None if it does.

    inputs: input name → shape with the batch first; the probe is random numbers of a fixed seed.
    """
    import numpy as np

    need("onnxruntime", purpose="trying a model on a batch of two")
    two = _probe(freed, inputs)
    try:
        outputs = run_once(freed, two)
        singles = [run_once(freed, {name: value[i : i + 1] for name, value in two.items()}) for i in (0, 1)]
    except ValueError as error:
        return str(error)
    for index, whole in enumerate(outputs):
        parts = [single[index] for single in singles]
        name = freed.graph.output[index].name
        if any(part.ndim == 0 or part.shape[0] != 1 for part in parts) or whole.shape[0] != 2:
            return f"output {name!r} has the shape {list(whole.shape)} on a batch of two"
        both = np.concatenate(parts)
        scale = float(np.max(np.abs(np.nan_to_num(both.astype(np.float64))), initial=1e-6))
        if both.shape != whole.shape or not np.allclose(whole, both, rtol=0, atol=_TOLERANCE * scale, equal_nan=True):
            return f"output {name!r} on a batch of two differs from two batches of one"
    return None


def _probe(model: ModelProto, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {value.name: random_input(value, (2, *inputs[value.name][1:])) for value in model.graph.input
            if value.name in inputs}  # fmt: skip


def random_input(value: ValueInfoProto, shape: tuple[int, ...], *, seed: int = _SEED) -> np.ndarray:
    """Return repeatable random numbers of the input's type: normal for floats, 0 or 1 for integers and booleans."""
    import numpy as np
    import onnx

    generator = np.random.default_rng(seed)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if np.issubdtype(dtype, np.integer) or dtype == np.bool_:
        return generator.integers(0, 2, size=shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def run_once(model: ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run the model on onnxruntime; whatever that refuses becomes a ValueError with its first line."""
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    failures = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented, state.RuntimeException)
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return list(session.run(None, dict(feeds)))
    except failures as error:
        raise ValueError(str(error).splitlines()[0]) from error
