"""From a torch module to an .onnx file that computes the same.

The rule: no file is published that was not run on real samples, alone and in a batch of two, and found equal to the
network. Both routes are tried before giving up, first with a free batch and then with a batch of one; the record says
why a route, or the free batch, was rejected.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import graph, runtimes
from edgeexport.errors import CorruptFile, DataError, ModelError
from edgeexport.graph.files import need
from edgeexport.graph.shapes import with_input_shapes
from edgeexport.onnx_export import routes
from edgeexport.onnx_export.clean import strip
from edgeexport.onnx_export.routes import BATCH, Call, Route
from edgeexport.progress import Progress, silent
from edgeexport.records.base import file_digest
from edgeexport.records.export import ExportRecord
from edgeexport.records.parity import Parity
from edgeexport.records.recipe import ModelSpec
from edgeexport.validation.compare import compare_sessions

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto
    from torch import nn

    from edgeexport.runtimes.protocol import Feeds, Outputs

NETWORK = "the torch network"
# What exporters and user code raise when they cannot: their own errors are RuntimeErrors.
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)


def export_module(
    module: nn.Module,
    spec: ModelSpec,
    *,
    path: Path,
    samples: Sequence[Feeds],
    tolerance: float,
    progress: Progress = silent,
) -> ExportRecord:
    """Write `module`, in evaluation mode, as .onnx with a free batch axis; the module itself is left as it was.

    A network with its batch built in (`reshape(1, 64)`, say) gets a batch fixed at 1, and a note that says why.

    spec: its `inputs` (name → shape, batch first) are passed to `forward` by name if all of them are its parameters,
    else in order; its `outputs` name what comes out; by default the keys of a returned dict, or "output", or
    "output_0", "output_1", ... samples: feeds of a batch of one. tolerance: largest allowed |difference| divided by
    the largest |value| of an output. Raises DataError for samples that do not fit, ModelError if the network fails or
    no route agrees with it.
    """
    need("torch", purpose="exporting a network")
    _check_samples(spec.shapes(), samples)
    reasons: dict[bool, list[str]] = {True: [], False: []}
    with _evaluating(module):
        for free, notes in reasons.items():
            if not free:
                notes.append(f"the batch is fixed at 1: {'; '.join(reasons[True])}")
            case = _case_or_reason(module, spec, samples=samples) if free else _case(module, spec, samples=samples)
            if isinstance(case, str):
                notes.append(case)
                continue
            record = _export(case, path, tolerance=tolerance, notes=notes, progress=progress)
            if record is not None:
                return record
    raise ModelError(
        "no exporter gives an .onnx file that agrees with the network: "
        f"with a free batch: {'; '.join(reasons[True])}; with a batch of one: {'; '.join(reasons[False][1:])}",
        next_step="look for control flow that depends on data, or export it yourself and give `model.onnx`",
    )


@dataclass(frozen=True)
class _Case:
    """A network, the shapes of its inputs, how it is called, and what it answers to what."""

    module: nn.Module
    inputs: Mapping[str, tuple[int, ...]]
    call: Call
    feeds: list[Feeds]
    expected: list[Outputs]


def _case_or_reason(module: nn.Module, spec: ModelSpec, *, samples: Sequence[Feeds]) -> _Case | str:
    """Return the case of a free batch, or why the network itself has none."""
    try:
        return _case(module, spec, samples=samples, free=True)
    except ModelError as error:
        return str(error)


def _case(module: nn.Module, spec: ModelSpec, *, samples: Sequence[Feeds], free: bool = False) -> _Case:
    """Run the network on every sample, and on two together if the batch is to be free. Raises ModelError."""
    call = _call(module, spec, samples=samples, free=free)
    feeds = list(samples)
    if free:
        feeds.append({name: value.numpy() for name, value in call.tensors.items()})
    elif len(feeds) == 1:
        feeds.append(_other(feeds[0]))  # what a trace froze at one sample shows on another
    expected = [_run(module, each, call=call) for each in feeds]
    _check_outputs(expected)
    return _Case(module, spec.shapes(), call, feeds, expected)


def _export(case: _Case, path: Path, *, tolerance: float, notes: list[str], progress: Progress) -> ExportRecord | None:
    """Take the first route whose file agrees with the network; None if there is none. Adds to `notes` what is wrong."""
    for name, route in routes.ROUTES:
        progress(f"export with {name}", None)
        parity = _attempt(case, route, path=path, tolerance=tolerance)
        if isinstance(parity, Parity):
            return ExportRecord(name, routes.OPSET, parity, tuple(notes))
        notes.append(f"{name} {parity}")
    return None


def _attempt(case: _Case, route: Route, *, path: Path, tolerance: float) -> Parity | str:
    """Write the file by one route and compare; return the parity that holds, or what is wrong (and no file)."""
    try:
        model = _translate(route, case.module, call=case.call, inputs=case.inputs)
        if case.call.free:
            model = _name_batch(model, alone=case.expected[0], paired=case.expected[-1])
        graph.save(model, path)
    except FAILURES as error:
        return f"failed: {_brief(error)}"
    parity = _verify(path, case.feeds, expected=case.expected, tolerance=tolerance)
    if parity.holds:
        return parity
    path.unlink()
    return f"disagrees with the network: {parity.reason}"


def _translate(route: Route, module: nn.Module, *, call: Call, inputs: Mapping[str, tuple[int, ...]]) -> ModelProto:
    """Run one route; the result has checked weights, inputs fixed but for a free batch, no traces of where it ran."""
    model = route(module, call)
    kept = {value.name for value in model.graph.input}
    if dropped := [name for name in inputs if name not in kept]:
        raise RuntimeError(f"the inputs {', '.join(dropped)} have no influence on any output")
    graph.check_weights(model)
    batch = BATCH if call.free else 1
    return strip(with_input_shapes(model, {name: (batch, *shape[1:]) for name, shape in inputs.items()}))


def _name_batch(model: ModelProto, *, alone: Outputs, paired: Outputs) -> ModelProto:
    """Call axis 0 of an output `batch` where it grew with the batch; inference loses the name at a Reshape."""
    for value in model.graph.output:
        sizes = alone[value.name].shape[:1], paired[value.name].shape[:1]
        if sizes == ((1,), (2,)) and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    return model


def _verify(path: Path, feeds: Sequence[Feeds], *, expected: Sequence[Outputs], tolerance: float) -> Parity:
    """Compare the file with what the network answered on the same feeds."""
    answers = iter(expected)
    try:
        run = runtimes.get("ort").open(path, threads=0).run
        return compare_sessions(
            lambda _: next(answers), run, samples=feeds, artifacts=(NETWORK, file_digest(path)), float_error=tolerance
        )
    except (ModelError, CorruptFile, DataError) as error:
        return Parity(NETWORK, file_digest(path), len(feeds), outputs=(), holds=False, reason=str(error))


def _call(module: nn.Module, spec: ModelSpec, *, samples: Sequence[Feeds], free: bool) -> Call:
    """Find out how to call the network, what it returns, and an example: two different samples if the batch is free."""
    import torch

    parameters = inspect.signature(module.forward).parameters
    keywords = all(name in parameters for name in spec.inputs)
    names = [name for name in parameters if name in spec.inputs] if keywords else list(spec.inputs)
    pair = (samples[0], samples[1] if len(samples) > 1 else _other(samples[0]))[: 2 if free else 1]
    tensors = {name: torch.cat([torch.from_numpy(feeds[name].copy()) for feeds in pair]) for name in names}
    call = Call(tensors, outputs=(), keywords=keywords, free=free)
    found = _named(_forward(module, call))
    outputs = tuple(spec.outputs) or tuple(found)
    if len(outputs) != len(found):
        raise ModelError(f"`model.outputs` names {len(outputs)} outputs, the network returns {len(found)}")
    return Call(tensors, outputs=outputs, keywords=keywords, free=free)


def _other(feeds: Feeds) -> Feeds:
    """A second sample out of the first, with the same values in other places."""
    import numpy as np

    return {name: np.roll(value, 1, axis=-1) for name, value in feeds.items()}


def _run(module: nn.Module, feeds: Feeds, *, call: Call) -> Outputs:
    """The network's outputs, by name, as numpy."""
    import torch

    tensors = {name: torch.from_numpy(feeds[name].copy()) for name in call.tensors}
    found = _named(_forward(module, Call(tensors, outputs=call.outputs, keywords=call.keywords)))
    return {name: value.numpy() for name, value in zip(call.outputs, found.values(), strict=True)}


