"""Weights in and out: checkpoints as users have them, read without running any code, and written without pickle.

The rule: a file is read by a reader that cannot execute it, or refused with the reason. There is no fallback, and what
is accepted is complete: every key, every shape, every value finite.
"""

from __future__ import annotations

import pickle  # noqa: TID251  only for the name of its exception
import re
import struct
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.errors import CorruptFile, MissingExtra, ModelError, RequestError
from edgeexport.workspace import publish

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

PICKLED = (".pt", ".pth", ".th", ".bin", ".ckpt")
REFUSED = {
    ".pt2": "an exported program, whose loader runs code from the file",
    ".pkl": "a plain pickle, which can run code",
    ".pickle": "a plain pickle, which can run code",
    ".npy": "not a checkpoint",
    ".npz": "not a checkpoint",
    ".onnx": "a whole model, not a checkpoint: give it as `onnx`",
}
SAVE_WEIGHTS = (
    "where the file comes from, load the model, take its state_dict and save it with "
    "safetensors.torch.save_file(state_dict, 'weights.safetensors')"
)
# Where training scripts put the weights, in order of preference: the trained ones before their moving averages.
NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "generator")
AVERAGED = ("ema", "state_dict_ema", "model_ema", "ema_state_dict", "params_ema")
DEEPEST = 4  # wrappers in wrappers
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
SHOWN = 4


def load_checkpoint(path: Path) -> State:
    """Return the tensors of a checkpoint by name, on the CPU.

    .safetensors, or .pt, .pth, .th, .bin and .ckpt through torch's weights-only reader. A dict around the weights
    ("state_dict", "model", "ema", ...) is opened. Raises RequestError for what cannot be read without running code (it
    names the global asked for), CorruptFile for a damaged file, ModelError if there are no weights inside.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise RequestError(f"{path}: no such file")
    if suffix in REFUSED:
        raise RequestError(f"{path}: refused: {suffix} is {REFUSED[suffix]}", next_step=SAVE_WEIGHTS)
    if suffix == ".safetensors":
        return _read_safetensors(path)
    if suffix not in PICKLED:
        known = ", ".join((".safetensors", *PICKLED))
        raise RequestError(
            f"{path}: not a checkpoint by its name ({suffix or 'no suffix'})", next_step=f"known: {known}"
        )
    if zipfile.is_zipfile(path):
        _check_archive(path)
    state = _find_state(_read_pickled(path))
    if not state:
        raise ModelError(f"{path}: there are no weights in this file", next_step=SAVE_WEIGHTS)
    return state


def _read_safetensors(path: Path) -> State:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise MissingExtra("safetensors", extra="export", purpose=f"reading {path}") from None
    try:
        state: State = safetensors.torch.load(path.read_bytes())
        return state
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, OSError) as error:
        raise CorruptFile(f"{path}: not readable as safetensors: {error}") from error


def _read_pickled(path: Path) -> object:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise CorruptFile(f"{path}: not readable as a checkpoint: {_first_line(error)}") from error
        raise RequestError(
            f"{path}: refused: the file asks for {found[1]}, which is code and not weights", next_step=SAVE_WEIGHTS
        ) from error
    except MALFORMED as error:
        raise CorruptFile(f"{path}: not readable as a checkpoint: {_first_line(error)}") from error


# What torch's readers raise on damaged bytes, found by damaging files; anything else is a bug worth a traceback.
MALFORMED = (
    RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, OSError,
    OverflowError, MemoryError, ImportError, struct.error,
)  # fmt: skip


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _check_archive(path: Path) -> None:
    """Refuse a zip that is not a plain torch.save archive: TorchScript, exported program, bomb, damaged entry."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise CorruptFile(f"{path}: its entries are compressed or overlap; torch.save writes neither")
            names = [entry.filename.partition("/")[2] for entry in entries]
            _refuse_programs(path, names)
            damaged = archive.testzip()
    except (zipfile.BadZipFile, *MALFORMED) as error:
        raise CorruptFile(f"{path}: damaged archive: {_first_line(error)}") from error
    if damaged is not None:
        raise CorruptFile(f"{path}: the checksum of its entry {damaged!r} does not match")


def _refuse_programs(path: Path, names: Collection[str]) -> None:
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise RequestError(f"{path}: refused: a TorchScript archive is a program", next_step=SAVE_WEIGHTS)
    if "archive_format" in names or any(name.startswith("models/") for name in names):
        raise RequestError(f"{path}: refused: {REFUSED['.pt2']}", next_step=SAVE_WEIGHTS)


