"""From a raw sample to model inputs: the one implementation of `Preprocess`, for calibration and evaluation alike.

The rule: the order is fixed (color, resize, crop, scale, mean/std, layout), nothing is guessed, and what does not fit
the model's signature is refused with both values.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from edgeexport.data.arrays import Arrays, as_arrays, check_finite
from edgeexport.data.resize import resize
from edgeexport.data.sources import named_set
from edgeexport.errors import DataError, RecipeError
from edgeexport.records.artifact import Signature, TensorSpec
from edgeexport.records.calibration import calibration_names, load_calibration_set
from edgeexport.records.recipe import Preprocess, Recipe

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def resolve_preprocess(recipe: Recipe) -> Preprocess | None:
    """Return the preprocessing in force: the recipe's own, the one it names, or that of the named set it uses."""
    if isinstance(recipe.preprocess, Preprocess):
        return recipe.preprocess
    if recipe.preprocess is not None:
        named = named_set(recipe.preprocess, recipe)
        if named is None or named[0].preprocess is None:
            raise RecipeError(
                f"`preprocess`: {recipe.preprocess!r} names no preprocessing under calibration/",
                next_step=_did_you_mean(recipe.preprocess),
            )
        return named[0].preprocess
    data = recipe.data
    sets = (named_set(source, recipe) for source in (data.calibration, data.pool, data.train, data.evaluate))
    return next((found[0].preprocess for found in sets if found is not None and found[0].preprocess), None)


def _did_you_mean(name: str) -> str:
    known = [each for each in calibration_names() if load_calibration_set(each)[0].preprocess]
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(known)


def prepare(raw: object, preprocess: Preprocess | None, *, signature: Signature, name: str = "sample") -> Arrays:
    """Return the feeds of one raw sample, batch axis (1) first, in the names, shapes and dtypes of `signature`.

    raw: an array, or a dict of arrays by input name. Inputs that `preprocess` does not belong to pass unchanged, but
    floats may be narrowed or widened to the signature's float type, and integers to its integer type.
    Raises DataError naming the sample `name` with both values.
    """
    arrays = _by_input(as_arrays(raw, name=name), signature, name=name)
    owner = _owner(preprocess, signature)
    feeds: Arrays = {}
    for spec in signature.inputs:
        array = arrays[spec.name]
        what = f"{name}, input {spec.name!r}"
        if preprocess is not None and spec.name == owner:
            array = apply(array, preprocess, name=what)
        elif array.dtype.name != spec.dtype:
            array = _cast(array, spec, name=what)
        feeds[spec.name] = _fit(array, spec, name=what)
    check_finite(feeds, name=name)
    return feeds


def _by_input(arrays: Arrays, signature: Signature, *, name: str) -> Arrays:
    names = [spec.name for spec in signature.inputs]
    if len(arrays) == 1 and "" in arrays and len(names) == 1:
        return {names[0]: arrays[""]}
    if set(arrays) != set(names):
        given = "one unnamed array" if "" in arrays else "inputs " + ", ".join(sorted(arrays))
        raise DataError(
            f"{name}: has {given}, the model has inputs {', '.join(names)}",
            next_step="return a dict of arrays, one for each input",
        )
    return arrays


def _owner(preprocess: Preprocess | None, signature: Signature) -> str:
    names = [spec.name for spec in signature.inputs]
    if preprocess is None:
        return ""
    if preprocess.input is None:
        if len(names) > 1:
            raise RecipeError("`preprocess.input` is missing", next_step="say which input: " + ", ".join(names))
        return names[0]
    if preprocess.input not in names:
        raise RecipeError(f"`preprocess.input` is {preprocess.input!r}, the model has inputs {', '.join(names)}")
    return preprocess.input


def apply(array: Array, how: Preprocess, *, name: str) -> Array:
    """Run the closed list of operations on one raw array; see `Preprocess` for the order."""
    import numpy as np

    if array.ndim == 2 and how.layout != "as-is":
        array = array[..., None]
    array = _color(array, how.color, name=name)
    if (how.resize or how.crop or how.layout != "as-is") and array.ndim != 3:
        raise DataError(f"{name}: has shape {array.shape}, expected a picture (height, width, channels)")
    if how.resize is not None:
        array = resize(array, how.resize)
    if how.crop is not None:
        array = _crop(array, how.crop, name=name)
    array = _normalize(array, how, name=name)
    if how.layout == "CHW":
        array = array.transpose(2, 0, 1)
    return np.ascontiguousarray(array, dtype=how.dtype)


