"""Names, types and shapes: what goes in and out of a model, and setting it.

The rule: a function returns a new model and never touches its argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgeexport.errors import ModelError
from edgeexport.graph.batch import batch_refusal, random_input, run_once
from edgeexport.records.artifact import Signature, TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

BATCH = "batch"
_LARGE_BYTES = 65_536


def signature(model: ModelProto) -> Signature:
    """Return inputs and outputs in the model's order. Rank-4 float inputs have the layout NCHW, all else is as-is.

    A dimension without size or name is called `<tensor>_<axis>`. Raises ModelError where type or rank is unknown.
    """
    if not all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
        model = infer_shapes(model)
    inputs = tuple(_spec(value, pictures=True) for value in free_inputs(model))
    return Signature(inputs=inputs, outputs=tuple(_spec(value, pictures=False) for value in model.graph.output))


def free_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """Return the graph inputs that no initializer fills (IR 3 lists initializers as inputs too)."""
    filled = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in filled]


def infer_shapes(model: ModelProto) -> ModelProto:
    """Return a copy with the type and shape of every tensor ONNX can infer in `value_info`. Raises ModelError."""
    import onnx

    inferred = _inferred(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for field in ("value_info", "output", "input"):
        mine = getattr(copy.graph, field)
        del mine[:]
        mine.extend(getattr(inferred.graph, field))
    return copy


def _inferred(model: ModelProto) -> ModelProto:
    """Infer over the graph without its large weights, which tell no shape and take long to copy."""
    import onnx
    from onnx import shape_inference

    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        if len(tensor.raw_data) > _LARGE_BYTES:
            tensor.ClearField("raw_data")
    try:
        return shape_inference.infer_shapes(light, data_prop=True)
    except (shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise ModelError(f"shapes of the model cannot be inferred: {error}") from error


def fix_inputs(model: ModelProto, inputs: Mapping[str, tuple[int, ...]], *, free_batch: bool) -> ModelProto:
    """Return a copy whose inputs have the given shapes, every other shape inferred anew.

    inputs: input name → shape, batch first. free_batch: call axis 0 of every input `batch` and leave it free; if the
    model has its batch size built in (it fails or answers differently on a batch of two), the axis keeps its given
    size, and `signature` shows it; `batch_refusal` says why. Raises ModelError for unknown or missing names and for
    sizes that contradict the model's own.
    """
    _check_asked(model, inputs)
    fixed = with_input_shapes(model, inputs)
    if not free_batch:
        return _settled(fixed, inputs)
    freed = with_input_shapes(model, {name: (BATCH, *shape[1:]) for name, shape in inputs.items() if shape})
    return _settled(fixed if batch_refusal(freed, inputs) else freed, inputs)


def _settled(model: ModelProto, inputs: Mapping[str, tuple[int, ...]]) -> ModelProto:
    """Give outputs the sizes they really have where inference leaves an axis open though every input is fixed."""
    shapes = [value.type.tensor_type.shape for value in model.graph.output]
    if not any(not dim.HasField("dim_value") for shape in shapes for dim in list(shape.dim)[1:]):
        return model
    feeds = {value.name: random_input(value, inputs[value.name]) for value in free_inputs(model)}
    try:
        results = run_once(model, feeds)
    except ValueError:
        return model
    for shape, values in zip(shapes, results, strict=True):
        for dim, size in list(zip(shape.dim, values.shape, strict=False))[1:]:
            dim.dim_value = size
    return model


def complete_inputs(model: ModelProto, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return `inputs` and, for every input that is not in it, the model's own shape; an open batch axis becomes 1.

    Raises ModelError naming the input and the axis where the model leaves another axis open.
    """
    own = {value.name: _own_shape(value) for value in free_inputs(model) if value.name not in inputs}
    return {**inputs, **own}


def _own_shape(value: ValueInfoProto) -> tuple[int, ...]:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise ModelError(
            f"input {value.name!r}: the model does not say its shape",
            next_step=f"say e.g. inputs = {{ {value.name} = [1, 3, 224, 224] }}",
        )
    sizes = [max(0, dim.dim_value) for dim in tensor.shape.dim]
    for axis, size in enumerate(sizes):
        if not size and axis:
            called = tensor.shape.dim[axis].dim_param
            shown = ", ".join(str(size or (224 if axis else 1)) for axis, size in enumerate(sizes))
            raise ModelError(
                f"input {value.name!r}: the model leaves axis {axis}{f' ({called})' if called else ''} open",
                next_step=f"say e.g. inputs = {{ {value.name} = [{shown}] }}",
            )
    return tuple(size or 1 for size in sizes)


def with_input_shapes(model: ModelProto, inputs: Mapping[str, tuple[int | str, ...]]) -> ModelProto:
    """Return a copy with these input shapes (a text names a free axis); all other shapes are dropped and inferred."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in free_inputs(copy):
        if value.name in inputs:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, inputs[value.name]))
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = infer_shapes(copy)
    if all(value.type.tensor_type.HasField("shape") for value in inferred.graph.output):
        return inferred
    del copy.graph.output[:]
    copy.graph.output.extend(model.graph.output)
    return infer_shapes(copy)


def tensor_types(model: ModelProto) -> dict[str, ValueInfoProto]:
    """Return tensor name → type and shape, for inputs, outputs and all that can be inferred."""
    inferred = _inferred(model).graph
    return {value.name: value for value in (*inferred.value_info, *inferred.output, *inferred.input)}


def _check_asked(model: ModelProto, inputs: Mapping[str, tuple[int, ...]]) -> None:
    has = {value.name: value for value in free_inputs(model)}
    if set(has) != set(inputs):
        raise ModelError(f"the model's inputs are {sorted(has)}, shapes are given for {sorted(inputs)}")
    for name, shape in inputs.items():
        tensor = has[name].type.tensor_type
        own = [dim.dim_value or dim.dim_param for dim in tensor.shape.dim]
        if any(size < 1 for size in shape):
            raise ModelError(f"input {name!r}: shape {list(shape)} has a size below 1")
        if not tensor.HasField("shape"):
            continue
        same = len(own) == len(shape) and all(
            axis == 0 or not isinstance(mine, int) or mine == asked
            for axis, (mine, asked) in enumerate(zip(own, shape, strict=True))
        )
        if not same:
            raise ModelError(f"input {name!r}: the model has the shape {own}, the shape asked for is {list(shape)}")


def _spec(value: ValueInfoProto, *, pictures: bool) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.elem_type or not tensor.HasField("shape"):
        raise ModelError(f"{value.name!r}: its type or number of dimensions is not known")
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{axis}"
        for axis, dim in enumerate(tensor.shape.dim)
    )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    is_picture = pictures and len(shape) == 4 and dtype in ("float16", "float32", "float64", "bfloat16")
    return TensorSpec(name=value.name, dtype=dtype, shape=shape, layout="NCHW" if is_picture else "as-is")
