"""Unfinished: a training's state between two steps, kept in a folder so that a killed one goes on where it was.

The rule: a file is either whole or absent, holds tensors and plain values only, and belongs to one module, set of
samples and settings; any other is ignored. A resumed training ends in the same bits. What cannot be kept is refused
when a training begins, not when it is saved.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeexport import ranks
from edgeexport.errors import RequestError
from edgeexport.records.base import digest
from edgeexport.records.training import Training
from edgeexport.training.keeping import tensors_of
from edgeexport.training.samples import TrainingData
from edgeexport.workspace import publish

if TYPE_CHECKING:
    import torch

NAME = "training.safetensors"
# Seconds between two savings, and how many times the last one's own time must have passed.
SAVE_SECONDS = 20.0
SAVE_RATIO = 30.0
# What stands for a value that JSON has not, and for a dict, whose keys may be numbers.
TENSOR, PAIRS, TUPLE, NUMBER = "tensor", "pairs", "tuple", "number"


@dataclass
class Unfinished:
    """The file in `folder` (none: nothing is kept) that holds a training of `key`."""

    folder: Path | None
    key: str
    _due: float = field(default_factory=lambda: time.monotonic() + SAVE_SECONDS)

    def restore(self) -> dict[str, Any] | None:
        """Return the state that was saved under this key; None where there is none."""
        import safetensors

        if self.folder is None or not (self.folder / NAME).is_file():
            return None
        try:
            with safetensors.safe_open(self.folder / NAME, "pt") as stored:
                said = stored.metadata() or {}
                tensors = [stored.get_tensor(str(index)) for index in range(len(stored.keys()))]
            state = _filled(json.loads(said["state"]), tensors)
        except (OSError, ValueError, LookupError, TypeError, safetensors.SafetensorError):
            return None
        return state if isinstance(state, dict) and said.get("key") == self.key else None

    def due(self) -> bool:
        """Whether it is time to save; the time between is long beside the time that saving takes."""
        return self.folder is not None and time.monotonic() >= self._due

    def check(self, state: Any, *, what: str) -> None:
        """Raise RequestError if the state of `what` could not be saved in the folder; it says which value and why."""
        if self.folder is not None:
            _emptied(state, [], at=what)

    def save(self, state: dict[str, Any]) -> None:
        """Publish a state. Process 0 writes. Raises NoSpace or MachineError."""
        import safetensors.torch

        if self.folder is None or not ranks.first():
            return
        began = time.monotonic()
        tensors: list[torch.Tensor] = []
        said = {"key": self.key, "state": json.dumps(_emptied(state, tensors))}
        named = {str(index): tensor.clone().contiguous() for index, tensor in enumerate(tensors)}
        publish(self.folder / NAME, safetensors.torch.save(named, metadata=said))
        took = time.monotonic() - began
        self._due = time.monotonic() + max(SAVE_SECONDS, SAVE_RATIO * took)


def training_key(module: torch.nn.Module, data: TrainingData, *, settings: Training, precision: str) -> str:
    """Return what a saved state must have been made from: starting weights, samples, settings, threads, processes.

    What the loss is made of is not in it: the folder must belong to one.
    """
    import torch

    taken = hashlib.sha256()
    for name, tensor in tensors_of(module).items():
        taken.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        taken.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for array in (*data.arrays, *(() if data.labels is None else (data.labels,))):
        taken.update(f"{array.dtype} {array.shape}".encode())
        for start in range(0, len(array), 1024):
            taken.update(array[start : start + 1024].tobytes())
    said = [msgspec.to_builtins(settings), precision, torch.get_num_threads(), ranks.count(), str(torch.__version__)]
    return digest([taken.hexdigest(), said])


def _emptied(value: Any, tensors: list[torch.Tensor], *, at: str = "the state") -> Any:
    """Return `value` as JSON, its tensors moved to `tensors`. Keys may be numbers, as in torch's optimizer states.

    at: what to call the value. Raises RequestError for what `_filled` could not give back as it was.
    """
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor) and value.layout is torch.strided and value.dtype is not torch.complex128:
        tensors.append(value.detach())
        return {TENSOR: len(tensors) - 1}
    if isinstance(value, dict):
        named = [(key, item, f"{at}[{key!r}]") for key, item in value.items()]
        return {PAIRS: [[_emptied(each, tensors, at=name) for each in (key, item)] for key, item, name in named]}
    if isinstance(value, list | tuple):
        items = [_emptied(item, tensors, at=f"{at}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else {TUPLE: items}
    if isinstance(value, np.number | np.bool_):
        return {NUMBER: [value.dtype.str, value.tobytes().hex()]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise RequestError(
        f"{at} is {_kind(value)}, which cannot be kept: a training that is killed could not go on where it was",
        next_step="keep tensors, numbers, text, and lists, tuples or dicts of them there",
    )


def _kind(value: Any) -> str:
    form = f" ({value.dtype}, {value.layout})" if hasattr(value, "layout") else ""
    return f"of type {type(value).__name__}{form}"


def _filled(value: Any, tensors: list[torch.Tensor]) -> Any:
    """The value that `_emptied` was given."""
    import numpy as np

    if isinstance(value, list):
        return [_filled(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((form, held),) = value.items()
    if form == TENSOR:
        return tensors[held]
    if form == NUMBER:
        return np.frombuffer(bytes.fromhex(held[1]), held[0])[0]
    if form == TUPLE:
        return tuple(_filled(item, tensors) for item in held)
    return {_filled(key, tensors): _filled(item, tensors) for key, item in held}