def _find_state(content: object, *, deep: int = DEEPEST) -> State:
    """Return the dict of tensors in a loaded checkpoint, looking into its wrappers; empty if there is none.

    deep: how many wrappers may lie in each other; a dict may hold itself.
    """
    import torch

    if not isinstance(content, Mapping) or not deep:
        return {}
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    for key in (*NESTED, *AVERAGED):
        inner = _find_state(content.get(key), deep=deep - 1)
        if len(inner) > len(tensors):
            return inner
    return tensors


def fit_state(state: Mapping[str, torch.Tensor], module: torch.nn.Module, *, origin: str) -> State:
    """Return `state` under the module's own names, complete and finite, or raise ModelError with the differences.

    Prefixes that wrappers add (`module.`, `_orig_mod.`, `model.`, `net.`) are taken off when that makes keys fit.
    """
    wanted = module.state_dict()
    fitted = _without_prefixes(dict(state), set(wanted))
    # Checkpoints older than torch 0.4.1 lack this counter, which does not enter inference.
    missing = [k for k in wanted if k not in fitted and not k.endswith("num_batches_tracked")]
    unexpected = [key for key in fitted if key not in wanted]
    shapes = [
        f"{key} {tuple(fitted[key].shape)} in the file, {tuple(value.shape)} in the model"
        for key, value in wanted.items()
        if key in fitted and fitted[key].shape != value.shape
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    if any(found for _, found in parts):
        text = "; ".join(f"{len(found)} {name}: {_some(found)}" for name, found in parts if found)
        raise ModelError(
            f"{origin} does not fit the model ({len(fitted)} keys in the file, {len(wanted)} in the model): {text}",
            next_step="check that `factory` builds the network these weights were trained in",
        )
    check_finite(fitted, origin=origin)
    return fitted


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _without_prefixes(state: State, wanted: set[str]) -> State:
    for _ in range(len(PREFIXES)):
        for prefix in PREFIXES:
            shorter = {key.removeprefix(prefix): value for key, value in state.items()}
            if len(shorter) == len(state) and len(wanted & set(shorter)) > len(wanted & set(state)):
                return _without_prefixes(shorter, wanted)
        common = [p for p in PREFIXES if state and all(key.startswith(p) for key in state)]
        if not common or wanted & set(state):
            break
        state = {key.removeprefix(common[0]): value for key, value in state.items()}
    return state


def check_finite(state: Mapping[str, torch.Tensor], *, origin: str) -> None:
    """Raise ModelError naming the first tensor that holds NaN or Inf, its first such index, and how many there are."""
    import torch

    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        bad = torch.nonzero(~torch.isfinite(tensor))
        if len(bad):
            index = tuple(bad[0].tolist())
            raise ModelError(
                f"{origin}: `{name}` holds {len(bad)} values that are not finite out of {tensor.numel()}, "
                f"the first one {tensor[index].item()} at {list(index)}",
                next_step="use a checkpoint from before the training diverged",
            )


def load_weights(module: torch.nn.Module, path: Path) -> torch.nn.Module:
    """Load a checkpoint into `module` in place and return it in eval mode; see `load_checkpoint` and `fit_state`."""
    module.load_state_dict(fit_state(load_checkpoint(path), module, origin=str(path)), strict=False)
    return module.eval()


def save_weights(module: torch.nn.Module, path: Path) -> None:
    """Write the module's state as .safetensors: sorted names, the same bytes for the same weights, by rename.

    Tensors that share memory (tied weights) are written once under each of their names. Raises ModelError on NaN or
    Inf, NoSpace when the disk is full; nothing is left behind then.
    """
    state = {name: value.detach().cpu() for name, value in sorted(module.state_dict().items())}
    check_finite(state, origin=type(module).__name__)
    try:
        import safetensors.torch
    except ImportError:
        raise MissingExtra("safetensors", extra="export", purpose=f"writing {path}") from None
    publish(path, safetensors.torch.save({name: value.clone().contiguous() for name, value in state.items()}))


def build(factory: Any, folder: Path) -> torch.nn.Module:
    """Return a new module from "module:function" in `folder`, a callable, or (copied) a live module."""
    import copy

    import torch

    from edgeexport.data import UserCode, resolve_reference

    name = factory if isinstance(factory, str) else getattr(factory, "__name__", "the model factory")
    module = resolve_reference(factory, folder) if isinstance(factory, str) else factory
    if isinstance(module, torch.nn.Module):
        module = copy.deepcopy(module)
    elif callable(module):
        with UserCode(name, folder):
            module = module()
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{name} gives a {type(module).__name__}, not a torch.nn.Module")
    return module