def _forward(module: nn.Module, call: Call) -> Any:
    import torch

    shapes = {name: list(value.shape) for name, value in call.tensors.items()}
    try:
        with torch.no_grad():
            return module(*call.args, **call.kwargs)
    except FAILURES as error:
        raise ModelError(f"the network fails on a sample with the shapes {shapes}: {_brief(error)}") from error


def _named(result: Any) -> dict[str, torch.Tensor]:
    """Give every tensor that `forward` returned a name, in the order in which exporters list them."""
    import torch

    if isinstance(result, torch.Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        return {str(name): _tensor(value, f"`{name}`") for name, value in result.items()}
    if isinstance(result, list | tuple) and result:
        return {f"output_{index}": _tensor(value, f"{index}") for index, value in enumerate(result)}
    raise ModelError(
        f"the network returns {type(result).__name__}; a tensor, or a list or dict of tensors, was expected"
    )


def _tensor(value: Any, place: str) -> torch.Tensor:
    import torch

    if not isinstance(value, torch.Tensor):
        raise ModelError(f"output {place} of the network is {type(value).__name__}, not a tensor")
    return value


def _check_samples(inputs: Mapping[str, tuple[int, ...]], samples: Sequence[Feeds]) -> None:
    if not samples:
        raise DataError("no samples to check an export on")
    for index, feeds in enumerate(samples):
        if set(feeds) != set(inputs):
            raise DataError(f"sample {index} has the inputs {sorted(feeds)}, the model {sorted(inputs)}")
        for name, shape in inputs.items():
            if feeds[name].shape != (1, *shape[1:]):
                raise DataError(f"sample {index}: {name!r} has the shape {feeds[name].shape}, not {(1, *shape[1:])}")


def _check_outputs(expected: Sequence[Outputs]) -> None:
    """Say it plainly when it is the network itself that answers NaN or Inf."""
    import numpy as np

    for index, outputs in enumerate(expected):
        for name, value in outputs.items():
            if bad := int(np.count_nonzero(~np.isfinite(value))):
                raise ModelError(
                    f"the network answers NaN or Inf in {bad} of {value.size} values of {name!r}, sample {index}"
                )


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put every part into evaluation mode, and each back into the mode it had."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _brief(error: BaseException) -> str:
    """The innermost cause, in one line: exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"
