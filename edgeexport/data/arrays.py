"""What a raw sample may hold: plain numeric numpy arrays. Here they are checked, named and digested.

The rule: nothing that is not finite, not numeric or not rectangular gets past this module unnamed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeexport.errors import DataError

if TYPE_CHECKING:
    import numpy as np

Arrays = dict[str, "np.ndarray[Any, Any]"]


def as_arrays(raw: object, *, name: str) -> Arrays:
    """Return the raw inputs of a sample by input name; a single unnamed input has the name "".

    Takes anything numpy reads as an array, or a mapping of such. Raises DataError naming the sample `name`.
    """
    if not isinstance(raw, Mapping):
        return {"": as_array(raw, name=name)}
    if not raw:
        raise DataError(f"{name}: the sample has no inputs")
    return {str(key): as_array(value, name=f"{name}, input {key!r}") for key, value in raw.items()}


def as_array(value: object, *, name: str) -> np.ndarray[Any, Any]:
    """Return `value` as a numeric array. Raises DataError for ragged, text and object values."""
    import numpy as np

    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name}: not readable as an array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{name}: has dtype {array.dtype}, expected numbers (bool, integer or float)",
            next_step="let the data source return numeric numpy arrays",
        )
    return array


def check_finite(arrays: Mapping[str, np.ndarray[Any, Any]], *, name: str) -> None:
    """Raise DataError if a value is NaN or infinite, naming the sample, the input, the first place and how many."""
    import numpy as np

    for key, array in arrays.items():
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        bad = np.argwhere(~np.isfinite(array))
        place = tuple(int(position) for position in bad[0])
        what = f"{name}, input {key!r}" if key else name
        raise DataError(
            f"{what}: {array[place]} at {place}; {len(bad)} of {array.size} values are not finite",
            next_step="repair or leave out this sample",
        )


def sample_digest(arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """Return the hex sha256 of a sample's inputs: their names, shapes, dtypes and bytes (little-endian, C order)."""
    import numpy as np

    found = hashlib.sha256()
    for key in sorted(arrays):
        array = arrays[key]
        plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        found.update(f"{key}|{array.shape}|{plain.dtype.str}|".encode())
        found.update(plain.tobytes())
    return found.hexdigest()


def joint_digest(digests: list[str]) -> str:
    """Return `sha256:<hex>` over the digests of several samples, in their order."""
    return "sha256:" + hashlib.sha256("\n".join(digests).encode()).hexdigest()
