"""Augmentations: what is done to the pictures of a batch before the network sees them, by name or the user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from edgeexport.data import resolve_reference
from edgeexport.data.userfunction import UserFunction
from edgeexport.errors import DataError, RecipeError, RequestError

if TYPE_CHECKING:
    import numpy as np

Augment: TypeAlias = "Callable[[np.ndarray, np.random.Generator], np.ndarray]"


def resolve_augment(name: str | None, folder: str = ".") -> Augment | None:
    """Return the augmentation called `name`: "crop-flip", or "module:function" in `folder`; None for None."""
    if name is None:
        return None
    if name == "crop-flip":
        return crop_flip
    if ":" not in name:
        raise RecipeError(f"unknown augmentation {name!r}", next_step='choose "crop-flip" or module:function')
    found = resolve_reference(name, Path(folder))
    if not callable(found):
        raise RecipeError(f"the augmentation {name!r} is {type(found).__name__}, expected a function")
    return UserFunction(f"the augmentation {name!r}", found, Path(folder))


def augmented(augment: Augment, batch: np.ndarray, *, generator: np.random.Generator) -> np.ndarray:
    """Return `augment(batch, generator)`, contiguous. Raises RequestError unless shape and dtype stay as they are."""
    import numpy as np

    own = augment if isinstance(augment, UserFunction) else None
    if own is None and augment is not crop_flip:
        own = UserFunction(f"the augmentation {getattr(augment, '__name__', type(augment).__name__)!r}", augment)
    shape, dtype = batch.shape, batch.dtype
    result = crop_flip(batch, generator) if own is None else own(batch, generator)
    if own is not None and not isinstance(result, np.ndarray):
        raise RequestError(f"{own.where} returned {type(result).__name__}, expected an array of shape {shape}")
    if own is not None and (result.shape, result.dtype) != (shape, dtype):
        raise RequestError(
            f"{own.where} returned {result.dtype} of shape {result.shape}, expected {dtype} of shape {shape}"
        )
    return np.ascontiguousarray(result)


def crop_flip(pictures: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Shift each picture of (n, channels, height, width) by up to 4 pixels, zeros outside, and mirror every second one.

    The CIFAR augmentation of He et al. 2015 (arXiv:1512.03385); pictures under 32 pixels shift by an eighth at most.
    """
    import numpy as np

    if pictures.ndim != 4:
        raise DataError(f"crop-flip needs pictures (n, channels, height, width), not shape {pictures.shape}")
    count, channels, height, width = pictures.shape
    pad = min(4, height // 8, width // 8)
    padded = np.pad(pictures, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows = generator.integers(0, 2 * pad + 1, (count, 1)) + np.arange(height)
    columns = generator.integers(0, 2 * pad + 1, (count, 1)) + np.arange(width)
    mirrored = generator.random(count) < 0.5
    columns[mirrored] = columns[mirrored, ::-1]
    sample, channel = np.arange(count)[:, None, None, None], np.arange(channels)[None, :, None, None]
    shifted: np.ndarray = padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return shifted