def _color(array: Array, color: str, *, name: str) -> Array:
    """RGB leaves the array as it is; gray weighs 0.299 R + 0.587 G + 0.114 B (ITU-R 601), keeping one channel."""
    import numpy as np

    if color == "RGB" or (color == "gray" and array.ndim == 3 and array.shape[2] == 1):
        return array
    if array.ndim != 3 or array.shape[2] != 3:
        raise DataError(f"{name}: `color = {color!r}` needs shape (height, width, 3), the sample has {array.shape}")
    if color == "BGR":
        return array[..., ::-1]
    if array.dtype == np.uint8:  # Pillow's own fixed-point sum, so that both ways to gray agree to the bit
        gray = (array.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32) + 0x8000) >> 16
        return gray.astype(np.uint8)[..., None]
    return (array.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]


def _crop(array: Array, size: tuple[int, int], *, name: str) -> Array:
    """Cut the centre out; an odd remainder is rounded to even, as torchvision's CenterCrop does."""
    height, width = size
    if array.shape[0] < height or array.shape[1] < width:
        raise DataError(
            f"{name}: is {array.shape[0]}x{array.shape[1]}, smaller than the crop {height}x{width}",
            next_step="resize before cropping, or crop less",
        )
    top, left = round((array.shape[0] - height) / 2), round((array.shape[1] - width) / 2)
    return array[top : top + height, left : left + width]


def _normalize(array: Array, how: Preprocess, *, name: str) -> Array:
    """`(x * scale - mean) / std` in float32; mean and std run along the last axis."""
    import numpy as np

    if how.scale == 1.0 and not how.mean and not how.std:
        return array
    if not how.dtype.startswith("float"):
        raise RecipeError(f"`preprocess`: scale, mean and std make floats, but its dtype is {how.dtype}")
    if 0.0 in how.std:
        raise RecipeError("`preprocess.std` holds a zero")
    result = array.astype(np.float32) * np.float32(how.scale)
    for label, values in (("mean", how.mean), ("std", how.std)):
        if values and len(values) not in (1, result.shape[-1] if result.ndim else 1):
            raise DataError(f"{name}: `{label}` has {len(values)} values, the last axis has {result.shape[-1]}")
    if how.mean:
        result = result - np.array(how.mean, np.float32)
    return result / np.array(how.std, np.float32) if how.std else result


def _cast(array: Array, spec: TensorSpec, *, name: str) -> Array:
    """Change the width of a float or integer, never its kind, and never a value."""
    import numpy as np

    wanted = np.dtype(spec.dtype)
    floats = array.dtype.kind == wanted.kind == "f"
    integers = array.dtype.kind in "iu" and wanted.kind in "iu"
    if not floats and not integers:
        raise DataError(
            f"{name}: has dtype {array.dtype}, the model expects {spec.dtype}",
            next_step="declare [preprocess], or return the model's dtype",
        )
    with np.errstate(over="ignore"):
        cast = array.astype(wanted)
    if integers and not np.array_equal(cast, array):
        raise DataError(f"{name}: holds {array.min()} to {array.max()}, which {spec.dtype} cannot")
    return cast


def _fit(array: Array, spec: TensorSpec, *, name: str) -> Array:
    """Add the batch axis and compare with the signature."""
    batched = array[None]
    if array.dtype.name != spec.dtype:
        raise DataError(
            f"{name}: preprocessing makes {array.dtype}, the model expects {spec.dtype}",
            next_step="set `preprocess.dtype`",
        )
    same = len(spec.shape) == batched.ndim and all(
        isinstance(wanted, str) or wanted == actual for wanted, actual in zip(spec.shape[1:], array.shape, strict=True)
    )
    if not same:
        raise DataError(
            f"{name}: has shape {batched.shape} with the batch axis, the model expects {spec.shape}",
            next_step=_shape_hint(batched.shape, spec.shape),
        )
    return batched


def _shape_hint(actual: tuple[int, ...], wanted: tuple[int | str, ...]) -> str:
    if len(actual) == len(wanted) == 4 and (actual[3], actual[1], actual[2]) == tuple(wanted[1:]):
        return 'the axes are in another order: set `preprocess.layout = "CHW"`'
    if len(actual) == len(wanted) == 4 and (actual[2], actual[3], actual[1]) == tuple(wanted[1:]):
        return 'the axes are in another order: set `preprocess.layout = "HWC"`'
    if len(actual) == len(wanted) + 1:
        return "samples come one at a time, without a batch axis"
    return "declare [preprocess] (resize, crop, layout), or correct `model.inputs`"
